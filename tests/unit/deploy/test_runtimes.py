"""One matrix: every behaviour holds for every runtime."""

import subprocess
import sys

import numpy as np
import onnx
import pytest

from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.runtimes import RUNTIMES, get_runtime

TOLERANCE = {"fp32": 1e-5, "bf16": 0.05, "int8": 0.05}


@pytest.fixture
def inputs() -> np.ndarray:
    return np.random.default_rng(5).normal(size=(6, 3, 16, 16)).astype(np.float32)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("threads", [0, 1])
def test_loaded_engine_answers_as_the_model_does(plant, runtime, precision, threads, inputs, onnx_reference, tmp_path):
    module = get_runtime(runtime)
    reason = module.supports(precision)
    if reason:
        pytest.skip(reason)
    model = plant.onnx_root / ("int8" if precision == "int8" else "fp32") / "model.onnx"
    expected = onnx_reference(model, inputs)
    path = tmp_path / module.ENGINE_FILE
    options = module.build(model, path, precision=precision, threads=threads)
    model.unlink()
    engine = module.load(path, precision=precision, threads=threads)
    outputs = [engine(image[None]) for image in inputs]
    assert options["threads"] == threads
    assert {(output.shape, output.dtype) for output in outputs} == {((1, 4), np.dtype(np.float32))}
    assert np.abs(np.concatenate(outputs) - expected).max() <= TOLERANCE[precision] * np.abs(expected).max()


def load_fp32(plant, runtime, tmp_path):
    module = get_runtime(runtime)
    path = tmp_path / module.ENGINE_FILE
    module.build(plant.onnx_root / "fp32" / "model.onnx", path, precision="fp32", threads=1)
    return module.load(path, precision="fp32", threads=1)


def test_each_query_returns_a_fresh_array_and_keeps_its_input(plant, runtime, inputs, tmp_path):
    engine = load_fp32(plant, runtime, tmp_path)
    image = inputs[0][None].copy()
    first = engine(image)
    kept = first.copy()
    second = engine(inputs[1][None])
    np.testing.assert_array_equal(first, kept)
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(image, inputs[0][None])
    first[...] = 0
    np.testing.assert_array_equal(engine(image), kept)


def test_read_only_and_strided_inputs_are_fine(plant, runtime, inputs, tmp_path):
    engine = load_fp32(plant, runtime, tmp_path)
    expected = engine(inputs[0][None])
    strided = np.ascontiguousarray(inputs[0].transpose(1, 2, 0)).transpose(2, 0, 1)[None]
    strided.flags.writeable = False
    np.testing.assert_array_equal(engine(strided), expected)


def test_input_of_another_shape_is_an_engine_error(plant, runtime, tmp_path):
    engine = load_fp32(plant, runtime, tmp_path)
    with pytest.raises(EngineError, match="prepare the input with its own bundle") as caught:
        engine(np.zeros((1, 3, 8, 8), np.float32))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"junk", b"\0" * 4096])
def test_what_is_no_engine_is_refused_in_one_line(runtime, tmp_path, content):
    path = tmp_path / "engine"
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"cannot load it .*; build it again with `dvc repro") as caught:
        get_runtime(runtime).load(path, precision="fp32", threads=1)
    assert "\n" not in str(caught.value)


def test_what_is_no_model_is_refused_in_one_line(runtime, tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"junk")
    with pytest.raises(EngineError, match=r"model\.onnx: .* cannot (build|compile) it") as caught:
        get_runtime(runtime).build(tmp_path / "model.onnx", tmp_path / "e", precision="fp32", threads=1)
    assert "\n" not in str(caught.value)


def test_runtime_that_is_not_installed(runtime, monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, runtime, None)
    module = get_runtime(runtime)
    calls = (
        module.version,
        lambda: module.supports("bf16"),
        lambda: module.build(tmp_path, tmp_path, precision="fp32", threads=0),
        lambda: module.load(tmp_path, precision="fp32", threads=0),
    )
    for call in calls:
        with pytest.raises(RuntimeMissingError, match=rf"pip install 'slad-edge\[{runtime}\]'") as caught:
            call()
        assert caught.value.exit_code == 8


def test_every_named_runtime_exists_and_no_other():
    for name in RUNTIMES:
        assert get_runtime(name).ENGINE_FILE.startswith("engine.")
    with pytest.raises(TargetError, match="runtime 'tensorrt9' is unknown; known ones: onnxruntime, openvino"):
        get_runtime("tensorrt9")


def test_fp32_and_int8_are_always_supported(runtime):
    assert get_runtime(runtime).supports("fp32") is None
    assert get_runtime(runtime).supports("int8") is None


def test_bf16_support_is_what_the_device_says(monkeypatch):
    import openvino

    for capabilities, supported in ((["FP32", "INT8"], False), (["FP32", "BF16"], True)):
        monkeypatch.setattr(openvino.Core, "get_property", lambda *_, found=capabilities: found)
        assert (get_runtime("openvino").supports("bf16") is None) == supported
    assert "no bf16 kernels" in get_runtime("onnxruntime").supports("bf16")


def test_onnxruntime_engine_is_fused(plant, tmp_path):
    module = get_runtime("onnxruntime")
    kinds = {}
    for name in ("fp32", "int8"):
        module.build(plant.onnx_root / name / "model.onnx", tmp_path / name, precision=name, threads=1)
        kinds[name] = [node.op_type for node in onnx.load(tmp_path / name).graph.node]
    assert "Relu" not in kinds["fp32"]
    assert "QGemm" in kinds["int8"]
    assert "Gemm" not in kinds["int8"]


def test_openvino_fp32_engine_computes_in_fp32(plant, inputs, onnx_reference, tmp_path):
    """Its blob forgets the precision: imported without the hint it computes in bf16 where the CPU can."""
    engine = load_fp32(plant, "openvino", tmp_path)
    expected = onnx_reference(plant.onnx_root / "fp32" / "model.onnx", inputs)
    actual = np.concatenate([engine(image[None]) for image in inputs])
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
