import pytest

from deploy.errors import TargetError
from deploy.runtime import Settings
from deploy.target import Target, Variant, read_target

SPEC = {"runtime": "openvino", "threads": 2, "variants": {"fp32": {"onnx": "fp32", "precision": "fp32"}}}


def test_target_is_read():
    options = {"device": "CPU", "performance_hint": "LATENCY"}
    variants = (Variant("fp32", "fp32", "fp32"),)
    assert read_target("cpu", SPEC) == Target(
        name="cpu", runtime="openvino", threads=2, options=options, variants=variants
    )
    least = read_target("cpu", {"runtime": "openvino", "variants": SPEC["variants"]})
    assert (least.threads, least.allow_fallback, least.build_limit_s, least.power_mode) == (0, False, 3600, None)
    budget = {"latency_ms": 2, "percentile": 90, "accuracy_drop": 0.5, "size_mb": 3, "memory_mb": 4, "energy_mj": 5}
    full = {"host": "user@jetson", "options": {"device": "GPU.1"}, "allow_fallback": True, "build_limit_s": 60}
    full |= {"power_mode": "MAXN", "budget": budget}
    target = read_target("gpu", {**SPEC, **full})
    assert (target.host, target.options["device"], target.allow_fallback) == ("user@jetson", "GPU.1", True)
    assert (target.build_limit_s, target.power_mode, target.budget) == (60, "MAXN", budget)
    assert target.settings("int8") == Settings(precision="int8", threads=2, options=target.options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thread": 1}, "`targets.cpu.thread` is unknown; known keys: runtime, host, options,"),
        ({"runtime": "tflite"}, "`targets.cpu.runtime` 'tflite' is unknown; known ones: .*onnxruntime, openvino"),
        ({"threads": -1}, "`targets.cpu.threads` should be an integer of 0 .* got -1"),
        ({"threads": True}, "got True"),
        (
            {"runtime": "tensorrt", "threads": 2},
            "`targets.cpu.threads` 2 has no effect with runtime 'tensorrt'; take it out",
        ),
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
            "v.precision` should be one of fp32, bf16, fp16, int8, int8_bf16, int8_fp16, got 'fp64'",
        ),
        (
            {"options": {"devcie": "GPU"}},
            "`targets.cpu.options.devcie` is unknown; known keys: device, performance_hint",
        ),
        (
            {"options": {"device": "AUTO"}},
            r"`targets.cpu.options.device` \(.*: CPU, GPU, GPU.1, NPU\) should be like CPU, got 'AUTO'",
        ),
        ({"options": {"performance_hint": "fast"}}, "should be one of LATENCY, THROUGHPUT, got 'fast'"),
        ({"options": ["GPU"]}, "`targets.cpu.options` should hold device, performance_hint, got"),
        ({"options": 0}, "`targets.cpu.options` should hold device, performance_hint, got 0"),
        ({"options": {"device": "GPU.\u0663"}}, "should be like CPU, got"),
        ({"variants": {"skipped.json": {}}}, "`targets.cpu.variants.skipped.json` should not end with .json"),
        ({"variants": {"v" * 65: {}}}, "should be a plain name of at most 64 letters"),
        ({"budget": {"latency_ms": 1, "percentile": 90.0}}, "percentile .50, 90 or 99. together"),
        ({"host": ""}, "`targets.cpu.host` should be a text or absent, got ''"),
        ({"build_limit_s": 0}, "`targets.cpu.build_limit_s` should be an integer of 1 or more, got 0"),
        ({"allow_fallback": 1}, "`targets.cpu.allow_fallback` should be true or false, got 1"),
        ({"power_mode": 2}, "`targets.cpu.power_mode` should be a text or absent, got 2"),
        ({"budget": {"latency": 1}}, "`targets.cpu.budget.latency` is unknown; known keys: latency_ms, percentile"),
        ({"budget": {"latency_ms": 1}}, "should give latency_ms and percentile .* together, got {'latency_ms': 1}"),
        ({"budget": {"latency_ms": 1, "percentile": 95}}, "percentile .50, 90 or 99. together"),
        ({"budget": {"size_mb": -1}}, r"`targets.cpu.budget.size_mb` \(.*\) should be a number of 0 or more, got -1"),
    ],
)
def test_fault_is_named_by_its_dotted_key(changes, message):
    with pytest.raises(TargetError, match=message) as caught:
        read_target("cpu", {**SPEC, **changes})
    assert caught.value.exit_code == 2


def test_integer_option():
    spec = {"runtime": "onnxruntime", "variants": SPEC["variants"]}
    chosen = {"provider": "cuda", "device": 1}
    assert read_target("gpu", {**spec, "options": chosen}).options["device"] == 1
    with pytest.raises(TargetError, match=r"`targets.gpu.options.device` should be an integer of 0 .* got '0'"):
        read_target("gpu", {**spec, "options": {**chosen, "device": "0"}})
    with pytest.raises(TargetError, match="`targets.gpu.options.device` 1 has no effect with `provider` 'cpu'; "):
        read_target("gpu", {**spec, "options": {"device": 1}})
