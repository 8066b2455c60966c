"""ONNX Runtime on the CPU: the engine is the model after all graph optimisations for this CPU."""

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, RuntimeMissingError
from deploy.runtime import Engine

ENGINE_FILE = "engine.onnx"
PROVIDER = "CPUExecutionProvider"
ERRORS_ONLY = 3  # a saved model that fits one CPU only is what is wanted; ONNX Runtime would warn of it
# Fused with its bias, a quantised MatMul becomes a Gemm that ONNX Runtime has no 8-bit kernel for: it then dequantises
# and multiplies in fp32. Left alone it becomes MatMulIntegerToFloat (a ViT of 3 blocks, width 96: 1.19 -> 0.37 ms).
DISABLED = {"int8": ["MatMulAddFusion"]}


def version() -> str:
    """Return the release, such as "1.31.1"."""
    return str(_import_onnxruntime().__version__)


def supports(precision: str) -> str | None:
    """Refuse bf16 and fp16: the CPU provider has no kernels for a whole network, and would compute in fp32."""
    _import_onnxruntime()
    kind = precision.removeprefix("int8_")
    return f"ONNX Runtime's CPU provider has no {kind} kernels" if kind in {"bf16", "fp16"} else None


def build(onnx_path: Path, engine_path: Path, *, precision: str, threads: int) -> dict[str, Any]:
    """Fuse and lay out the graph for this CPU, and write the result."""
    onnxruntime = _import_onnxruntime()
    options = _options(onnxruntime, level="ORT_ENABLE_ALL", threads=threads)
    options.optimized_model_filepath = str(engine_path)
    disabled = DISABLED.get(precision, [])
    try:
        onnxruntime.InferenceSession(str(onnx_path), options, providers=[PROVIDER], disabled_optimizers=disabled)
    except _failures() as cause:
        msg = f"{onnx_path}: ONNX Runtime cannot build it for {precision} ({_reason(cause)}); check the exported model"
        raise EngineError(msg) from cause
    return {
        "threads": threads,
        "provider": PROVIDER,
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "disabled_optimizers": disabled,
    }


def load(engine_path: Path, *, precision: str, threads: int) -> Engine:
    """Load the optimised graph as it is; optimising it again would change what was measured."""
    onnxruntime = _import_onnxruntime()
    options = _options(onnxruntime, level="ORT_DISABLE_ALL", threads=threads)
    try:
        session = onnxruntime.InferenceSession(str(engine_path), options, providers=[PROVIDER])
    except _failures() as cause:
        msg = (
            f"{engine_path}: ONNX Runtime cannot load it for {precision} ({_reason(cause)}); "
            "build it again with `dvc repro -f compile@<target>`"
        )
        raise EngineError(msg) from cause
    return _Engine(session, name=str(engine_path))


class _Engine:
    """One session; each run allocates its own output."""

    def __init__(self, session: Any, *, name: str) -> None:
        self._name = name
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = [session.get_outputs()[0].name]
        self._failures = _failures()

    def __call__(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
        try:
            output: NDArray[np.float32] = self._session.run(self._output, {self._input: image})[0]
        except self._failures as cause:
            msg = f"{self._name}: ONNX Runtime cannot run it ({_reason(cause)}); prepare the input with its own bundle"
            raise EngineError(msg) from cause
        return output


def _options(onnxruntime: Any, *, level: str, threads: int) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    return options


def _failures() -> tuple[type[Exception], ...]:
    """Return what ONNX Runtime raises: its exceptions have no common base but Exception."""
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    names = (
        "Fail", "InvalidArgument", "NoSuchFile", "NoModel", "EngineError", "RuntimeException", "InvalidProtobuf",
        "NotImplemented", "InvalidGraph", "EPFail",
    )  # fmt: skip
    own = tuple(getattr(state, name) for name in names if hasattr(state, name))
    return (*own, RuntimeError, ValueError)


def _reason(cause: BaseException) -> str:
    """Return the first line without the error code in front."""
    return (str(cause).splitlines() or [type(cause).__name__])[0].rpartition(" : ")[2].strip()


def _import_onnxruntime() -> Any:
    """Import ONNX Runtime and switch off the events that its Windows builds send."""
    try:
        import onnxruntime
    except ImportError as cause:
        msg = f"runtime 'onnxruntime' is not installed ({cause}); run `pip install 'slad-edge[onnxruntime]'`"
        raise RuntimeMissingError(msg) from cause
    onnxruntime.disable_telemetry_events()
    return onnxruntime
