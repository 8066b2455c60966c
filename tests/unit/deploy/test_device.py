import json
import os

import pytest

from deploy import device as module
from deploy import nvidia
from deploy.device import check_device, differences, fingerprint, read_fingerprint
from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.target import Target, read_options

ORT = Target(name="t", runtime="onnxruntime", options=read_options("onnxruntime", {}, place="o"))
X86 = """processor\t: 0
model name\t: Intel(R) Xeon(R) Processor
cpu MHz\t\t: 2599.990
flags\t\t: fpu vme avx2 avx512_vnni amx_bf16 made_up
"""
ARM = """processor\t: 0
Features\t: fp asimd asimddp made_up
CPU implementer\t: 0x41
CPU part\t: 0xd42
"""


@pytest.fixture
def system(tmp_path, monkeypatch):
    """A system whose files a test writes itself; at first it has none."""
    for name in ("CPUINFO", "MEMINFO", "MACHINE_ID"):
        monkeypatch.setattr(module, name, tmp_path / name)
    for name in ("TEGRA_RELEASE", "DEVICE_TREE_MODEL"):
        monkeypatch.setattr(nvidia, name, tmp_path / name)
    return tmp_path


def test_fingerprint_has_exactly_the_contracts_keys(device, runtime):
    assert list(device) == [
        "schema", "target", "runtime", "runtime_version", "place", "machine_id", "architecture", "system", "cpu",
        "memory_gb", "l4t", "python", "bf16",
    ]  # fmt: skip
    assert set(device["cpu"]) == {"model", "cores", "features"}
    assert (device["schema"], device["target"], device["runtime"]) == (1, "here", runtime)
    assert device["runtime_version"][0].isdigit()
    assert fingerprint(Target(name="here", runtime=runtime, options=read_options(runtime, {}, place="o"))) == device
    assert json.loads(json.dumps(device)) == device


def test_x86(system):
    (system / "CPUINFO").write_text(X86)
    (system / "MEMINFO").write_text("MemTotal:       24117248 kB\n")
    (system / "MACHINE_ID").write_text("abc\n")
    found = fingerprint(ORT)
    assert found["cpu"]["model"] == "Intel(R) Xeon(R) Processor"
    assert found["cpu"]["features"] == ["amx_bf16", "avx2", "avx512_vnni"]
    assert (found["memory_gb"], found["bf16"], found["l4t"]) == (23, True, None)
    assert len(found["machine_id"]) == 16
    assert int(found["machine_id"], 16)
    assert "abc" not in found["machine_id"]


def test_arm_board(system):
    (system / "CPUINFO").write_text(ARM)
    assert fingerprint(ORT)["cpu"]["model"] == "Arm Cortex-A78AE"
    (system / "DEVICE_TREE_MODEL").write_bytes(b"NVIDIA Jetson Orin Nano\0")
    (system / "TEGRA_RELEASE").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n")
    found = fingerprint(ORT)
    assert found["cpu"]["model"] == "NVIDIA Jetson Orin Nano"
    assert found["cpu"]["features"] == ["asimd", "asimddp"]
    assert (found["l4t"], found["bf16"]) == ("36.4.3", False)


def test_system_without_any_of_the_files(system):
    found = fingerprint(ORT)
    assert (found["machine_id"], found["memory_gb"], found["l4t"], found["bf16"]) == (None, None, None, False)
    assert found["cpu"]["model"]
    assert found["cpu"]["features"] == []


def test_differences_are_phrases_and_leave_out_the_target():
    here = {"target": "a", "cpu": {"model": "X", "cores": 2}, "l4t": None, "python": "3.11"}
    there = {"target": "b", "cpu": {"model": "Y", "cores": 2}, "l4t": None, "extra": 1}
    assert differences(here, there) == [
        "cpu.model 'X' here, 'Y' in the manifest",
        "python '3.11' here, None in the manifest",
        "extra None here, 1 in the manifest",
    ]
    assert differences(here, {**here, "target": "c"}) == []


def test_check_device_refuses_another_machine(device, runtime):
    check_device(device, target=Target(name="here", runtime=runtime, options=read_options(runtime, {}, place="o")))
    other = {**device, "machine_id": "0" * 16, "l4t": "36.4", "python": "3.10.0", "memory_gb": 1}
    with pytest.raises(EngineError, match=r"machine_id .* and 1 more; run `dvc repro probe@here`"):
        check_device(other, target=Target(name="here", runtime=runtime, options=read_options(runtime, {}, place="o")))


def test_fingerprint_file(device, tmp_path):
    (tmp_path / "d.json").write_text(json.dumps(device))
    assert read_fingerprint(tmp_path / "d.json") == device
    (tmp_path / "d.json").write_text('{"schema": 1}')
    with pytest.raises(EngineError, match=r"key `target` is missing; .*probe@"):
        read_fingerprint(tmp_path / "d.json")


def test_unknown_and_missing_runtime(monkeypatch):
    with pytest.raises(TargetError, match="'tflite' is unknown; known ones: .*onnxruntime, openvino"):
        fingerprint(Target(name="t", runtime="tflite"))
    monkeypatch.setitem(os.sys.modules, "onnxruntime", None)
    with pytest.raises(RuntimeMissingError):
        fingerprint(ORT)
