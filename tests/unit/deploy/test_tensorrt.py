"""The runtime `tensorrt` on a fake: TensorRT itself is not run here, nor is any GPU.

What is tested is our side: which calls are made, how every failure is told in one line, what is freed. That the fake's
classes, methods and arguments are TensorRT's and CUDA's own is checked in tests/typing.
"""

import gc
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml

from deploy import cuda, nvidia
from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.runtime import Settings, Source
from deploy.runtimes import get_runtime
from deploy.target import read_options, read_target
from deploy.trt import read_layers
from tests.unit.deploy import fake_cuda, fake_tensorrt
from tests.unit.deploy.fake_cuda import cudaError_t
from tests.unit.deploy.fake_tensorrt import BuilderFlag, DataType, DeviceType, ErrorCode, ParserError

RUNTIME = get_runtime("tensorrt")
DEFAULTS = {name: option.default for name, option in RUNTIME.OPTIONS.items()}
TRT, CUDA = fake_tensorrt.STATE, fake_cuda.STATE
IMAGE = np.linspace(-1, 1, 48, dtype=np.float32).reshape(1, 3, 4, 4)


@pytest.fixture(autouse=True, params=["10.3.0", "11.1.0.106"])
def fakes(request, monkeypatch, tmp_path):
    TRT.reset(request.param)
    CUDA.reset()
    monkeypatch.setitem(sys.modules, "tensorrt", fake_tensorrt)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", fake_cuda)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(nvidia, "gpus", lambda: (nvidia.Gpu("Fake Orin", None, None, None),))
    yield request.param
    if CUDA.memory:
        gc.collect()  # engines that the errors of a test still hold
    assert not CUDA.memory
    assert not CUDA.handles
    TRT.reset()


TARGETS = sorted((Path(__file__).parents[3] / "configs" / "target").glob("*.yaml"))


def settings(precision: str = "fp16", **options) -> Settings:
    return Settings(precision=precision, threads=0, options=DEFAULTS | options)


def build(tmp_path, **options) -> dict:
    return RUNTIME.build(Source(onnx=tmp_path / "model.onnx"), tmp_path / "engine.plan", settings(**options))


def built(tmp_path, **options):
    build(tmp_path, **options)
    return RUNTIME.load(tmp_path / "engine.plan", settings(**options))


def refused(call, error=EngineError) -> str:
    with pytest.raises(error) as caught:
        call()
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_answers_with_fresh_arrays_and_frees_all_it_held(tmp_path, cuda_graph):
    engine = built(tmp_path, cuda_graph=cuda_graph)
    answers = [engine.run(image) for image in (IMAGE, 2 * IMAGE + 1)]
    for answer, total in zip(answers, (IMAGE.sum(), (2 * IMAGE + 1).sum()), strict=True):
        assert (answer.shape, answer.dtype) == ((1, 2), np.float32)
        np.testing.assert_allclose(answer, [[total, 2 * total]], rtol=1e-5, atol=1e-4)
    assert CUDA.calls.count("cudaGraphLaunch") == (3 if cuda_graph else 0)
    assert len(CUDA.memory) == 4
    gc.disable()  # dropping it must be enough: a cycle would keep the device's memory until the collector runs
    try:
        del engine
        assert not CUDA.memory
        assert not CUDA.handles
    finally:
        gc.enable()


def test_what_the_builder_is_told(tmp_path, fakes):
    told = build(tmp_path, workspace_mb=64, optimization_level=5, tf32=True, cuda_graph=True)
    assert (TRT.network_flags, told["WORKSPACE"], told["TF32"], told["builder_optimization_level"]) == (
        2,
        64 << 20,
        True,
        5,
    )
    assert (told["default_device_type"], told["DLA_core"], told["cuda_graph"], told["warnings"]) == (
        "GPU",
        None,
        True,
        1,
    )
    assert build(tmp_path)["TF32"] is False
    assert not TRT.config.get_flag(BuilderFlag.GPU_FALLBACK)
    assert json.dumps(told)
    assert RUNTIME.version() == fakes


def test_more_than_the_highest_level_is_refused():
    given = {"optimization_level": 6}
    message = refused(lambda: read_options("tensorrt", given, place="targets.t.options"), TargetError)
    assert (
        "`targets.t.options.optimization_level` (how long the builder searches) should be 5 or less, got 6" in message
    )


