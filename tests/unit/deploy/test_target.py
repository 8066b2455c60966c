import pytest

from deploy.errors import TargetError
from deploy.target import Target, Variant, read_target

SPEC = {"runtime": "openvino", "threads": 2, "variants": {"fp32": {"onnx": "fp32", "precision": "fp32"}}}


def test_target_is_read():
    assert read_target("cpu", SPEC) == Target("cpu", "openvino", 2, (Variant("fp32", "fp32", "fp32"),))
    assert read_target("cpu", {key: value for key, value in SPEC.items() if key != "threads"}).threads == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thread": 1}, "`targets.cpu.thread` is unknown; known keys: runtime, threads, variants"),
        ({"runtime": "tflite"}, "`targets.cpu.runtime` 'tflite' is unknown; known ones: onnxruntime, openvino"),
        ({"threads": -1}, "`targets.cpu.threads` should be an integer of 0 .* got -1"),
        ({"threads": True}, "got True"),
        ({"variants": {}}, "`targets.cpu.variants` should name at least one variant"),
        ({"variants": {"v": None}}, "`targets.cpu.variants.v` should hold onnx, precision, got None"),
        ({"variants": {"../v": {}}}, r"`targets.cpu.variants.\.\./v` should be a plain name"),
        (
            {"variants": {"v": {"onnx": "fp32", "precision": "fp32", "batch": 8}}},
            "`targets.cpu.variants.v.batch` is unk",
        ),
        ({"variants": {"v": {"batch": 8}}}, "v.batch` is unknown; `.*v.onnx` is missing; `.*v.precision` is missing"),
        ({"variants": {"v": {"onnx": "../x", "precision": "fp32"}}}, r"v.onnx` should be a plain name .*'\.\./x'"),
        (
            {"variants": {"v": {"onnx": "x", "precision": "fp64"}}},
            "v.precision` should be one of fp32, bf16, fp16, int8, int8_bf16",
        ),
    ],
)
def test_fault_is_named_by_its_dotted_key(changes, message):
    with pytest.raises(TargetError, match=message) as caught:
        read_target("cpu", {**SPEC, **changes})
    assert caught.value.exit_code == 2
