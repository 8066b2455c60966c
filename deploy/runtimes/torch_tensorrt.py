"""Torch-TensorRT on an NVIDIA GPU: the engine is a program of torch in which TensorRT's engines stand for the layers.

It compiles what torch.export saved beside the ONNX file, and is loaded again without the code of the network. FP16 and
bf16 are cast here, from the FP32 program. INT8 is not offered: Torch-TensorRT wants the network quantised again, in
torch; it would not be the network that this project checked. The runtime tensorrt has INT8 on the same GPU.

Releases 2.8 to 2.14 of Torch-TensorRT go with the same release of torch. Up to 2.9 it let TensorRT lower FP32 where it
liked (weak typing) unless `use_explicit_typing` was set; in 2.10 strong typing became the default, together with an
autocast of its own; 2.13 goes with TensorRT 11, which knows no weak typing, and has dropped the switch. The autocast of
2.10 to 2.14 breaks on operators that return several tensors, such as the `unbind` of q, k and v in timm's attention. So
types are strong here in every release, and the casts are this file's.
"""

import contextlib
import inspect
import operator
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, RuntimeMissingError
from deploy.files import cache_folder
from deploy.nvidia import describe, in_the_order_of_the_bus
from deploy.runtime import Engine, Option, OptionValue, Placement, Settings, Source

ENGINE_FILE = "engine.pt2"
MADE_FROM = "program"
THREADED = False
EXPORTED_AS = {"fp32": "fp32", "fp16": "fp32", "bf16": "fp32"}
OPTIONS = {
    "device": Option(default=0, meaning="index of the GPU, as CUDA counts"),
    "workspace_mb": Option(default=0, meaning="memory that building may take; 0 is all there is"),
    # Torch-TensorRT's own default of 5 leaves smaller pieces of a network to torch.
    "min_block_size": Option(default=1, least=1, meaning="fewest operators that TensorRT takes at once"),
    "optimization_level": Option(
        default=None, most=5, meaning="0 builds fast, 5 searches longest; TensorRT's own where unset"
    ),
    "timing_cache": Option(default=True, meaning="whether later builds use what earlier ones have measured"),
    # Off by default: a refitted engine may be slower than one that is built for its weights.
    "engine_cache": Option(default=False, meaning="whether to refit an engine of the same graph, built before"),
    "cuda_graph": Option(default=False, meaning="whether to replay the engine as one CUDA graph"),
}
ENGINE_CACHE_BYTES, TIMING_CACHE_BYTES = 2**30, 2**26
LOWERED = frozenset({
    "linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum", "conv1d", "conv2d", "conv3d", "convolution",
    "conv_transpose2d", "scaled_dot_product_attention",
})  # fmt: skip
SENSITIVE = frozenset({
    "layer_norm", "native_layer_norm", "rms_norm", "group_norm", "batch_norm", "instance_norm", "softmax", "_softmax",
    "log_softmax", "linalg_vector_norm", "sum", "mean", "var", "pow", "exp", "log", "rsqrt", "cumsum",
})  # fmt: skip
ASSERTION = "_assert"
REBUILD = "build it again with `dvc repro -sf compile@<target>`"


def version() -> str:
    """Return the release, such as "2.14.0"."""
    _require()
    import torch_tensorrt

    return str(torch_tensorrt.__version__)


def places() -> dict[str, str | None]:
    """Run an operator of torch on every CUDA device."""
    _require()
    import torch

    return {_place(index): _refusal(index) for index in range(max(1, torch.cuda.device_count()))}


def probe(options: Mapping[str, OptionValue]) -> dict[str, Any]:
    """Run an operator of torch on the GPU, and describe it."""
    _require()
    import tensorrt
    import torch

    index = _index(options)
    return {
        "device": _place(index),
        "name": torch.cuda.get_device_name(index),
        "cuda": torch.version.cuda,
        "torch": str(torch.__version__),
        "tensorrt": str(tensorrt.__version__),
        **describe(index),
    }


