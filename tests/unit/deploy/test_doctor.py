"""What the doctor makes of facts and trials, in values, words and exit codes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import doctor
from deploy.__main__ import main
from deploy.doctor import check_targets, examine
from deploy.doctor_text import to_text
from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.system import facts

ROOT = Path(__file__).parents[3]
MISSING = {"error": "runtime 'openvino' is not installed; run `pip install x`", "missing": True}


@pytest.fixture
def ask(monkeypatch, tmp_path):
    """Examines a machine with facts that a test changes, and without processes: a target's name says what it gets."""
    found = facts([tmp_path])
    found["state"] |= {"load_average": 0.1, "power_mode": "MODE_15W"}
    found["memory"] |= {"available_mb": 4096, "limit_mb": None}
    found["disks"] = [{"free_gb": 50.0, "for": ["artifacts"]}]
    found |= {"packages": {"numpy": "2.4.6", "onnxruntime": "1.31.1"}, "other_accelerators": []}
    answers = {
        "good": {"value": {"place": {"device": "CPU"}, "variants": {"fp32": None, "int8": None}}},
        "part": {"value": {"place": {"device": "CPU"}, "variants": {"fp32": None, "int8": "no native int8"}}},
        "none": {"value": {"place": {"device": "CPU"}, "variants": {"fp32": "no fp32", "int8": "no native int8"}}},
        "refused": {"error": "no such device; choose another", "missing": False},
        "missing": MISSING,
    }

    def trial(runtime, specs, *, limit_s):
        places = {"value": {"CPU": None, "GPU": "libOpenCL.so.1: cannot open shared object file"}}
        absent = runtime == "openvino"
        return {
            "version": MISSING if absent else {"value": "1.31.1"},
            "places": MISSING if absent else places,
            "targets": {name: answers[name] for name in specs},
        }

    monkeypatch.setattr(doctor, "facts", lambda folders: found)
    monkeypatch.setattr(doctor, "try_runtime", trial)

    def examined(**targets):
        return examine(targets, folders=[])

    examined.facts = found
    return examined


def spec(**more):
    variants = {name: {"onnx": name, "precision": name} for name in ("fp32", "int8")}
    return {"runtime": "onnxruntime", "variants": variants} | more


def lines(report):
    """The text without its alignment."""
    return [" ".join(line.split()) for line in to_text(report).splitlines()]


def test_targets_that_work_and_their_skipped_variants(ask):
    report = ask(good=spec(), part=spec(options={"provider": "tensorrt", "workspace_mb": 512}))
    assert {name: each["verdict"] for name, each in report["targets"].items()} == {
        "good": "will work",
        "part": "will work",
    }
    check_targets(report["targets"])
    said = lines(report)
    assert "verdict will work" in said
    assert "runtime onnxruntime, provider tensorrt, workspace_mb 512" in said
    assert "verdict will work, without int8" in said
    assert "int8 skipped: no native int8" in said
    assert "GPU does not run here: libOpenCL.so.1: cannot open shared object file" in said
    assert "missing runtime 'openvino' is not installed; run `pip install x`" in said
    assert report["warnings"] == []
    assert json.loads(json.dumps(report)) == report


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("refused", EngineError, "target 'refused' will not work .*: no such device; choose another"),
        ("none", EngineError, "no variant can run here; add one .* configs/target/none.yaml"),
        ("missing", RuntimeMissingError, "runtime 'openvino' is not installed; run"),
    ],
)
def test_a_target_that_will_not_work_says_why(ask, name, error, words):
    report = ask(good=spec(), **{name: spec()})
    assert any(line.startswith("verdict will not work: ") for line in lines(report))
    with pytest.raises(error, match=words):
        check_targets(report["targets"])


def test_a_fault_that_no_installation_mends_decides_the_code(ask):
    with pytest.raises(EngineError, match="2 of 3 targets .*: missing, refused; the report says why"):
        check_targets(ask(good=spec(), missing=spec(), refused=spec(options={"provider": "cuda"}))["targets"])


def test_the_power_mode_that_a_target_wants(ask):
    check_targets(ask(good=spec(conditions={"power_mode": "MODE_15W"}))["targets"])
    report = ask(good=spec(conditions={"power_mode": "MAXN_SUPER"}))
    assert "power mode MODE_15W, MAXN_SUPER is wanted" in lines(report)
    with pytest.raises(EngineError, match=r"the power mode is 'MODE_15W', and only in 'MAXN_SUPER' .* nvpmodel"):
        check_targets(report["targets"])


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"packages": {"onnxruntime": "1.31.1", "onnxruntime-gpu": "1.30.0"}},
            "onnxruntime and onnxruntime-gpu are installed over one another",
        ),
        (
            {"disks": [{"free_gb": 1.9, "for": ["artifacts", "/tmp"]}]},
            "only 1.9 GB of disk are free for artifacts, /tmp",
        ),
        ({"memory": {"total_mb": 8000, "available_mb": 900, "limit_mb": None}}, "only 900 MB of memory"),
        ({"memory": {"total_mb": 8000, "available_mb": 4000, "limit_mb": 512}}, "only 512 MB of memory"),
        ({"state": {"load_average": 99.0, "power_mode": None}}, "the machine is busy, load average 99.0 on"),
        (
            {"other_accelerators": [{"device": "/dev/dri/renderD128", "vendor": "Intel", "may_open": False}]},
            "/dev/dri/renderD128 (Intel) is closed to this account",
        ),
    ],
    ids=["wheels", "disk", "memory", "limit", "load", "permission"],
)
def test_warnings(ask, changes, words):
    for section, values in changes.items():
        ask.facts[section] = {**ask.facts[section], **values} if section in {"state", "memory"} else values
    report = ask(good=spec())
    assert len(report["warnings"]) == 1
    assert report["warnings"][0].startswith(words)
    assert f"1 {report['warnings'][0]}" in lines(report)


def test_a_wrong_section_is_told_before_anything_is_tried(ask):
    with pytest.raises(TargetError, match=r"`targets.good.runtime` 'tflite' is unknown"):
        ask(good=spec(runtime="tflite"))


def test_the_command_on_a_device(tmp_path, capsys):
    file = tmp_path / "spec.json"
    file.write_text(json.dumps(spec(host="user@this-machine")))
    assert main(["doctor", "--target", "here", "--spec", str(file)]) == 0
    assert "Target here\n  runtime  onnxruntime" in capsys.readouterr().out
    file.write_text(json.dumps(spec(options={"provider": "openvino"})))
    assert main(["doctor", "--target", "here", "--spec", str(file), "--json"]) == 7
    printed = capsys.readouterr()
    assert json.loads(printed.out)["targets"]["here"]["verdict"] == "will not work"
    assert "OpenVINOExecutionProvider does not run here" in printed.err.splitlines()[-1]
    assert main(["doctor", "--target", "here"]) == 2


def test_no_runtime_is_imported_by_the_doctor_itself():
    code = (
        "import sys; from deploy.__main__ import main; main(['doctor', '--json']); "
        "sys.exit(str({'torch', 'onnxruntime', 'openvino', 'tensorrt'} & set(sys.modules) or ''))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stderr.splitlines()[1:] in ([], [""])
    assert json.loads(done.stdout)["targets"] == {}