def test_every_error_of_the_parser_is_told_with_its_node(tmp_path):
    TRT.parser_errors = [
        ParserError("blocks.0/Attention", "Attention", "no importer\n  found", ErrorCode.UNSUPPORTED_NODE),
        ParserError("head/Gemm", "Gemm", "bad shape", ErrorCode.INVALID_NODE),
    ]
    message = refused(lambda: build(tmp_path))
    assert "Attention 'blocks.0/Attention': no importer found (UNSUPPORTED_NODE); " in message
    assert "Gemm 'head/Gemm': bad shape (INVALID_NODE)" in message
    assert str(tmp_path / "model.onnx") in message
    assert not (tmp_path / "engine.plan").exists()


@pytest.mark.parametrize(
    ("words", "remedy"),
    [
        ("[E] Error Code 2: OutOfMemory (Requested size was 4294967296 bytes.)", "ran out of memory: close other"),
        ("Cuda failure: out of memory", "ran out of memory"),
        ("Could not find any implementation for node head.", "check the exported model with `slad lint`"),
    ],
)
def test_a_build_that_fails_says_why_and_writes_nothing(tmp_path, words, remedy):
    TRT.build_error = words
    message = refused(lambda: build(tmp_path))
    assert words in message
    assert remedy in message
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        "Error Code 6: API Usage Error (The engine plan file is not compatible with this version of TensorRT)",
        "The engine plan file was built on a device of compute capability 8.7, expected 11.0",
    ],
)
def test_an_engine_of_another_release_or_device_is_refused_with_its_words(tmp_path, words, fakes):
    build(tmp_path)
    TRT.no_engine = words
    message = refused(lambda: RUNTIME.load(tmp_path / "engine.plan", settings()))
    assert f"TensorRT {fakes} cannot load it: {words}; build it again with `dvc repro -sf" in message
    assert not CUDA.memory


@pytest.mark.parametrize("content", [b"", b"junk", None])
def test_a_broken_or_missing_engine_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "engine.plan").write_bytes(content)
    message = refused(lambda: RUNTIME.load(tmp_path / "engine.plan", settings()))
    assert ("magic tag does not match" if content is not None else "No such file") in message


def test_an_engine_that_does_not_take_and_give_one_array_of_float32_is_refused(tmp_path):
    TRT.plan |= {"dtype": int(DataType.HALF)}
    assert "should have one input of float32, has {'x': 'DataType.HALF'}" in refused(lambda: built(tmp_path))
    TRT.plan |= {"dtype": int(DataType.FLOAT), "extra": 1}
    assert "should have one output of float32, has {'y': " in refused(lambda: built(tmp_path))


def test_input_of_another_shape(tmp_path):
    engine = built(tmp_path)
    message = refused(lambda: engine.run(np.zeros((1, 3, 8, 8), np.float32)))
    assert "engine.plan: takes an input of shape (1, 3, 4, 4), got (1, 3, 8, 8); prepare the input" in message


@pytest.mark.parametrize("function", ["cudaMemcpyAsync", "cudaStreamSynchronize"])
def test_a_cuda_error_while_running_names_the_engine_and_the_code(tmp_path, function):
    engine = built(tmp_path)
    CUDA.fail[function] = cudaError_t.cudaErrorIllegalAddress
    message = refused(lambda: engine.run(IMAGE))
    assert message.startswith(str(tmp_path / "engine.plan"))
    assert "cudaErrorIllegalAddress (700, illegaladdress)" in message


@pytest.mark.parametrize(
    "function", ["cudaStreamCreateWithFlags", "cudaHostAlloc", "cudaMalloc", "cudaGraphInstantiate"]
)
def test_what_was_allocated_before_a_failure_is_freed(tmp_path, function):
    CUDA.fail[function] = cudaError_t.cudaErrorMemoryAllocation
    with pytest.raises(EngineError, match=r"cudaErrorMemoryAllocation \(2, "):
        built(tmp_path, cuda_graph=True)
    assert not CUDA.memory
    assert not CUDA.handles


def test_tensorrt_fails_while_running_or_has_no_memory_for_it(tmp_path):
    engine = built(tmp_path)
    TRT.cannot_run = "Error Code 1: Cask (Cask convolution execution)"
    assert "cannot run it: Error Code 1: Cask" in refused(lambda: engine.run(IMAGE))
    assert "cannot run it" in refused(lambda: built(tmp_path, cuda_graph=True))
    assert CUDA.captured is None
    TRT.no_context = True
    assert "make a context to run it in: it did not say why; close what else" in refused(lambda: built(tmp_path))


def test_a_graph_that_cannot_be_captured_names_the_option(tmp_path):
    CUDA.fail["cudaStreamEndCapture"] = cudaError_t.cudaErrorIllegalAddress
    assert "set `cuda_graph` to false" in refused(lambda: built(tmp_path, cuda_graph=True))


