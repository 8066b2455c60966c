"""The real `dvc` and `slad` in a fresh repository: what runs, what does not, and what is refused."""

import json

import pytest

from tests.clone import BIN, TARGETS

pytestmark = pytest.mark.slow


def test_repro_ends_with_the_table_and_the_report(finished):
    lines = (finished.root / "printed.txt").read_text().splitlines()
    table = lines[max(place for place, line in enumerate(lines) if line.startswith("target ")) :]
    for target, variant in (("cpu-openvino", "int8"), ("cpu-onnxruntime", "fp32")):
        assert any(target in line for line in table)
        assert any(variant in line and " ms" in line and " %" in line for line in table)
    assert "<html" in (finished.root / "reports/report.html").read_text()


def test_a_second_repro_asks_the_devices_and_runs_nothing_else(finished):
    assert sorted(finished.all_ran("dvc", "repro")) == sorted(f"probe@{target}" for target in TARGETS)
    told = finished.run("dvc", "status").stdout.split()
    assert sorted(told) == sorted(word for target in TARGETS for word in (f"probe@{target}:", "always", "changed"))


def test_overrides_stay_until_reset(finished):
    assert finished.ran("slad", "repro") == []
    assert "experiment=quick" in (finished.root / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("report.max_drop_points=1.5", ["guard", "report"]),
        ("measure.queries=65", ["guard", *(f"measure@{target}" for target in TARGETS), "report", "check"]),
    ],
)
def test_a_key_re_runs_only_what_reads_it(finished, override, expected):
    assert sorted(finished.ran("slad", "repro", override)) == sorted(expected)


def test_a_file_re_runs_only_what_imports_it(finished):
    file = finished.root / "pipeline/steps/report/verdict.py"
    original = file.read_text()
    file.write_text(original + "# touched\n")
    assert finished.ran("dvc", "repro") == ["report"]
    file.write_text(original)
    assert finished.ran("dvc", "repro") == ["report"]


@pytest.mark.parametrize(
    ("name", "edit", "words"),
    [
        ("configs/method/slad.yaml", "rank: 24", "`distill.rank` is 32 in params.yaml, 24 in configs/"),
        ("params.yaml", "rank: 8", "`distill.rank` is 8 in params.yaml, 32 in configs/"),
    ],
    ids=["edited config", "edited params.yaml"],
)
def test_parameters_that_are_no_composition_are_refused(finished, name, edit, words):
    file = finished.root / name
    original, before = file.read_text(), finished.outputs()
    file.write_text(original.replace("rank: 32", edit))
    done = finished.run("dvc", "repro")
    assert done.returncode != 0
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("error: "))
    assert words in line
    assert "slad repro" in line
    assert finished.outputs() == before
    file.write_text(original)
    finished.ran("dvc", "repro")


def test_a_missing_folder_is_refused_before_dvc_and_changes_no_output(finished):
    before, params = finished.outputs(), (finished.root / "params.yaml").read_text()
    done = finished.run("slad", "repro", "data=folder", "prepare.path=/nowhere")
    assert done.returncode == 3
    assert done.stderr.startswith("error: `prepare.path` '/nowhere' is no folder")
    assert finished.outputs() == before
    assert (finished.root / "params.yaml").read_text() == params


def test_an_unknown_override_is_refused(finished):
    done = finished.run("slad", "repro", "distill.rnak=4")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "rnak" in done.stderr


def test_experiments_compose_run_and_are_recorded(finished):
    git = finished.run("git", "commit", "-qam", "finished")
    assert git.returncode == 0, git.stderr
    done = finished.run("dvc", "exp", "run", "-n", "small", "-S", "experiment=quick", "-S", "distill.rank=4")
    assert done.returncode == 0, done.stdout + done.stderr
    shown = finished.run("dvc", "exp", "show", "--json")
    text = json.dumps(json.loads(shown.stdout))
    assert '"rank": 4' in text
    assert '"small"' in text
    record = json.loads((finished.root / "reports/cpu-openvino.json").read_text())
    assert record["variants"]["int8"]["accuracy"]["count"] == 450


def test_the_frozen_foundation_can_be_rebuilt(finished):
    small = {"epochs": 1, "warmup_epochs": 0}
    pair = "foundations.grey32"
    schedules = [
        f"{pair}.{role}.schedule.{key}={value}" for role in ("teacher", "student") for key, value in small.items()
    ]
    sizes = [f"{pair}.{key}={value}" for key, value in (("classes", 64), ("instances", 2), ("batch_size", 64))]
    assert finished.run("slad", "sync", *sizes, *schedules).returncode == 0
    weights = finished.root / "artifacts/foundation/grey32/student.safetensors"
    other = finished.root / "artifacts/foundation/rgb64/student.safetensors"
    before, untouched = weights.read_bytes(), other.read_bytes() if other.is_file() else None
    done = finished.run("make", "-o", "setup", "foundation", "PAIR=grey32", f"BIN={BIN}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert weights.read_bytes() != before
    assert untouched is None or other.read_bytes() == untouched
    assert "frozen: true" in (finished.root / "dvc.yaml").read_text()
    locked = (finished.root / "dvc.lock").read_text()
    assert "foundation@grey32" in locked
    status = finished.run("dvc", "status", "foundation@grey32")
    assert "up to date" in status.stdout, status.stdout + status.stderr
