"""ONNX Runtime: the engine is the model after all graph optimisations, or with the provider's own engine embedded.

What it says to offer is no proof: a provider whose libraries are missing is left out of a session without an error, and
nodes that a provider does not take go to the CPU. So a session is asked what it holds, and a run where each node ran.
"""

import ctypes
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, RuntimeMissingError
from deploy.nvidia import describe, in_the_order_of_the_bus, infer_version
from deploy.runtime import Engine, Option, OptionValue, Placement, Settings, Source

ENGINE_FILE = "engine.onnx"
MADE_FROM = "onnx"
THREADED = True
EXPORTED_AS = {
    "fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8", "int8_bf16": "int8", "int8_fp16": "int8_fp16",
}  # fmt: skip
OPTIONS = {
    "provider": Option(default="cpu", choices=("cpu", "cuda", "tensorrt", "openvino"), meaning="what runs the nodes"),
    "device": Option(default=0, meaning="index of the GPU", only_with=("provider", ("cuda", "tensorrt"))),
    "openvino_device": Option(
        default="CPU",
        pattern=r"CPU|(GPU|NPU)(\.[0-9]+)?",
        meaning="OpenVINO's device: CPU, GPU, GPU.1, NPU",
        only_with=("provider", ("openvino",)),
    ),
    "workspace_mb": Option(
        default=0,
        meaning="memory that building may take, 0 for the provider's choice",
        only_with=("provider", ("tensorrt",)),
    ),
}
CPU = "CPUExecutionProvider"
PROVIDERS = {
    "cpu": CPU,
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
}
# What each provider can compute in; CUDA runs quantised files too, but dequantised: it has no kernels for Q/DQ.
PRECISIONS = {
    "cpu": ("fp32", "int8"),
    "cuda": ("fp32", "fp16"),
    "tensorrt": ("fp32", "fp16", "int8", "int8_fp16"),
}
# Of OpenVINO's provider by device: unlike OpenVINO it does not tell what the device has, and computes bf16 and FP16 in
# FP32 without a word on a CPU that lacks them.
OPENVINO_PRECISIONS = {
    "CPU": ("fp32", "int8"),
    "GPU": ("fp32", "fp16", "int8", "int8_fp16"),
    "NPU": ("fp16", "int8_fp16"),
}
FLOATS = {"fp32": "f32", "fp16": "f16", "int8": "f32", "int8_fp16": "f16"}
SOURCE_PLACE = re.compile(r"^\S+\.(?:cc|cpp|h):\d+ .*?\) ")
SILENT = 4  # what goes wrong is raised, in one line; ONNX Runtime would also print it, in several
# Fused with its bias, a quantised MatMul becomes a Gemm that ONNX Runtime has no 8-bit kernel for: it then dequantises
# and multiplies in fp32. Left alone it becomes MatMulIntegerToFloat (a ViT of 3 blocks, width 96: 1.19 -> 0.37 ms).
DISABLED = {"int8": ["MatMulAddFusion"]}
# y = x + x of 4 numbers, opset 17: the smallest network that shows whether a provider executes.
SMALLEST = (
    b'\x08\x08:=\n\x0e\n\x01x\n\x01x\x12\x01y"\x03Add\x12\x01pZ\x13\n\x01x\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08'
    b"\x01\n\x02\x08\x04b\x13\n\x01y\x12\x0e\n\x0c\x08\x01\x12\x08\n\x02\x08\x01\n\x02\x08\x04B\x04\n\x00\x10\x11"
)


def version() -> str:
    """Return the release, such as "1.31.1"."""
    return str(_import_onnxruntime().__version__)


def places() -> dict[str, str | None]:
    """Run the smallest network on every provider that this build of ONNX Runtime names."""
    names = _import_onnxruntime().get_available_providers()
    kinds = {name: kind for kind, name in PROVIDERS.items()}
    return {name: _refusal(kinds[name]) if name in kinds else "this project does not use it" for name in names}


