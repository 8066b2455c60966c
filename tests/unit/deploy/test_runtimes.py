"""One matrix: every behaviour holds for every runtime."""

import json
import subprocess
import sys

import numpy as np
import onnx
import pytest

from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.runtime import Option, Settings, Source
from deploy.runtimes import RUNTIMES, get_runtime
from deploy.runtimes.onnxruntime import SMALLEST, read_profile
from deploy.runtimes.openvino import read_layers
from deploy.target import read_options

TOLERANCE = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.05}


def settings_of(runtime, precision="fp32", threads=1, **options):
    return Settings(precision=precision, threads=threads, options=read_options(runtime, options, place="options"))


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(6, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("threads", [0, 1])
def test_loaded_engine_answers_as_the_model_does(plant, runtime, precision, threads, inputs, onnx_reference, tmp_path):
    module = get_runtime(runtime)
    settings = settings_of(runtime, precision, threads)
    reason = module.supports(settings)
    if reason:
        pytest.skip(reason)
    model = plant.onnx_root / ("int8" if precision == "int8" else "fp32") / "model.onnx"
    expected = onnx_reference(model, inputs)
    path = tmp_path / module.ENGINE_FILE
    told = module.build(Source(onnx=model), path, settings)
    assert json.loads(json.dumps(told)) == told
    model.unlink()
    engine = module.load(path, settings)
    outputs = [engine.run(image[None]) for image in inputs]
    assert {(output.shape, output.dtype) for output in outputs} == {((1, 4), np.dtype(np.float32))}
    assert np.abs(np.concatenate(outputs) - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()


def load_fp32(plant, runtime, tmp_path):
    module = get_runtime(runtime)
    path = tmp_path / module.ENGINE_FILE
    settings = settings_of(runtime)
    module.build(Source(onnx=plant.onnx_root / "fp32" / "model.onnx"), path, settings)
    return module.load(path, settings)


def test_each_query_returns_a_fresh_array_and_keeps_its_input(plant, runtime, inputs, tmp_path):
    engine = load_fp32(plant, runtime, tmp_path)
    image = inputs[0][None].copy()
    first = engine.run(image)
    kept = first.copy()
    second = engine.run(inputs[1][None])
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(image, inputs[0][None])
    first[...] = 0
    np.testing.assert_array_equal(engine.run(image), kept)


def test_read_only_and_strided_inputs_are_fine(plant, runtime, inputs, tmp_path):
    engine = load_fp32(plant, runtime, tmp_path)
    expected = engine.run(inputs[0][None])
    strided = np.ascontiguousarray(inputs[0].transpose(1, 2, 0)).transpose(2, 0, 1)[None]
    strided.flags.writeable = False
    np.testing.assert_array_equal(engine.run(strided), expected)


def test_input_of_another_shape_is_an_engine_error(plant, runtime, tmp_path):
    engine = load_fp32(plant, runtime, tmp_path)
    with pytest.raises(EngineError, match="prepare the input with its own bundle") as caught:
        engine.run(np.zeros((1, 3, 8, 8), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"junk", b"\0" * 4096])
def test_what_is_no_engine_is_refused_in_one_line(runtime, tmp_path, content):
    path = tmp_path / "engine"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot load it .*; build it again with `dvc repro") as caught:
        get_runtime(runtime).load(path, settings_of(runtime))
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused_in_one_line(runtime, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(EngineError, match=r"model\.onnx: .* cannot (build|compile) it") as caught:
        get_runtime(runtime).build(Source(onnx=tmp_path / "model.onnx"), tmp_path / "e", settings_of(runtime))
    assert "\n" not in str(caught.value)


def test_runtime_that_is_not_installed(runtime, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, runtime, None)
    module = get_runtime(runtime)
    calls = (
        module.version,
        module.places,
        lambda: module.probe(settings_of(runtime).options),
        lambda: module.supports(settings_of(runtime, "bf16")),
        lambda: module.build(Source(onnx=tmp_path), tmp_path, settings_of(runtime)),
        lambda: module.load(tmp_path, settings_of(runtime)),
    )
    for call in calls:
        with pytest.raises(RuntimeMissingError, match=rf"pip install 'slad-edge\[{runtime}\]'") as caught:
            call()
        assert caught.value.exit_code == 8


def test_every_named_runtime_exists_and_no_other():
    assert {"onnxruntime", "openvino"} <= set(RUNTIMES)
    for name in RUNTIMES:
        module = get_runtime(name)
        assert module.ENGINE_FILE.startswith("engine.")
        assert module.EXPORTED_AS["fp32"] == "fp32"
        assert module.MADE_FROM in {"onnx", "program"}
        assert isinstance(module.THREADED, bool)
        assert all(isinstance(option, Option) and option.meaning for option in module.OPTIONS.values())
        for function in ("version", "places", "probe", "supports", "build", "load"):
            assert callable(getattr(module, function)), (name, function)
    with pytest.raises(TargetError, match="runtime 'tensorrt9' is unknown; known ones: .*onnxruntime, openvino"):
        get_runtime("tensorrt9")


def test_fp32_and_int8_are_always_supported(runtime):
    assert get_runtime(runtime).supports(settings_of(runtime, "fp32")) is None
    assert get_runtime(runtime).supports(settings_of(runtime, "int8")) is None


def test_bf16_support_is_what_the_device_says(monkeypatch):
    import openvino

    ask = get_runtime("openvino").supports
    for capabilities, supported in ((["FP32", "INT8"], False), (["FP32", "BF16"], True)):
        monkeypatch.setattr(openvino.Core, "get_property", lambda *_, found=capabilities: found)
        assert (ask(settings_of("openvino", "bf16")) is None) == supported
    assert "no native int8 (OpenVINO lists no INT8" in ask(settings_of("openvino", "int8_bf16"))
    assert "GPU.1 has no native fp16" in ask(settings_of("openvino", "int8_fp16", device="GPU.1"))


@pytest.mark.parametrize(
    ("provider", "precision", "reason"),
    [
        ("cpu", "bf16", "CPU provider has no bf16 kernels"),
        ("cpu", "int8_fp16", "CPU provider has no fp16 kernels"),
        ("cuda", "fp16", None),
        ("cuda", "int8_fp16", "CUDA provider has no int8_fp16 kernels"),
        ("tensorrt", "int8_fp16", None),
        ("openvino", "int8", None),
        ("openvino", "int8_bf16", "OpenVINO provider does not tell whether CPU has int8_bf16"),
    ],
)
def test_what_each_provider_of_onnxruntime_computes_in(provider, precision, reason):
    found = get_runtime("onnxruntime").supports(settings_of("onnxruntime", precision, provider=provider))
    assert (found is None) if reason is None else (reason in found)


def test_places_are_tried(runtime):
    module = get_runtime(runtime)
    found = module.places()
    assert None in found.values()
    assert all(reason is None or (reason and "\n" not in reason) for reason in found.values())
    here = module.probe(settings_of(runtime).options)
    assert found[here["device" if runtime == "openvino" else "provider"]] is None


def test_probed_device_that_is_not_there():
    with pytest.raises(
        EngineError, match=r"OpenVINO's device GPU\.9 does not run here: .*; install its driver"
    ) as caught:
        get_runtime("openvino").probe(settings_of("openvino", device="GPU.9").options)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("provider", ["cuda", "tensorrt", "openvino"])
def test_provider_that_falls_back_is_an_error(provider, plant, tmp_path):
    """ONNX Runtime says that it has CUDA where only its own library is there, and then runs on the CPU."""
    module, settings = get_runtime("onnxruntime"), settings_of("onnxruntime", provider=provider)
    name = module.PROVIDERS[provider]
    if module.places().get(name, "lacking") is None:
        pytest.skip(f"{name} runs here")
    with pytest.raises(EngineError, match=f"ONNX Runtime's {name} does not run here: ") as caught:
        module.probe(settings.options)
    assert "\n" not in str(caught.value)
    model = plant.onnx_root / "fp32" / "model.onnx"
    if provider != "openvino":  # whose engine is the model itself
        with pytest.raises(EngineError, match=rf"left {name} out of the session: |cannot build it"):
            module.build(Source(onnx=model), tmp_path / "e", settings)
    with pytest.raises(EngineError, match=rf"left {name} out of the session: |cannot load it|has no {name}"):
        module.load(model, settings)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_provider_openvino_of_onnxruntime(plant, precision, inputs, onnx_reference, tmp_path):
    """Needs onnxruntime-openvino in the place of onnxruntime."""
    module, settings = get_runtime("onnxruntime"), settings_of("onnxruntime", precision, provider="openvino")
    reason = module.places().get("OpenVINOExecutionProvider", "this build of ONNX Runtime has no OpenVINO provider")
    if reason:
        pytest.skip(reason)
    model = plant.onnx_root / module.EXPORTED_AS[precision] / "model.onnx"
    module.build(Source(onnx=model), tmp_path / "e", settings)
    expected = onnx_reference(model, inputs)
    model.unlink()
    engine = module.load(tmp_path / "e", settings)
    outputs = np.concatenate([engine.run(image[None]) for image in inputs])
    assert np.abs(outputs - expected).max() <= 0.05 * np.abs(expected).max()
    assert set(engine.placement().nodes) == {"OpenVINOExecutionProvider"}


def test_engine_runs_where_it_should(plant, runtime, tmp_path):
    placement = load_fp32(plant, runtime, tmp_path).placement()
    assert placement.asked.startswith("CPU")
    assert (set(placement.nodes), placement.strays) == ({placement.asked}, ())
    assert sum(placement.nodes.values()) == sum(placement.precisions.values()) >= 3
    assert set(placement.precisions) <= {"float", "f32"}
    assert json.loads(json.dumps(placement.as_dict()))["strays"] == {"count": 0, "first": []}


def test_nodes_of_a_profile_that_stray():
    def event(name, provider, kind):
        return {
            "cat": "Node",
            "name": f"{name}_kernel_time",
            "args": {"provider": provider, "input_type_shape": [{kind: [1]}]},
        }

    events = [
        event("a", "CUDAExecutionProvider", "float16"),
        event("b", "CPUExecutionProvider", "float"),
        {"cat": "Session", "name": "model_run", "args": {}},
        {"cat": "Node", "name": "a_fence_before", "args": {"op_name": "Conv"}},
    ]
    found = read_profile(events, asked="CUDAExecutionProvider")
    assert found.nodes == {"CUDAExecutionProvider": 1, "CPUExecutionProvider": 1}
    assert (found.precisions, found.strays) == ({"float16": 1, "float": 1}, ("b",))
    fused = read_profile(events[:1], asked="TensorrtExecutionProvider")
    assert (fused.precisions, fused.strays) == ({}, ("a",))


def test_layers_of_openvino_that_stray():
    layers = [
        {"name": "x", "layerType": "Input", "runtimePrecision": "f32"},
        {"name": "a", "layerType": "Convolution", "runtimePrecision": "i8"},
        {"name": "b", "layerType": "MVN", "runtimePrecision": "f16"},
    ]
    found = read_layers(layers, asked="GPU", ran_on=["GPU.0"])
    assert (found.nodes, found.precisions, found.strays) == ({"GPU.0": 2}, {"i8": 1, "f16": 1}, ())
    assert read_layers(layers, asked="NPU", ran_on=["CPU"]).strays == ("a", "b")


def test_device_that_tells_of_no_layer():
    """As OpenVINO's NPU, whose runtime model has an input and an output without a word on them."""
    found = read_layers([{"name": "x", "layerType": "", "runtimePrecision": ""}] * 2, asked="NPU", ran_on=["NPU"])
    assert (found.nodes, found.precisions, found.strays) == ({"NPU": 1}, {}, ())
    assert read_layers([], asked="NPU", ran_on=["CPU"]).strays == ("the whole network",)


def test_engine_that_is_gone_cannot_be_placed(plant, tmp_path):
    engine = load_fp32(plant, "onnxruntime", tmp_path)
    (tmp_path / "engine.onnx").unlink()
    with pytest.raises(EngineError, match=r"engine\.onnx: ONNX Runtime does not tell where it runs"):
        engine.placement()


def test_smallest_network_is_a_legal_one():
    onnx.checker.check_model(onnx.load_from_string(SMALLEST))


def test_onnxruntime_engine_is_fused(plant, tmp_path):
    module = get_runtime("onnxruntime")
    kinds = {}
    for name in ("fp32", "int8"):
        source = Source(onnx=plant.onnx_root / name / "model.onnx")
        module.build(source, tmp_path / name, settings_of("onnxruntime", name))
        kinds[name] = [node.op_type for node in onnx.load(tmp_path / name).graph.node]
    assert "Relu" not in kinds["fp32"]
    assert "QGemm" in kinds["int8"]
    assert "Gemm" not in kinds["int8"]


def test_openvino_fp32_engine_computes_in_fp32(plant, inputs, onnx_reference, tmp_path):
    """Its blob forgets the precision: imported without the hint it computes in bf16 where the CPU can."""
    engine = load_fp32(plant, "openvino", tmp_path)
    expected = onnx_reference(plant.onnx_root / "fp32" / "model.onnx", inputs)
    actual = np.concatenate([engine.run(image[None]) for image in inputs])
    assert np.abs(actual - expected).max() / np.abs(expected).max() < 1e-5


def test_openvino_is_imported_without_its_telemetry():
    code = (
        "import sys\n"
        "from deploy.runtimes import get_runtime\n"
        "print(get_runtime('openvino').version())\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry')]\n"
        "from openvino.tools.ovc.telemetry_utils import tm\n"
        "assert tm.__name__.endswith('telemetry_stub'), tm\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