def supports(settings: Settings) -> str | None:
    """Refuse bf16 where the GPU emulates it."""
    _require()
    import torch

    major, minor = torch.cuda.get_device_capability(_index(settings.options))
    if settings.precision == "bf16" and major < 8:
        return f"this GPU has no native bf16 (compute capability {major}.{minor}, 8.0 is the first with it)"
    return None


def build(source: Source, engine_path: Path, settings: Settings) -> dict[str, Any]:
    """Compile the program for this GPU, and save it with TensorRT's engines inside."""
    if source.program is None:
        msg = (
            f"{source.onnx.parent}: this bundle has no program that Torch-TensorRT could compile; "
            "export it again with `slad repro export.program=true`"
        )
        raise EngineError(msg)
    _require()
    import torch
    import torch_tensorrt
    from torch.export.passes import move_to_device_pass

    index = _index(settings.options)
    remedy = "check the exported program, or try another release of Torch-TensorRT"
    with _one_line(f"{source.program}: Torch-TensorRT cannot build it for {settings.precision}", remedy):
        # Its hash was compared when the bundle was loaded, and it holds no pickle (pipeline/parts/program.py).
        program = move_to_device_pass(torch.export.load(source.program), _place(index))
        image = torch.zeros(_input_shape(program), device=_place(index))
        with torch.cuda.device(index), _caches(settings.options, release=version()) as caches:
            if settings.precision != "fp32":
                program = lowered(program, image, precision=settings.precision)
            chosen = compile_options(torch_tensorrt.dynamo.compile, settings)
            compiled = torch_tensorrt.dynamo.compile(
                program, inputs=[image], device=torch.device(_place(index)), **chosen, **caches
            )
            torch_tensorrt.save(compiled, str(engine_path), output_format="exported_program", inputs=[image])
    kept = {name: settings.options[name] for name in ("timing_cache", "engine_cache", "cuda_graph")}
    return {"device": _place(index), **chosen, **kept}


def load(engine_path: Path, settings: Settings) -> Engine:
    """Load the program, and run it twice: the first run captures the CUDA graph, where there is one."""
    _require()
    import torch
    import torch_tensorrt  # noqa: F401 - teaches torch.export what an engine of TensorRT is

    index = _index(settings.options)
    # A pickle is read here, TensorRT's engine in it. The caller has compared the file with its manifest's hash. Not
    # torch_tensorrt.load: where this fails, it goes on to read the file as TorchScript.
    with _one_line(f"{engine_path}: Torch-TensorRT cannot load it for {settings.precision}", REBUILD):
        return _Engine(torch.export.load(engine_path), path=engine_path, index=index, options=settings.options)


def compile_options(compile_: Any, settings: Settings) -> dict[str, Any]:
    """Return what is asked of `torch_tensorrt.dynamo.compile`, of this release, as JSON values."""
    options = settings.options
    chosen: dict[str, Any] = {
        "disable_tf32": settings.precision == "fp32",  # else FP32 is multiplied with 10 bits of mantissa
        "workspace_size": int(options["workspace_mb"] or 0) * 2**20,
        "min_block_size": options["min_block_size"],
        "optimization_level": options["optimization_level"],
    }
    if "use_explicit_typing" in inspect.signature(compile_).parameters:
        chosen["use_explicit_typing"] = True
    return chosen


def lowered(program: Any, image: Any, *, precision: str) -> Any:
    """Export a program again with the casts of FP16 or bf16 in its graph, by the rules of torch's autocast.

    What multiplies matrices computes in the lower precision; normalisations, softmax and sums in FP32, where FP16
    overflows; the rest in the type of its inputs, FP32 where they differ. Input and output stay FP32.

    Args:
        program: as torch.export loaded it, in FP32.
        image: an input.
        precision: "fp16" or "bf16".
    """
    import torch
    from torch.utils import _pytree as pytree

    low = {"fp16": torch.float16, "bf16": torch.bfloat16}[precision]

    class Casts(torch.fx.Interpreter):
        def call_function(self, target: Any, args: Any, kwargs: Any) -> Any:
            name = _operator(target)
            if name.startswith(ASSERTION):  # of the FP32 program's types
                return None
            tensors = [value for value in pytree.tree_leaves((args, kwargs)) if _is_float(value)]
            if name in LOWERED:
                wanted = low
            elif name in SENSITIVE or len({tensor.dtype for tensor in tensors}) > 1:
                wanted = torch.float32
            else:
                return super().call_function(target, args, kwargs)
            cast = pytree.tree_map(lambda value: value.to(wanted) if _is_float(value) else value, (args, kwargs))
            return super().call_function(target, *cast)

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network = _module(program)

        def forward(self, image: torch.Tensor) -> torch.Tensor:
            output: torch.Tensor = Casts(self.network).run(image)
            return output.float()

    with torch.no_grad():
        exported = torch.export.export(Network(), (image,), strict=False)
    for node in list(exported.graph.nodes):  # torch adds one for each cast, where TensorRT's engines would end
        if _operator(node.target).startswith(ASSERTION):
            exported.graph.erase_node(node)
    exported.graph_module.recompile()
    return exported


