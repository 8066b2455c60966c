"""TensorRT, alike for 10.3 (JetPack 6) and 11: the engine is a serialised plan for this GPU and this release.

The functions import TensorRT themselves, and not through a helper, so that mypy can follow every call: `make types`
checks them against the compiled bindings of both releases.
"""

import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from deploy.cuda import Lane, driver_version, gpu_count, use_gpu
from deploy.errors import EngineError, RuntimeMissingError
from deploy.nvidia import describe, l4t
from deploy.runtime import Engine, Option, OptionValue, Placement, Settings, Source
from deploy.trt import Said, TimingCache, cache_file, read_layers

if TYPE_CHECKING:
    import tensorrt as trt

ENGINE_FILE = "engine.plan"
MADE_FROM = "onnx"
THREADED = False
# Every type comes from the file, as the network is strongly typed: TensorRT 11 has nothing else, its switches for FP16
# and INT8 are gone, and a file that says it all builds the same on 10.
EXPORTED_AS = {"fp32": "fp32", "fp16": "fp16", "int8": "int8", "int8_fp16": "int8_fp16"}
OPTIONS = {
    "device": Option(default=0, meaning="index of the GPU"),
    "dla_core": Option(default=None, meaning="index of the DLA core, absent for the GPU"),
    "workspace_mb": Option(default=0, meaning="memory that a layer may work in; 0 is the builder's own choice"),
    "optimization_level": Option(default=3, most=5, meaning="how long the builder searches"),
    "timing_cache": Option(default=True, meaning="whether later builds use what earlier ones have measured"),
    "tf32": Option(default=False, meaning="whether what is FP32 multiplies in TF32, with 10 bits of mantissa"),
    "cuda_graph": Option(default=False, meaning="whether a query launches one captured graph and not every kernel"),
}


def version() -> str:
    """Return the release, such as "10.3.0"."""
    _require()
    import tensorrt as trt

    return str(trt.__version__)


def places() -> dict[str, str | None]:
    """Build and run a network of one layer on every GPU, and on every DLA core that the builder counts."""
    _require()
    try:
        count = gpu_count()
    except EngineError as error:
        return {"GPU 0": str(error)}
    found: dict[str, str | None] = {}
    for device in range(count):
        options = _Options(device=device)
        try:
            name = f"GPU {device} ({use_gpu(device).name})"
            cores = _count_dla_cores()
        except EngineError as error:
            found[f"GPU {device}"] = str(error)
            continue
        found[name] = _refusal(options)
        prefix = "DLA" if device == 0 else f"GPU {device}, DLA"
        found |= {f"{prefix} {core}": _refusal(replace(options, dla_core=core)) for core in range(cores)}
    return found


def probe(options: Mapping[str, OptionValue]) -> dict[str, Any]:
    """Build and run a network of one layer on the device, and describe it."""
    _require()
    wanted = _Options.of(options)
    gpu = use_gpu(wanted.device)
    _check_dla_core(wanted)
    reason = _refusal(wanted)
    if reason is not None:
        msg = f"TensorRT does not run on {wanted.place}: {reason}; choose another `device` (see `slad doctor`)"
        raise EngineError(msg)
    # nvidia-smi may count the devices in another order than CUDA, so CUDA's own name stands here too.
    said = {"name": gpu.name, "compute_capability": gpu.compute_capability, "dla_core": wanted.dla_core}
    return {**describe(wanted.device), "cuda": {**said, "driver": driver_version()}, "tensorrt": version()}


def supports(settings: Settings) -> str | None:
    """Ask the builder where it still tells: TensorRT 11 runs only on GPUs that are fast in all of these."""
    _require()
    gpu = use_gpu(_Options.of(settings.options).device)
    builder = _builder(Said())
    fast = {
        "fp16": not hasattr(builder, "platform_has_fast_fp16") or builder.platform_has_fast_fp16,
        "int8": not hasattr(builder, "platform_has_fast_int8") or builder.platform_has_fast_int8,
    }
    for kind in (kind for kind in fast if kind in settings.precision and not fast[kind]):
        return f"TensorRT says that {gpu.name} (compute capability {gpu.compute_capability}) has no fast {kind}"
    return None


