"""Targets as people write them: every file of configs/target/ composes, and what no device could build is refused."""

import functools
from pathlib import Path

import pytest
import yaml

from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.runtimes import RUNTIMES
from pipeline.base.compose import compose_params, to_yaml
from pipeline.base.params import Params, validate
from pipeline.base.sections import TargetParams
from stages.devices import check_devices
from stages.targets import check_targets

CONFIGS = Path("configs")
FILES = sorted(file.stem for file in (CONFIGS / "target").glob("*.yaml"))


@functools.cache
def composed(*overrides: str) -> Params:
    text = to_yaml(compose_params(CONFIGS, ["experiment=tensorrt", *overrides]))
    return validate(yaml.safe_load(text), Params, source="configs/")


@pytest.mark.parametrize("name", FILES)
def test_every_target_can_be_chosen(name):
    check_targets(composed(f"+target@targets.mine={name}", "export.program=true"))


def test_every_runtime_has_a_target():
    chosen = [composed(f"+target@targets.mine={name}", "export.program=true").targets["mine"] for name in FILES]
    assert {target.runtime for target in chosen} == set(RUNTIMES)


CPU = "targets.cpu-openvino"
FAULTS = {
    f"+{CPU}.options={{devcie: GPU}}": r"`targets.cpu-openvino.options.devcie` is unknown; known keys: device, perf",
    f"{CPU}.host=-oProxyCommand": "`targets.cpu-openvino.host` should be a name that ssh takes, such as user@jetson, g",
    f"{CPU}.runtime=tflite": "`targets.cpu-openvino.runtime` 'tflite' is unknown; known ones: onnxruntime, openvino",
    f"{CPU}.variants.int8.precision=fp64": "`targets.cpu-openvino.variants.int8.precision` should be one of fp32",
    f"{CPU}.variants.int8.precision=bf16": "which openvino makes of a file in fp32, but 'int8' is in int8",
    f"{CPU}.variants.int8.onnx=int8_fp16": "makes of a file in int8, but 'int8_fp16' is in int8_fp16; name another",
    f"+{CPU}.budget={{latency_ms: 3}}": "`targets.cpu-openvino.budget` should give latency_ms and percentile",
    "+target@targets.gpu=x86-nvidia-torch-tensorrt": "compiles the exported program, but `export.program` is false",
}


@pytest.mark.parametrize("override", FAULTS)
def test_what_no_device_could_build_is_refused_before_anything_runs(override):
    with pytest.raises(TargetError, match=FAULTS[override]) as caught:
        check_targets(composed(override))
    assert "\n" not in str(caught.value)


def test_faults_of_all_targets_are_named_at_once():
    with pytest.raises(TargetError, match=r"targets\.cpu-openvino\.host.*; `targets\.cpu-onnxruntime\.options\.x`"):
        check_targets(composed(f"{CPU}.host=-v", "+targets.cpu-onnxruntime.options={x: 1}"))


ABSENT = TargetParams(
    runtime="openvino", options={"device": "GPU.9"}, variants={"fp32": {"onnx": "fp32", "precision": "fp32"}}
)


def test_targets_that_cannot_run_here_are_refused_before_anything_runs():
    here = composed().targets
    check_devices(here)
    with pytest.raises(EngineError, match=r"^nothing was run: target 'x': OpenVINO's device GPU\.9 does not") as caught:
        check_devices({**here, "x": ABSENT})
    assert "\n" not in str(caught.value)
    assert "target 'cpu-openvino'" not in str(caught.value)


@pytest.mark.parametrize("others", [{}, {"x": ABSENT}])
def test_a_runtime_that_is_missing_has_its_own_code(monkeypatch, others):
    missing = {"error": "runtime 'tensorrt' is not installed", "missing": True}
    absent = {name: {"error": "no GPU", "missing": False} for name in others}
    monkeypatch.setattr("stages.devices.unfit", lambda specs: {"gpu": missing, **absent})
    with pytest.raises(EngineError if others else RuntimeMissingError, match="target 'gpu': runtime 'tensorrt' is not"):
        check_devices({"gpu": ABSENT, **others})