def read_graph(nodes: Any) -> Placement:
    """Count TensorRT's engines among the nodes of a compiled program, and name the operators that are left to torch."""
    called = [node for node in nodes if node.op.startswith("call_") and node.target is not operator.getitem]
    engines = [node for node in called if _operator(node.target) == "execute_engine"]
    strays = [node for node in called if node not in engines and not _operator(node.target).startswith(ASSERTION)]
    counts = {"TensorRT": len(engines), "torch": len(strays)}
    return Placement(
        asked="TensorRT",
        nodes={name: count for name, count in counts.items() if count},
        strays=tuple(f"{node.name} ({node.target})" for node in strays),
    )


class _Engine:
    """A compiled program with page-locked buffers for input and output, on a stream of its own."""

    def __init__(self, program: Any, *, path: Path, index: int, options: Mapping[str, OptionValue]) -> None:
        import torch

        self._path = path
        self._placement = read_graph(program.graph.nodes)
        self._module = _module(program)
        self._cuda_graph = bool(options["cuda_graph"])
        self._stream = torch.cuda.Stream(torch.device(_place(index)))
        self._host = torch.zeros(_input_shape(program), pin_memory=True)
        self._image = torch.zeros(self._host.shape, device=_place(index))
        self._given = self._host.numpy()
        self._answer = self._query(None)
        self._output = torch.empty(self._answer.shape, dtype=torch.float32, pin_memory=True)
        self._query(self._output)

    def run(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
        if image.shape != self._given.shape:
            shapes = f"{self._given.shape}, got {image.shape}"
            msg = f"{self._path}: takes an input of shape {shapes}; prepare the input with its own bundle"
            raise EngineError(msg)
        self._given[...] = image
        self._query(self._output)
        return np.array(self._output.numpy(), np.float32)

    def copy(self, image: NDArray[np.float32], /) -> bool:
        self._given[...] = image
        self._query(self._output, lambda _: self._answer)
        self._output.numpy().copy()
        return True

    def placement(self) -> Placement:
        return self._placement

    def _query(self, output: Any, network: Callable[[Any], Any] | None = None) -> Any:
        """Copy in, run the module or what is given, copy out and wait."""
        import torch

        failed = _one_line(f"{self._path}: Torch-TensorRT failed while running it", "build it again")
        with failed, torch.inference_mode(), torch.cuda.stream(self._stream), self._mode() as module:
            self._image.copy_(self._host, non_blocking=True)
            answer = (network or module)(self._image)
            answer = answer[0] if isinstance(answer, tuple | list) else answer
            if output is not None:
                output.copy_(answer, non_blocking=True)
            self._stream.synchronize()
        return answer

    def _mode(self) -> contextlib.AbstractContextManager[Any]:
        """Switch CUDA graphs on for one run: the switch is the process's, and other engines are measured in turn."""
        import torch_tensorrt

        if self._cuda_graph:
            mode: contextlib.AbstractContextManager[Any] = torch_tensorrt.runtime.enable_cudagraphs(self._module)
            return mode
        return contextlib.nullcontext(self._module)


def _require() -> None:
    """Import all that is needed, TensorRT first: where it is missing, Torch-TensorRT raises a bare Exception."""
    in_the_order_of_the_bus()
    try:
        import tensorrt  # noqa: F401
        import torch  # noqa: F401
        import torch_tensorrt  # noqa: F401
    except (ImportError, OSError) as cause:
        msg = (
            f"runtime 'torch_tensorrt' is not installed ({_reason(cause)}); run `pip install "
            "'slad-edge[torch_tensorrt]'`, with NVIDIA's package index for the libraries of TensorRT"
        )
        raise RuntimeMissingError(msg) from cause


def _index(options: Mapping[str, OptionValue]) -> int:
    """Return the index of the GPU, or raise EngineError where it does not run."""
    index = int(options["device"] or 0)
    reason = _refusal(index)
    if reason is not None:
        msg = f"CUDA device {index} does not run here: {reason}; choose another `device`, or mend driver or torch"
        raise EngineError(msg)
    return index


def _place(index: int) -> str:
    return f"cuda:{index}"


def _refusal(index: int) -> str | None:
    """Say why a CUDA device does not run y = x + x, or None where it does."""
    import torch

    if not torch.cuda.is_available():
        built = f"was built for CUDA {torch.version.cuda}" if torch.version.cuda else "was built without CUDA"
        return f"torch {torch.__version__} {built} and finds no device"
    if index >= torch.cuda.device_count():
        return f"there are {torch.cuda.device_count()}, counted from 0"
    try:
        ones = torch.ones(4, device=_place(index))
        (ones + ones).cpu()
    except RuntimeError as cause:
        return _reason(cause)
    return None


@contextlib.contextmanager
def _caches(options: Mapping[str, OptionValue], *, release: str) -> Iterator[dict[str, Any]]:
    """Yield where `compile` may keep what it learns; left alone, it trusts a folder under /tmp that anyone can make."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        if options["timing_cache"] or options["engine_cache"]:
            folder = cache_folder() / "torch_tensorrt" / release
            folder.mkdir(parents=True, exist_ok=True)
            folder.chmod(0o700)  # fails where it is another user's
        timings = (folder if options["timing_cache"] else Path(scratch)) / "timing.bin"
        if timings.is_file() and timings.stat().st_size > TIMING_CACHE_BYTES:
            timings.unlink()
        chosen: dict[str, Any] = {"timing_cache_path": str(timings)}
        if options["engine_cache"]:  # engines in it take other weights, which ordinary ones do not
            chosen |= {
                "cache_built_engines": True,
                "reuse_cached_engines": True,
                "engine_cache_dir": str(folder / "engines"),
                "engine_cache_size": ENGINE_CACHE_BYTES,
                "immutable_weights": False,
            }
        yield chosen


@contextlib.contextmanager
def _one_line(what: str, remedy: str) -> Iterator[None]:
    """Turn what is raised into one line: a converter that meets what it does not expect raises whatever Python does."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError as cause:
        reason = _reason(cause).removeprefix("CUDA out of memory. ")
        msg = f"{what}: the GPU has not enough memory ({reason}); end what else runs on it"
        raise EngineError(msg) from cause
    except (
        RuntimeError, ValueError, TypeError, AssertionError, LookupError, AttributeError, OSError, ImportError,
        zipfile.BadZipFile,
    ) as cause:  # fmt: skip
        msg = f"{what} ({_reason(cause)}); {remedy}"
        raise EngineError(msg) from cause


def _reason(cause: BaseException) -> str:
    """Return the first line that says something."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    return lines[0] if lines else f"{type(cause).__name__} without a word"


def _module(program: Any) -> Any:
    """Return a program as a module, without checks of each input where torch can leave them out (2.9 and later)."""
    takes = inspect.signature(program.module).parameters
    return program.module(check_guards=False) if "check_guards" in takes else program.module()


def _input_shape(program: Any) -> tuple[int, ...]:
    (name,) = program.graph_signature.user_inputs
    (shape,) = [node.meta["val"].shape for node in program.graph.nodes if node.name == name]
    return tuple(int(size) for size in shape)


def _operator(target: Any) -> str:
    """Return "linear" for "aten.linear.default"."""
    return str(target).partition(".")[2].partition(".")[0] or str(target)


def _is_float(value: Any) -> bool:
    import torch

    return isinstance(value, torch.Tensor) and value.is_floating_point()