def build(source: Source, engine_path: Path, settings: Settings) -> dict[str, Any]:
    """Parse the file, which may keep its weights beside it, and write the plan."""
    _require()
    import tensorrt as trt

    options, said = _Options.of(settings.options), Said()
    gpu = use_gpu(options.device)
    _check_dla_core(options)
    builder = _builder(said)
    network = _network(builder, said)
    parser = trt.OnnxParser(network, builder.logger)
    if not parser.parse_from_file(str(source.onnx)):
        faults = [_fault(parser.get_error(index)) for index in range(parser.num_errors)] or [said.words()]
        msg = f"{source.onnx}: TensorRT {trt.__version__} cannot parse it: {'; '.join(faults)}; see `slad lint`"
        raise EngineError(msg)
    config = _config(builder, options, said)
    cache = TimingCache(cache_file(gpu, version())) if options.timing_cache else None
    state = cache.load(config, said) if cache else "off"
    engine_path.write_bytes(_plan(builder, network, config, said, name=f"{source.onnx} for {settings.precision}"))
    if cache:
        cache.save(config)
    return {
        "network": "STRONGLY_TYPED",
        "builder_optimization_level": config.builder_optimization_level,
        "WORKSPACE": config.get_memory_pool_limit(trt.MemoryPoolType.WORKSPACE),
        "TF32": config.get_flag(trt.BuilderFlag.TF32),
        "default_device_type": str(config.default_device_type).rpartition(".")[2],
        "DLA_core": options.dla_core,
        "timing_cache": state,
        "cuda_graph": options.cuda_graph,
        "warnings": said.warnings,
    }


def load(engine_path: Path, settings: Settings) -> Engine:
    """Deserialise the plan; only what this device built itself, as a plan holds code."""
    _require()
    try:
        plan = engine_path.read_bytes()
    except OSError as cause:
        msg = f"{engine_path}: TensorRT cannot load it ({cause}); build it again with `dvc repro -sf compile@<target>`"
        raise EngineError(msg) from cause
    return _Engine(plan, name=str(engine_path), options=_Options.of(settings.options))


@dataclass(frozen=True, kw_only=True)
class _Options:
    """`OPTIONS` of one target, with their types."""

    device: int = 0
    dla_core: int | None = None
    workspace_mb: int = 0
    optimization_level: int = 3
    timing_cache: bool = False
    tf32: bool = False
    cuda_graph: bool = False

    @classmethod
    def of(cls, given: Mapping[str, OptionValue]) -> "_Options":
        core = given["dla_core"]
        return cls(
            device=int(given["device"] or 0),
            dla_core=None if core is None else int(core),
            workspace_mb=int(given["workspace_mb"] or 0),
            optimization_level=int(given["optimization_level"] or 0),
            timing_cache=bool(given["timing_cache"]),
            tf32=bool(given["tf32"]),
            cuda_graph=bool(given["cuda_graph"]),
        )

    @property
    def place(self) -> str:
        return f"GPU {self.device}" if self.dla_core is None else f"DLA {self.dla_core}"