def probe(options: Mapping[str, OptionValue]) -> dict[str, Any]:
    """Run the smallest network on the provider, and describe the device behind it."""
    _import_onnxruntime()
    kind = str(options["provider"])
    reason = _refusal(kind, options)
    if reason is not None:
        msg = (
            f"ONNX Runtime's {PROVIDERS[kind]} does not run here: {reason}; install what it needs, "
            "or choose another `provider` (`slad doctor` shows which ones run)"
        )
        raise EngineError(msg)
    facts: dict[str, Any] = {"provider": PROVIDERS[kind]}
    if kind == "openvino":
        facts["device"] = options["openvino_device"]
    if kind in {"cuda", "tensorrt"}:
        facts |= describe(int(options["device"] or 0))
    if kind == "tensorrt":  # its plan is in the engine, and belongs to its release
        facts["tensorrt"] = infer_version()
    return facts


def supports(settings: Settings) -> str | None:
    """Refuse what the provider has no kernels for: it would compute in fp32 and say nothing."""
    _import_onnxruntime()
    kind = str(settings.options["provider"])
    device = str(settings.options["openvino_device"]).partition(".")[0]
    known = OPENVINO_PRECISIONS[device] if kind == "openvino" else PRECISIONS[kind]
    if settings.precision in known:
        return None
    if kind == "openvino":
        return f"ONNX Runtime's OpenVINO provider does not tell whether {device} has {settings.precision}"
    lacking = settings.precision.removeprefix("int8_") if "int8" in known else settings.precision
    return f"ONNX Runtime's {PROVIDERS[kind].removesuffix('ExecutionProvider')} provider has no {lacking} kernels"


def build(source: Source, engine_path: Path, settings: Settings) -> dict[str, Any]:
    """Fuse and lay out the graph for this device, and write the result."""
    onnxruntime, kind = _import_onnxruntime(), str(settings.options["provider"])
    # OpenVINO's provider optimises for itself, when the engine is loaded: one that it has written on a CPU, it does not
    # read back (onnxruntime-openvino 1.24.1). So its engine is the model as it is.
    plain = kind == "openvino"
    level = "ORT_DISABLE_ALL" if plain else "ORT_ENABLE_ALL"
    options = _session_options(onnxruntime, level=level, settings=settings)
    disabled = DISABLED.get(settings.precision, []) if kind == "cpu" else []
    if kind == "tensorrt":  # a model of one node that holds TensorRT's own engine
        options.add_session_config_entry("ep.context_enable", "1")
        options.add_session_config_entry("ep.context_file_path", str(engine_path))
        options.add_session_config_entry("ep.context_embed_mode", "1")
    else:
        options.optimized_model_filepath = str(engine_path)
    writer = replace(settings, options={**settings.options, "provider": "cpu"}) if plain else settings
    try:
        _open(onnxruntime, source.onnx, options, writer, disabled=disabled)
    except _failures() as cause:
        msg = (
            f"{source.onnx}: ONNX Runtime cannot build it for {settings.precision} ({_reason(cause)}); "
            "check the exported model"
        )
        raise EngineError(msg) from cause
    return {
        "provider": PROVIDERS[kind],
        "provider_options": _provider_options(settings),
        "graph_optimization_level": level,
        "disabled_optimizers": disabled,
    }


def load(engine_path: Path, settings: Settings) -> Engine:
    """Load the optimised graph as it is; optimising it again would change what was measured."""
    onnxruntime = _import_onnxruntime()
    try:
        session = _open_engine(onnxruntime, engine_path, settings)
    except _failures() as cause:
        msg = (
            f"{engine_path}: ONNX Runtime cannot load it for {settings.precision} ({_reason(cause)}); "
            "build it again with `dvc repro -sf compile@<target>`"
        )
        raise EngineError(msg) from cause
    return _Engine(session, engine_path, settings)


