import pytest

from deploy.errors import TargetError
from deploy.runtime import Settings
from deploy.target import Conditions, Install, Target, Variant, read_target

SPEC = {"runtime": "openvino", "threads": 2, "variants": {"fp32": {"onnx": "fp32", "precision": "fp32"}}}


def test_target_is_read():
    options = {"device": "CPU", "performance_hint": "LATENCY"}
    variants = (Variant("fp32", "fp32", "fp32"),)
    assert read_target("cpu", SPEC) == Target(
        name="cpu", runtime="openvino", threads=2, options=options, variants=variants
    )
    least = read_target("cpu", {"runtime": "openvino", "variants": SPEC["variants"]})
    assert (least.threads, least.allow_fallback, least.build_limit_s, least.conditions) == (
        0,
        False,
        3600,
        Conditions(),
    )
    budget = {"latency_ms": 2, "percentile": 90, "accuracy_drop": 0.5, "size_mb": 3, "memory_mb": 4, "energy_mj": 5}
    full = {"host": "user@jetson", "options": {"device": "GPU.1"}, "allow_fallback": True, "build_limit_s": 60}
    conditions = {"power_mode": "MAXN", "load": 0.5, "temperature_c": 80}
    full |= {"conditions": conditions, "budget": budget}
    target = read_target("gpu", {**SPEC, **full})
    assert (target.host, target.options["device"], target.allow_fallback) == ("user@jetson", "GPU.1", True)
    assert (target.build_limit_s, target.conditions, target.budget) == (60, Conditions(**conditions), budget)
    assert target.settings("int8") == Settings(precision="int8", threads=2, options=target.options)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"thread": 1}, "`targets.cpu.thread` is unknown; known keys: runtime, host, install, options,"),
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
        ({"host": 3}, "`targets.cpu.host` should be a text or absent, got 3"),
        ({"install": ["a"]}, "`targets.cpu.install` should hold folder, python, .*, keep, got"),
        ({"install": {"dir": "a"}}, "`targets.cpu.install.dir` is unknown; known keys: folder, python,"),
        ({"install": {"folder": ""}}, "`targets.cpu.install.folder` should be a text or absent, got ''"),
        ({"install": {"folder": "~/slad"}}, "install.folder` should be a folder, below the home there or absolute, wi"),
        (
            {"install": {"python": "~/py310/bin/python"}},
            "install.python` should be a command, or a path from / on",
        ),
        ({"install": {"folder": "a/../../b"}}, "install.folder` should be a folder, .* got 'a/../../b'"),
        ({"install": {"folder": "a b"}}, "install.folder` should be a folder, .*, without blanks, got 'a b'"),
        ({"install": {"folder": "/"}}, "install.folder` should be a folder"),
        ({"install": {"python": 3.11}}, "`targets.cpu.install.python` should be a text or absent, got 3.11"),
        ({"install": {"system_site_packages": "yes"}}, "system_site_packages` should be true or false, got 'yes'"),
        ({"install": {"packages": "numpy"}}, "packages` should be a list of requirements such as 'onnx.*, got 'numpy'"),
        ({"install": {"packages": ["--pre"]}}, r"install.packages` should be a list of .*, got \['--pre'\]"),
        ({"install": {"packages": [1]}}, r"install.packages` should be a list of .*, got \[1\]"),
        ({"install": {"packages": [""]}}, r"install.packages` should be a list of .*, got \[''\]"),
        ({"install": {"wheels": ["a"]}}, "`targets.cpu.install.wheels` should be a text or absent, got"),
        ({"install": {"architecture": 64}}, "`targets.cpu.install.architecture` should be a text or absent, got 64"),
        ({"install": {"disk_mb": -1}}, "`targets.cpu.install.disk_mb` should be an integer of 0 or more, got -1"),
        ({"install": {"memory_mb": 0.5}}, "install.memory_mb` should be an integer of 0 or more, got 0.5"),
        ({"install": {"keep": 0}}, "`targets.cpu.install.keep` should be an integer of 1 or more, got 0"),
        ({"install": {"keep": True}}, "`targets.cpu.install.keep` should be an integer of 1 or more, got True"),
        ({"build_limit_s": 0}, "`targets.cpu.build_limit_s` should be an integer of 1 or more, got 0"),
        ({"allow_fallback": 1}, "`targets.cpu.allow_fallback` should be true or false, got 1"),
        ({"power_mode": "MAXN"}, "`targets.cpu.power_mode` is unknown; known keys: .*conditions"),
        ({"conditions": {"mode": "MAXN"}}, "`targets.cpu.conditions.mode` is unknown; known keys: power_mode, load"),
        ({"conditions": {"power_mode": 2}}, "`targets.cpu.conditions.power_mode` should be a text or absent, got 2"),
        ({"conditions": {"load": 0}}, "`targets.cpu.conditions.load` .most load average per core. should be a number"),
        ({"conditions": {"temperature_c": "80"}}, "conditions.temperature_c` .most degrees Celsius. .* got '80'"),
        ({"conditions": {"temperature_c": True}}, "conditions.temperature_c` .* should be a number over 0 .* got True"),
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


HOSTS = ("jetson", "user@jetson.local", "10.0.0.2", "ssh://user@name:2222", "ssh://[fe80::1%eth0]:22", "user@fe80::1")


@pytest.mark.parametrize("host", HOSTS)
def test_a_host_is_whatever_ssh_takes(host):
    assert read_target("cpu", {**SPEC, "host": host}).host == host


@pytest.mark.parametrize(
    "host", ["-oProxyCommand=x", "a b", "a;b", "a\n", "$(a)", "a'b", "a|b", "@a", "größe", "\u0663"]
)
def test_a_host_that_a_shell_or_ssh_would_take_for_more_is_refused(host):
    with pytest.raises(
        TargetError, match="`targets.cpu.host` should be a name that ssh takes, such as user@jetson, got "
    ):
        read_target("cpu", {**SPEC, "host": host})


def test_how_a_target_is_installed_is_read():
    assert read_target("cpu", SPEC).install == read_target("cpu", {**SPEC, "install": None}).install == Install()
    given = {
        "folder": "/opt/slad", "python": "python3.11", "system_site_packages": True, "packages": ["numpy==2.0"],
        "wheels": "~/wheels", "architecture": "aarch64", "disk_mb": 0, "memory_mb": 1, "keep": 1,
    }  # fmt: skip
    assert read_target("cpu", {**SPEC, "install": given}).install == Install(**{**given, "packages": ("numpy==2.0",)})
    empty = dict.fromkeys(given) | {"system_site_packages": False}
    assert read_target("cpu", {**SPEC, "install": empty}).install == Install()
    assert read_target("cpu", {**SPEC, "install": {"packages": []}}).install.packages == ()