class _Engine:
    """A plan with its context, and one lane of buffers."""

    def __init__(self, plan: bytes, *, name: str, options: _Options) -> None:
        import tensorrt as trt

        self._said, self._name, self._options = Said(), name, options
        use_gpu(options.device)
        try:
            runtime = trt.Runtime(self._said.logger())
        except TypeError:  # what pybind11 raises for a null pointer
            self._fail("make a runtime to load it with", "check the GPU's driver")
        if options.dla_core is not None:
            _check_core(options.dla_core, runtime.num_DLA_cores)
            runtime.DLA_core = options.dla_core
        engine = runtime.deserialize_cuda_engine(plan)
        if engine is None:
            self._fail("load it", "build it again with `dvc repro -sf compile@<target>`")
        context = engine.create_execution_context()
        if context is None:
            self._fail("make a context to run it in", "close what else uses the device's memory")
        self._engine = engine
        source, target = self._tensor(trt.TensorIOMode.INPUT), self._tensor(trt.TensorIOMode.OUTPUT)
        said = self._said

        def enqueue(stream: int) -> None:  # knows the lane and this object not, so that both go when they are dropped
            if not context.execute_async_v3(stream):
                msg = f"{name}: TensorRT cannot run it: {said.words()}; build it again"
                raise EngineError(msg)

        self._lane = Lane(
            device=options.device,
            input_shape=_shape(engine.get_tensor_shape(source)),
            output_shape=_shape(engine.get_tensor_shape(target)),
            enqueue=enqueue,
        )
        bound = (
            context.set_tensor_address(source, self._lane.image),
            context.set_tensor_address(target, self._lane.answer),
        )
        if not all(bound):
            self._fail("bind its buffers", "build it again")
        self._lane.start(capture=options.cuda_graph)

    def run(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
        try:
            return self._lane.run(image)
        except EngineError as cause:
            msg = f"{self._name}: {cause}"
            raise EngineError(msg) from cause

    def copy(self, image: NDArray[np.float32], /) -> bool:
        self._lane.copy(image)
        return True

    def placement(self) -> Placement:
        import tensorrt as trt

        inspector = self._engine.create_engine_inspector()
        if inspector is None:
            self._fail("inspect it", "build it again")
        return read_layers(
            inspector.get_engine_information(trt.LayerInformationFormat.JSON),
            asked=self._options.place,
            name=self._name,
        )

    def _tensor(self, mode: "trt.TensorIOMode") -> str:
        """Return the name of the only input, or output."""
        import tensorrt as trt

        engine = self._engine
        names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
        found = {name: engine.get_tensor_dtype(name) for name in names if engine.get_tensor_mode(name) == mode}
        if list(found.values()) != [trt.float32]:
            kind = str(mode).rpartition(".")[2].lower()
            types = {name: str(dtype) for name, dtype in found.items()}
            msg = f"{self._name}: should have one {kind} of float32, has {types}; build it from a bundle of `slad`"
            raise EngineError(msg)
        return str(next(iter(found)))

    def _fail(self, doing: str, remedy: str) -> NoReturn:
        msg = f"{self._name}: TensorRT {version()} cannot {doing}: {self._said.words()}; {remedy}"
        raise EngineError(msg)


def _refusal(options: _Options) -> str | None:
    """Say why a network of one layer does not run where `options` ask, or None where it does."""
    said = Said()
    try:
        builder = _builder(said)
        network = _network(builder, said)
        _add_relu(network, half=options.dla_core is not None)
        plan = _plan(builder, network, _config(builder, options, said), said, name="a network of one layer")
        engine = _Engine(plan, name="a network of one layer", options=options)
        image = np.tile(np.asarray([-1, 2], np.float32), (1, 8, 8, 4))
        right = np.array_equal(engine.run(image), np.maximum(image, 0))
        strays = engine.placement().strays
    except EngineError as error:
        return str(error)
    if not right:
        return "max(x, 0) came out wrong"
    return f"TensorRT ran {strays[0]!r} elsewhere" if strays else None


def _add_relu(network: "trt.INetworkDefinition", *, half: bool) -> None:
    """Add y = max(x, 0); in FP16 for a DLA, which has no FP32."""
    import tensorrt as trt

    tensor = network.add_input("x", trt.float32, trt.Dims([1, 8, 8, 8]))
    if half:
        tensor = network.add_cast(tensor, trt.float16).get_output(0)
    tensor = network.add_activation(tensor, trt.ActivationType.RELU).get_output(0)
    if half:
        tensor = network.add_cast(tensor, trt.float32).get_output(0)
    network.mark_output(tensor)


def _builder(said: Said) -> "trt.Builder":
    import tensorrt as trt

    try:
        return trt.Builder(said.logger())
    except TypeError as cause:  # what pybind11 raises for a null pointer
        msg = f"TensorRT {trt.__version__} cannot make a builder: {said.words()}; check the GPU's driver"
        raise EngineError(msg) from cause


def _network(builder: "trt.Builder", said: Said) -> "trt.INetworkDefinition":
    import tensorrt as trt

    flags = trt.NetworkDefinitionCreationFlag
    typed = 1 << int(flags.STRONGLY_TYPED) if hasattr(flags, "STRONGLY_TYPED") else 0
    network = builder.create_network(typed)
    if network is None:
        msg = f"TensorRT {trt.__version__} cannot make a network: {said.words()}; check the GPU's driver"
        raise EngineError(msg)
    return network


def _config(builder: "trt.Builder", options: _Options, said: Said) -> "trt.IBuilderConfig":
    import tensorrt as trt

    config = builder.create_builder_config()
    if config is None:
        msg = f"TensorRT {trt.__version__} cannot make a configuration: {said.words()}; check the GPU's driver"
        raise EngineError(msg)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # or the inspector tells no types and devices
    config.builder_optimization_level = options.optimization_level
    if options.workspace_mb:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    if not options.tf32:
        config.clear_flag(trt.BuilderFlag.TF32)  # set by default, which makes fp32 another precision
    if options.dla_core is not None:
        config.default_device_type = trt.DeviceType.DLA
        config.DLA_core = options.dla_core
        config.set_flag(trt.BuilderFlag.GPU_FALLBACK)  # seen in the placement, and judged by `allow_fallback`
    return config


def _plan(
    builder: "trt.Builder", network: "trt.INetworkDefinition", config: "trt.IBuilderConfig", said: Said, *, name: str
) -> bytes:
    plan = builder.build_serialized_network(network, config)
    if plan is not None:
        return bytes(plan)
    remedy = "check the exported model with `slad lint`"
    if said.out_of_memory():
        remedy = "it ran out of memory: close other programs, set a smaller `workspace_mb`, or add swap"
    msg = f"{name}: TensorRT cannot build it: {said.words()}; {remedy}"
    raise EngineError(msg)


def _shape(dims: "trt.Dims") -> tuple[int, ...]:
    return tuple(dims[axis] for axis in range(len(dims)))


def _fault(error: "trt.ParserError") -> str:
    code = str(error.code()).rpartition(".")[2]
    return f"{error.node_operator()} {error.node_name()!r}: {' '.join(error.desc().split())} ({code})"


def _count_dla_cores() -> int:
    return int(_builder(Said()).num_DLA_cores)


def _check_dla_core(options: _Options) -> None:
    if options.dla_core is not None:
        _check_core(options.dla_core, _count_dla_cores())


def _check_core(core: int, count: int) -> None:
    if not core < count:
        msg = f"`dla_core` {core!r}: TensorRT counts {count} DLA core(s) here, from 0; take it out of the options"
        raise EngineError(msg)


def _require() -> None:
    """Raise where TensorRT's bindings are not installed."""
    try:
        import tensorrt  # noqa: F401
    except ImportError as cause:
        remedy, release = "run `pip install 'slad-edge[tensorrt]'`", l4t()
        if release is not None:
            remedy = (
                f"on a Jetson (L4T {release}) they are JetPack's own: `sudo apt install python3-libnvinfer`, then "
                "`python3 -m venv --system-site-packages`, and `pip install 'slad-edge[tensorrt]'` in there"
            )
        python = f"{sys.version_info.major}.{sys.version_info.minor}"
        msg = f"runtime 'tensorrt' has no bindings for Python {python} ({cause}); {remedy}"
        raise RuntimeMissingError(msg) from cause