class _Engine:
    """One session; each run allocates its own output."""

    def __init__(self, session: Any, path: Path, settings: Settings) -> None:
        self._path = path
        self._settings = settings
        self._session = session
        self._input = session.get_inputs()[0].name
        self._output = [session.get_outputs()[0].name]
        self._failures = _failures()
        self._unreadable: tuple[type[Exception], ...] = (OSError, *self._failures)

    def run(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
        try:
            output: NDArray[np.float32] = self._session.run(self._output, {self._input: image})[0]
        except self._failures as cause:
            msg = f"{self._path}: ONNX Runtime cannot run it ({_reason(cause)}); prepare the input with its own bundle"
            raise EngineError(msg) from cause
        return output

    def copy(self, image: NDArray[np.float32], /) -> bool:
        """On a GPU with the runtime's own allocations, as in a query; on the CPU it reads the caller's array."""
        if self._settings.options["provider"] not in {"cuda", "tensorrt"}:
            return False
        place = ("cuda", int(str(self._settings.options["device"])))
        value = _import_onnxruntime().OrtValue
        try:
            value.ortvalue_from_numpy(image, *place)
            value.ortvalue_from_shape_and_type(self._session.get_outputs()[0].shape, np.float32, *place).numpy()
        except self._failures as cause:
            msg = f"{self._path}: the copies to and from the GPU failed ({_reason(cause)}); build it again"
            raise EngineError(msg) from cause
        return True

    def placement(self) -> Placement:
        """Profile one run: a session of its own, because profiling slows one down until it ends."""
        onnxruntime = _import_onnxruntime()
        try:
            with tempfile.TemporaryDirectory() as folder:
                session = _open_engine(onnxruntime, self._path, self._settings, profile=str(Path(folder) / "run"))
                needed = session.get_inputs()[0]
                session.run(self._output, {needed.name: np.zeros(needed.shape, np.float32)})
                events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
        except self._unreadable as cause:
            msg = f"{self._path}: ONNX Runtime does not tell where it runs ({_reason(cause)}); build it again"
            raise EngineError(msg) from cause
        return read_profile(events, asked=PROVIDERS[str(self._settings.options["provider"])])


def read_profile(events: list[dict[str, Any]], *, asked: str) -> Placement:
    """Read where the nodes of a profiled run were executed.

    Args:
        events: what `end_profiling` wrote.
        asked: the provider that should run all nodes.
    """
    ran = [event for event in events if event.get("cat") == "Node" and "provider" in event.get("args", {})]
    names = {event["name"].removesuffix("_kernel_time"): event["args"] for event in ran}
    kinds = Counter(next(iter((args.get("input_type_shape") or [{}])[0]), "unknown") for args in names.values())
    fused = asked not in {PROVIDERS["cpu"], PROVIDERS["cuda"]}  # one node, whose input says nothing of what is within
    return Placement(
        asked=asked,
        nodes=dict(Counter(args["provider"] for args in names.values())),
        precisions={} if fused else dict(kinds),
        strays=tuple(name for name, args in names.items() if args["provider"] != asked),
    )


def _open_engine(onnxruntime: Any, path: Path, settings: Settings, *, profile: str | None = None) -> Any:
    options = _session_options(onnxruntime, level="ORT_DISABLE_ALL", settings=settings)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = profile
    return _open(onnxruntime, path, options, settings)


def _open(
    onnxruntime: Any, model: Path | bytes, options: Any, settings: Settings, *, disabled: list[str] | None = None
) -> Any:
    """Open a session on the provider that is asked for, or raise: left alone, ONNX Runtime falls back to the CPU."""
    kind = str(settings.options["provider"])
    built_in = onnxruntime.get_available_providers()
    if PROVIDERS[kind] not in built_in:
        msg = f"this build of ONNX Runtime has no {PROVIDERS[kind]}, but {', '.join(built_in)}"
        raise EngineError(msg)
    if kind in {"cuda", "tensorrt"}:
        in_the_order_of_the_bus()
        if hasattr(onnxruntime, "preload_dlls"):
            onnxruntime.preload_dlls()  # CUDA's libraries as pip installs them, where the loader does not look
    session = onnxruntime.InferenceSession(
        model if isinstance(model, bytes) else str(model),
        options,
        providers=[(PROVIDERS[kind], _provider_options(settings))],
        disabled_optimizers=disabled or [],
        enable_fallback=0,
    )
    if session.get_providers()[0] != PROVIDERS[kind]:
        reason = _missing_library(onnxruntime, kind) or "no device for it was found, or its driver is too old"
        msg = f"ONNX Runtime left {PROVIDERS[kind]} out of the session: {reason}"
        raise EngineError(msg)
    return session


def _session_options(onnxruntime: Any, *, level: str, settings: Settings) -> Any:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = getattr(onnxruntime.GraphOptimizationLevel, level)
    options.log_severity_level = SILENT
    options.intra_op_num_threads = settings.threads
    options.inter_op_num_threads = 1
    return options


def _provider_options(settings: Settings) -> dict[str, str]:
    """Translate to the provider's own names; TensorRT before 11 wants to be told of types that the file has already."""
    options, precision = settings.options, settings.precision
    match options["provider"]:
        case "cuda":
            # TF32, on by default, has 10 bits of mantissa.
            return {"device_id": str(options["device"]), "use_tf32": "0"}
        case "tensorrt":
            chosen = {"device_id": str(options["device"])}
            if options["workspace_mb"]:
                chosen["trt_max_workspace_size"] = str(int(options["workspace_mb"]) * 2**20)
            if "fp16" in precision:
                chosen["trt_fp16_enable"] = "1"
            if precision.startswith("int8"):
                chosen["trt_int8_enable"] = "1"
            return chosen
        case "openvino":
            device = str(options["openvino_device"])
            load: dict[str, Any] = {"INFERENCE_PRECISION_HINT": FLOATS[precision], "PERFORMANCE_HINT": "LATENCY"}
            if settings.threads and device == "CPU":
                load["INFERENCE_NUM_THREADS"] = str(settings.threads)
            return {"device_type": device, "load_config": json.dumps({device.partition(".")[0]: load})}
        case _:
            return {}


def _refusal(kind: str, options: Mapping[str, OptionValue] | None = None) -> str | None:
    """Say why a provider does not run the smallest network, or None where it does."""
    onnxruntime = _import_onnxruntime()
    chosen = {name: option.default for name, option in OPTIONS.items()} | dict(options or {}) | {"provider": kind}
    settings = Settings(precision="fp32", threads=1, options=chosen)
    try:
        session = _open(
            onnxruntime, SMALLEST, _session_options(onnxruntime, level="ORT_DISABLE_ALL", settings=settings), settings
        )
        session.run(None, {"x": np.ones((1, 4), np.float32)})
    except _failures() as cause:
        return _missing_library(onnxruntime, kind) or _reason(cause)
    except EngineError as cause:
        return str(cause)
    return None


def _missing_library(onnxruntime: Any, kind: str) -> str | None:
    """Load a provider's own library to learn what it misses: ONNX Runtime prints that and does not raise it."""
    library = next((Path(onnxruntime.__file__).parent / "capi").glob(f"*onnxruntime_providers_{kind}.*"), None)
    if library is None:
        return None
    try:
        ctypes.CDLL(str(library))
    except OSError as cause:
        return str(cause)
    return None


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
    """Return the first line without the error code and the place in ONNX Runtime's sources in front."""
    line = (str(cause).splitlines() or [type(cause).__name__])[0].rpartition(" : ")[2]
    return SOURCE_PLACE.sub("", line).strip()


def _import_onnxruntime() -> Any:
    """Import ONNX Runtime, and switch off its own printing and the events that its Windows builds send."""
    try:
        import onnxruntime
    except ImportError as cause:
        msg = f"runtime 'onnxruntime' is not installed ({cause}); run `pip install 'slad-edge[onnxruntime]'`"
        raise RuntimeMissingError(msg) from cause
    onnxruntime.disable_telemetry_events()
    onnxruntime.set_default_logger_severity(SILENT)
    return onnxruntime
