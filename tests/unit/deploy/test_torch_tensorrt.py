"""The runtime torch_tensorrt with a recorded stand-in for the package, and real programs of torch, on the CPU."""

import ast
import contextlib
import importlib.util
import json
import operator
import os
import stat
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch

from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.runtime import Settings, Source
from deploy.runtimes import get_runtime
from deploy.target import read_options

RUNTIME = get_runtime("torch_tensorrt")
SHAPE = (1, 3, 16, 16)
IMAGE = torch.ones(SHAPE)


class Attention(torch.nn.Module):
    """Has an operator that returns several tensors, a softmax, a normalisation and a cast of its own."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.qkv = torch.nn.Conv2d(3, 8, 8, 8), torch.nn.Linear(8, 24)
        self.norm, self.head = torch.nn.LayerNorm(8), torch.nn.Linear(8, 5)

    def forward(self, image):
        x = self.conv(image).flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm(x)).chunk(3, dim=-1)
        x = x + (q @ k.transpose(1, 2)).to(torch.float32).softmax(-1) @ v
        return self.head(x.mean(1))


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bundle")
    torch.export.save(torch.export.export(Attention().eval(), (IMAGE,), strict=False), folder / "program.pt2")
    return Source(onnx=folder / "model.onnx", program=folder / "program.pt2")


def settings(precision="fp32", **options):
    return Settings(precision=precision, threads=0, options=read_options("torch_tensorrt", options, place="options"))


class Package(ModuleType):
    """Stands for torch_tensorrt: keeps what it is asked for, leaves the program as it is, and may fail."""

    def __init__(self):
        super().__init__("torch_tensorrt")
        self.__version__ = "2.14.0"
        self.failure = None
        self.modes = []
        self.dynamo = SimpleNamespace(compile=self.compile)
        self.runtime = SimpleNamespace(enable_cudagraphs=self.enable_cudagraphs)

    def compile(self, program, *, inputs, device, **asked):
        if self.failure:
            raise self.failure
        self.asked = asked
        self.types = {
            RUNTIME._operator(node.target): node.meta["val"].dtype
            for node in program.graph.nodes
            if node.op == "call_function" and isinstance(node.meta["val"], torch.Tensor)
        }
        return program

    def save(self, module, file_path, *, output_format, inputs):
        assert output_format == "exported_program"
        torch.export.save(module, file_path)

    @contextlib.contextmanager
    def enable_cudagraphs(self, module):
        self.modes.append("on")
        yield module
        self.modes.append("off")


@pytest.fixture
def package(monkeypatch):
    module = Package()
    monkeypatch.setitem(sys.modules, "torch_tensorrt", module)
    monkeypatch.setitem(sys.modules, "tensorrt", SimpleNamespace(__version__="11.1.0"))
    return module


@pytest.fixture
def gpu(package, monkeypatch):
    """Lets the CPU pass for a GPU: only where tensors lie, and streams, are not real."""

    def pageable(make):
        return lambda *sizes, **options: make(*sizes, **{key: options[key] for key in options if key != "pin_memory"})

    monkeypatch.setattr(torch, "zeros", pageable(torch.zeros))
    monkeypatch.setattr(torch, "empty", pageable(torch.empty))
    monkeypatch.setattr(RUNTIME, "_place", lambda index: "cpu")
    for name, value in {
        "is_available": lambda: True,
        "device_count": lambda: 1,
        "get_device_name": lambda index: "NVIDIA H200",
        "get_device_capability": lambda index: (9, 0),
        "device": lambda index: contextlib.nullcontext(),
        "stream": lambda stream: contextlib.nullcontext(),
        "Stream": lambda device: SimpleNamespace(synchronize=lambda: None),
    }.items():
        monkeypatch.setattr(torch.cuda, name, value)
    return package


def one_line(caught) -> str:
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("missing", ["torch", "torch_tensorrt", "tensorrt"])
def test_a_package_that_is_missing_names_the_extra(package, monkeypatch, source, tmp_path, missing):
    monkeypatch.setitem(sys.modules, missing, None)
    calls = (
        RUNTIME.version,
        RUNTIME.places,
        lambda: RUNTIME.probe(settings().options),
        lambda: RUNTIME.supports(settings()),
        lambda: RUNTIME.build(source, tmp_path / "engine.pt2", settings()),
        lambda: RUNTIME.load(tmp_path / "engine.pt2", settings()),
    )
    for call in calls:
        with pytest.raises(
            RuntimeMissingError, match=rf"{missing}.*slad-edge\[torch_tensorrt\].*package index"
        ) as caught:
            call()
        one_line(caught)


@pytest.mark.parametrize(("cuda", "words"), [(None, "was built without CUDA"), ("13.2", "was built for CUDA 13.2")])
def test_without_a_device_the_reason_is_said(package, monkeypatch, source, tmp_path, cuda, words):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(torch.version, "cuda", cuda)
    reason = f"torch {torch.__version__} {words} and finds no device"
    assert RUNTIME.places() == {"cuda:0": reason}
    for call in (
        lambda: RUNTIME.probe(settings().options),
        lambda: RUNTIME.build(source, tmp_path / "engine.pt2", settings()),
        lambda: RUNTIME.load(tmp_path / "engine.pt2", settings()),
    ):
        with pytest.raises(EngineError) as caught:
            call()
        assert reason in one_line(caught)


def test_an_index_beyond_the_last_gpu(gpu):
    with pytest.raises(
        EngineError, match="CUDA device 1 does not run here: there are 1, counted from 0; choose another"
    ):
        RUNTIME.probe(settings(device=1).options)


def test_a_gpu_that_does_not_execute_is_found(gpu, monkeypatch):
    def refuse(*_, **__):
        raise RuntimeError(
            "CUDA error: no kernel image is available for execution on the device\nCUDA kernel errors ..."
        )

    monkeypatch.setattr(torch, "ones", refuse)
    words = "CUDA error: no kernel image is available for execution on the device"
    assert RUNTIME.places() == {"cpu": words}
    with pytest.raises(EngineError, match=words) as caught:
        RUNTIME.probe(settings().options)
    one_line(caught)


def test_what_an_engine_is_tied_to(gpu):
    facts = RUNTIME.probe(settings().options)
    assert (facts["name"], facts["tensorrt"], facts["torch"]) == ("NVIDIA H200", "11.1.0", torch.__version__)
    assert json.loads(json.dumps(facts)) == facts
    assert RUNTIME.version() == "2.14.0"


def test_bf16_is_for_gpus_that_have_it(gpu, monkeypatch):
    assert RUNTIME.supports(settings("bf16")) is None
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: (7, 5))
    assert RUNTIME.supports(settings("bf16")) == (
        "this GPU has no native bf16 (compute capability 7.5, 8.0 is the first with it)"
    )
    assert RUNTIME.supports(settings("fp16")) is None


def test_a_bundle_without_a_program_says_how_to_get_one(gpu, tmp_path):
    with pytest.raises(EngineError, match=r"bundle has no program .*`slad repro export\.program=true`") as caught:
        RUNTIME.build(Source(onnx=tmp_path / "model.onnx"), tmp_path / "engine.pt2", settings())
    one_line(caught)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (
            RuntimeError("\n[TRT] no tactic\nmore"),
            r"cannot build it for fp32 \(\[TRT\] no tactic\); check the exported",
        ),
        (AssertionError(), r"cannot build it for fp32 \(AssertionError without a word\)"),
        (KeyError("val"), r"cannot build it for fp32 \('val'\)"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nGPU 0 has"),
            r"the GPU has not enough memory \(Tried to allocate 2\.00 GiB\.\); end what else runs on it",
        ),
    ],
    ids=["builder", "silent", "converter", "memory"],
)
def test_a_failing_build_is_one_line(gpu, source, tmp_path, failure, words):
    gpu.failure = failure
    with pytest.raises(EngineError, match=words) as caught:
        RUNTIME.build(source, tmp_path / "engine.pt2", settings())
    assert str(source.program) in one_line(caught)
    assert not (tmp_path / "engine.pt2").exists()


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04" + b"\0" * 4096])
def test_what_is_no_engine_is_refused(gpu, tmp_path, content):
    (tmp_path / "engine.pt2").write_bytes(content)
    with pytest.raises(
        EngineError, match=r"engine\.pt2: Torch-TensorRT cannot load it .*; build it again with"
    ) as caught:
        RUNTIME.load(tmp_path / "engine.pt2", settings())
    one_line(caught)


@pytest.mark.parametrize(
    ("precision", "low", "tolerance"),
    [("fp32", torch.float32, 1e-6), ("fp16", torch.float16, 5e-3), ("bf16", torch.bfloat16, 3e-2)],
)
def test_what_multiplies_is_cast_and_what_overflows_is_not(gpu, source, tmp_path, precision, low, tolerance):
    told = RUNTIME.build(source, tmp_path / "engine.pt2", settings(precision))
    assert {gpu.types[name] for name in ("conv2d", "linear", "matmul")} == {low}
    assert {gpu.types[name] for name in ("layer_norm", "softmax", "mean")} == {torch.float32}
    assert told["disable_tf32"] == (precision == "fp32")
    assert json.loads(json.dumps(told)) == told
    engine = RUNTIME.load(tmp_path / "engine.pt2", settings(precision))
    image = np.random.default_rng(0).standard_normal(SHAPE, dtype=np.float32)
    expected = Attention().eval()(torch.from_numpy(image)).detach().numpy()
    answer = engine.run(image)
    assert (answer.dtype, answer.shape) == (np.float32, (1, 5))
    assert np.abs(answer - expected).max() <= tolerance * np.abs(expected).max()
    kept = answer.copy()
    assert not np.array_equal(engine.run(-image), kept)
    np.testing.assert_array_equal(answer, kept)
    with pytest.raises(EngineError, match=r"takes an input of shape \(1, 3, 16, 16\), got \(1, 3, 8, 8\)"):
        engine.run(np.zeros((1, 3, 8, 8), np.float32))


def test_casts_leave_no_operator_that_would_end_an_engine(source):
    program = RUNTIME.lowered(torch.export.load(source.program), IMAGE, precision="fp16")
    assert not [node for node in program.graph.nodes if "assert" in str(node.target)]


def test_options_are_told_by_the_names_of_the_package(gpu, source, tmp_path):
    chosen = settings(workspace_mb=64, min_block_size=3, optimization_level=5)
    told = RUNTIME.build(source, tmp_path / "engine.pt2", chosen)
    expected = {"workspace_size": 64 * 2**20, "min_block_size": 3, "optimization_level": 5}
    assert expected.items() <= told.items()
    assert expected.items() <= gpu.asked.items()
    assert "use_explicit_typing" not in gpu.asked


def test_types_are_made_strong_where_they_are_not_by_default():
    def older(exported_program, *, enabled_precisions=None, use_explicit_typing=False):
        pass

    assert RUNTIME.compile_options(older, settings())["use_explicit_typing"] is True


def test_caches_are_off_or_in_a_folder_of_ones_own(gpu, source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    RUNTIME.build(source, tmp_path / "engine.pt2", settings(timing_cache=False))
    assert not (tmp_path / "home").exists()
    assert not Path(gpu.asked["timing_cache_path"]).parent.exists()  # it was this build's alone
    assert "engine_cache_dir" not in gpu.asked
    RUNTIME.build(source, tmp_path / "engine.pt2", settings(timing_cache=True, engine_cache=True))
    folder = tmp_path / "home/slad-edge/torch_tensorrt/2.14.0"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert gpu.asked["timing_cache_path"] == str(folder / "timing.bin")
    assert gpu.asked["engine_cache_dir"] == str(folder / "engines")
    assert (gpu.asked["immutable_weights"], gpu.asked["engine_cache_size"]) == (False, 2**30)


def test_a_timing_cache_does_not_grow_for_ever(gpu, source, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    timings = tmp_path / "slad-edge/torch_tensorrt/2.14.0/timing.bin"
    timings.parent.mkdir(parents=True)
    timings.touch()
    for size, kept in ((2**26, True), (2**26 + 1, False)):
        os.truncate(timings, size)
        RUNTIME.build(source, tmp_path / "engine.pt2", settings(timing_cache=True))
        assert timings.exists() == kept


def test_cuda_graphs_are_on_only_while_the_engine_runs(gpu, source, tmp_path):
    RUNTIME.build(source, tmp_path / "engine.pt2", settings())
    RUNTIME.load(tmp_path / "engine.pt2", settings())
    assert gpu.modes == []
    engine = RUNTIME.load(tmp_path / "engine.pt2", settings(cuda_graph=True))
    engine.run(IMAGE.numpy())
    assert gpu.modes == ["on", "off"] * 3


def test_a_failing_run_is_one_line(gpu, source, tmp_path):
    RUNTIME.build(source, tmp_path / "engine.pt2", settings())
    engine = RUNTIME.load(tmp_path / "engine.pt2", settings())

    def fail(image):
        raise RuntimeError("CUDA error: device-side assert triggered\nmore")

    engine._module = fail
    with pytest.raises(EngineError, match="failed while running it .*assert triggered.*; build it again") as caught:
        engine.run(IMAGE.numpy())
    one_line(caught)


def test_what_is_left_to_torch_is_named(gpu, source, tmp_path):
    def node(name, target, op="call_function"):
        return SimpleNamespace(name=name, target=target, op=op)

    nodes = [
        node("image", "image", "placeholder"),
        node("execute_engine", "tensorrt.execute_engine.default"),
        node("getitem", operator.getitem),
        node("erf", "aten.erf.default"),
        node("guard", "aten._assert_async.msg"),
        node("output", "output", "output"),
    ]
    placement = RUNTIME.read_graph(nodes)
    assert (placement.asked, placement.nodes) == ("TensorRT", {"TensorRT": 1, "torch": 1})
    assert placement.strays == ("erf (aten.erf.default)",)
    RUNTIME.build(source, tmp_path / "engine.pt2", settings())
    real = RUNTIME.load(tmp_path / "engine.pt2", settings()).placement()
    assert len(real.strays) == real.nodes["torch"] > 10
    assert "TensorRT" not in real.nodes


def parameters(path: Path, function: str) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    (found,) = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == function]
    return {argument.arg for argument in (*found.args.args, *found.args.kwonlyargs)}


def test_every_keyword_is_one_of_the_real_package(gpu, source, tmp_path, monkeypatch):
    """Its `compile` swallows keywords it does not know. Its sources are read, for it loads only beside TensorRT."""
    monkeypatch.delitem(sys.modules, "torch_tensorrt")
    found = importlib.util.find_spec("torch_tensorrt")
    if found is None:
        pytest.skip("torch_tensorrt is not installed")
    monkeypatch.setitem(sys.modules, "torch_tensorrt", gpu)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    root = Path(found.origin).parent
    RUNTIME.build(source, tmp_path / "engine.pt2", settings(timing_cache=True, engine_cache=True))
    assert {*gpu.asked, "inputs", "device"} <= parameters(root / "dynamo/_compiler.py", "compile")
    assert {"output_format", "inputs"} <= parameters(root / "_compile.py", "save")
    assert parameters(root / "runtime/_cudagraphs.py", "enable_cudagraphs")


def test_an_optimization_level_that_tensorrt_does_not_have():
    assert settings(optimization_level=5).options["optimization_level"] == 5
    with pytest.raises(TargetError, match=r"options\.optimization_level"):
        settings(optimization_level=6)