def test_no_gpu(tmp_path):
    CUDA.fail["cudaGetDeviceCount"] = cudaError_t.cudaErrorInsufficientDriver
    for call in (lambda: build(tmp_path), lambda: RUNTIME.probe(DEFAULTS), lambda: RUNTIME.supports(settings())):
        assert "cannot count the GPUs: cudaErrorInsufficientDriver (35, " in refused(call)
    assert "cudaErrorInsufficientDriver" in RUNTIME.places()["GPU 0"]


def test_a_gpu_that_is_not_there(tmp_path):
    assert "`device` 3: CUDA finds 1 GPU(s)" in refused(lambda: build(tmp_path, device=3))


def test_no_builder(tmp_path):
    TRT.no_builder = True
    message = refused(lambda: build(tmp_path))
    assert "cannot make a builder: CUDA initialization failure with error: 35; check the GPU's driver" in message
    assert "no builder" not in (RUNTIME.places()["GPU 0"] or "no builder")


def test_a_dla_core_that_is_not_there_is_refused_with_the_builders_number(tmp_path):
    TRT.dla_cores = 2
    for call in (lambda: build(tmp_path, dla_core=2), lambda: RUNTIME.probe(DEFAULTS | {"dla_core": 2})):
        assert "`dla_core` 2: TensorRT counts 2 DLA core(s) here, from 0" in refused(call)
    build(tmp_path, dla_core=1)
    TRT.dla_cores = 0
    assert "counts 0 DLA core(s)" in refused(lambda: RUNTIME.load(tmp_path / "engine.plan", settings(dla_core=1)))


def test_layers_that_no_dla_takes_are_strays(tmp_path):
    TRT.dla_cores = 1
    placement = built(tmp_path, dla_core=0).placement()
    assert (placement.asked, dict(placement.nodes), placement.strays) == ("DLA 0", {"GPU": 1, "DLA": 1}, ())
    assert dict(placement.precisions) == {"fp32": 1, "fp16": 1}
    assert (TRT.config.default_device_type, TRT.config.DLA_core) == (DeviceType.DLA, 0)
    assert TRT.config.get_flag(BuilderFlag.GPU_FALLBACK)
    TRT.on_dla = False
    assert built(tmp_path, dla_core=0).placement().strays == ("body",)
    assert built(tmp_path).placement().strays == ()


def test_places_are_tried_with_a_network(tmp_path):
    TRT.dla_cores = 2
    CUDA.gpus.append(("Other", 9, 0))
    names = ["GPU 0 (Fake Orin)", "DLA 0", "DLA 1", "GPU 1 (Other)", "GPU 1, DLA 0", "GPU 1, DLA 1"]
    assert RUNTIME.places() == dict.fromkeys(names)
    TRT.on_dla = False
    assert RUNTIME.places()["DLA 1"] == "TensorRT ran 'body' elsewhere"
    TRT.build_error = "no kernel image is available"
    assert "no kernel image is available" in RUNTIME.places()["GPU 0 (Fake Orin)"]


def test_probe_says_what_an_engine_is_tied_to(fakes):
    facts = RUNTIME.probe(DEFAULTS)
    assert facts["gpu"]["name"] == "Fake Orin"
    assert facts["tensorrt"] == fakes
    assert facts["cuda"] == {
        "name": "Fake Orin", "compute_capability": "8.7", "dla_core": None,
        "driver": "13.0",
    }  # fmt: skip
    TRT.build_error = "no kernel image is available"
    assert "TensorRT does not run on GPU 0: a network of one layer" in refused(lambda: RUNTIME.probe(DEFAULTS))


def test_bindings_that_raise_without_a_driver(monkeypatch):
    def broken():
        raise RuntimeError("Failed to dlopen libcuda.so.1")

    monkeypatch.setattr(sys.modules["cuda.bindings.runtime"], "cudaGetDeviceCount", broken)
    words = "CUDA cannot count the GPUs: Failed to dlopen libcuda.so.1; install the driver"
    assert words in refused(lambda: RUNTIME.probe(DEFAULTS))
    assert words in RUNTIME.places()["GPU 0"]


def test_what_the_gpu_is_slow_in_is_not_supported(fakes, monkeypatch):
    for precision in RUNTIME.EXPORTED_AS:
        assert RUNTIME.supports(settings(precision)) is None
    if fakes.startswith("10"):
        monkeypatch.setattr(fake_tensorrt.Builder, "platform_has_fast_int8", False)
        assert RUNTIME.supports(settings("fp16")) is None
        assert "Fake Orin (compute capability 8.7) has no fast int8" in RUNTIME.supports(settings("int8_fp16"))


