"""The real `dvc` and `slad` in a fresh repository: what runs, what does not, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
TARGETS = ("cpu-openvino", "cpu-onnxruntime")

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Clone:
    """A repository with the working tree's files, committed."""

    root: Path

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of this environment in the clone."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
        environment["PATH"] = f"{BIN}{os.pathsep}{environment['PATH']}"
        return subprocess.run(
            command, cwd=self.root, env=environment, capture_output=True, text=True, check=False, timeout=600
        )

    def ran(self, *command: str) -> list[str]:
        """Runs a command that must succeed, and returns the stages that it ran."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]

    def outputs(self) -> dict[str, bytes]:
        """Every output by path."""
        files = [*self.root.glob("artifacts/**/*"), *self.root.glob("reports/*")]
        return {str(file.relative_to(self.root)): file.read_bytes() for file in files if file.is_file()}


@pytest.fixture(scope="module")
def clone(tmp_path_factory) -> Clone:
    root = tmp_path_factory.mktemp("clone")
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    for key, value in (("user.name", "test"), ("user.email", "test@example.com")):
        subprocess.run(["git", "config", key, value], cwd=root, check=True)
    return Clone(root)


@pytest.fixture(scope="module")
def finished(clone) -> Clone:
    """The clone after `slad repro` of the quick experiment."""
    done = clone.run("slad", "repro", "experiment=quick")
    assert done.returncode == 0, done.stdout + done.stderr
    (clone.root / "printed.txt").write_text(done.stdout)
    return clone


def test_repro_ends_with_the_table_and_the_report(finished):
    lines = (finished.root / "printed.txt").read_text().splitlines()
    table = lines[max(place for place, line in enumerate(lines) if line.startswith("target ")) :]
    for target, variant in (("cpu-openvino", "int8"), ("cpu-onnxruntime", "fp32")):
        assert any(target in line for line in table)
        assert any(variant in line and " ms" in line and " %" in line for line in table)
    assert "<html" in (finished.root / "reports/report.html").read_text()


def test_a_second_repro_runs_nothing_and_the_status_is_clean(finished):
    assert finished.ran("dvc", "repro") == []
    assert "up to date" in finished.run("dvc", "status").stdout


def test_overrides_stay_until_reset(finished):
    assert finished.ran("slad", "repro") == []
    assert "experiment=quick" in (finished.root / "params.yaml").read_text()


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("report.max_drop_points=1.5", ["guard", "report"]),
        ("measure.queries=65", ["guard", *(f"measure@{target}" for target in TARGETS), "report"]),
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