def test_the_timing_cache_is_kept_by_release_and_gpu(tmp_path, fakes):
    file = tmp_path / "cache" / "slad-edge" / "tensorrt-timing" / f"{fakes}-Fake-Orin-8.7.cache"
    assert build(tmp_path)["timing_cache"] == f"new {file}"
    assert file.read_bytes() == b"measured"
    assert build(tmp_path)["timing_cache"] == str(file)
    file.unlink()
    assert build(tmp_path, timing_cache=False)["timing_cache"] == "off"
    assert not file.exists()


def test_a_broken_timing_cache_is_discarded_with_a_line(tmp_path, capsys):
    build(tmp_path)
    file = next((tmp_path / "cache").rglob("*.cache"))
    file.write_bytes(b"broken")
    TRT.refuse_cache = "Failed to deserialize the timing cache"
    told = build(tmp_path)
    assert told["timing_cache"] == f"discarded {file}: Failed to deserialize the timing cache"
    assert capsys.readouterr().err == f"timing cache: {told['timing_cache']}; it is made anew\n"
    assert file.read_bytes() == b"measured"
    TRT.build_error = "another reason"
    assert "deserialize" not in refused(lambda: build(tmp_path))


def test_a_timing_cache_that_cannot_be_written_costs_no_engine(tmp_path, capsys):
    (tmp_path / "cache").write_text("no folder")
    build(tmp_path)
    assert (tmp_path / "engine.plan").exists()
    assert "later builds measure anew" in capsys.readouterr().err


def test_missing_bindings_name_the_extra_and_on_a_jetson_its_package(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    for call in (RUNTIME.version, RUNTIME.places, lambda: RUNTIME.probe(DEFAULTS), lambda: build(tmp_path)):
        assert "pip install 'slad-edge[tensorrt]'" in refused(call, RuntimeMissingError)
    monkeypatch.setattr("deploy.runtimes.tensorrt.l4t", lambda: "36.4.3")
    message = refused(RUNTIME.version, RuntimeMissingError)
    assert "on a Jetson (L4T 36.4.3)" in message
    assert "python3-libnvinfer" in message
    assert "--system-site-packages" in message


def test_cuda_python_has_two_names_and_may_be_missing(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    monkeypatch.setitem(sys.modules, "cuda.cudart", fake_cuda)
    assert cuda.import_cudart() is fake_cuda
    monkeypatch.setitem(sys.modules, "cuda.cudart", None)
    assert "pip install 'slad-edge[tensorrt]'" in refused(lambda: build(tmp_path), RuntimeMissingError)


@pytest.mark.parametrize("text", ["", "{}", '{"Layers": ["only a name"]}', '{"Layers": [{"LayerType": "kgen"}]}'])
def test_a_report_of_layers_without_types_is_refused(text):
    message = refused(lambda: read_layers(text, asked="GPU 0", name="e"))
    assert message.startswith("e: TensorRT's inspector does not tell its layers")


def test_types_are_read_in_the_words_of_every_release():
    words = {
        "Thirty-two wide channel vectorized row major Int8 format": "int8", "Row major linear FP16 format": "fp16",
        "Half": "fp16", "Float": "fp32", "BFloat16": "bf16", "FP8": "fp8", "Int64": "other",
    }  # fmt: skip
    layers = [{"Name": said, "LayerType": "kgen", "Inputs": [{"Format/Datatype": said}]} for said in words]
    layers.append({"Name": "mixed", "Inputs": [{"Format/Datatype": kind} for kind in ("Half", "Int8")]})
    layers.append({"Name": "constant", "Outputs": [{"Format/Datatype": "Float"}]})
    read = read_layers(json.dumps({"Layers": layers}), asked="GPU 0", name="e")
    assert dict(read.precisions) == {"int8": 2, "fp16": 2, "fp32": 2, "bf16": 1, "fp8": 1, "other": 1}
    assert dict(read.nodes) == {"GPU": len(layers)}
    assert os.linesep not in json.dumps(read.as_dict())


def test_every_target_for_tensorrt_can_be_built(tmp_path):
    found = {file.stem: yaml.safe_load(file.read_text()) for file in TARGETS}
    targets = [read_target(name, spec) for name, spec in found.items() if spec["runtime"] == "tensorrt"]
    assert len(targets) >= 5
    for target in targets:
        for variant in target.variants:
            assert RUNTIME.EXPORTED_AS[variant.precision] == variant.onnx
            wanted = target.settings(variant.precision)
            RUNTIME.build(Source(onnx=tmp_path / "model.onnx"), tmp_path / "engine.plan", wanted)
            assert RUNTIME.load(tmp_path / "engine.plan", wanted).run(IMAGE).shape == (1, 2)
