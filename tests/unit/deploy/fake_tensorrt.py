"""A `tensorrt` that fails where a test tells it to: every class, method and argument of it is TensorRT's own.

The test of types compares it with the stubs of both releases. Its engines sum their input, or take max(x, 0).
"""

# ruff: noqa: A002 - TensorRT's own names

import enum
import json

import numpy as np

from tests.unit.deploy import fake_cuda

__version__ = "10.3.0"
# 10.3 has these and 11 has not: `State.reset` takes them away for the tests of 11.
ONLY_10 = ("platform_has_fast_fp16", "platform_has_fast_int8")


class Enum(enum.IntEnum):
    __str__ = enum.Enum.__str__


class NetworkDefinitionCreationFlag(Enum):
    STRONGLY_TYPED = 1


class DataType(Enum):
    FLOAT = 0
    HALF = 1


class ActivationType(Enum):
    RELU = 0


class MemoryPoolType(Enum):
    WORKSPACE = 0


class ProfilingVerbosity(Enum):
    LAYER_NAMES_ONLY = 0
    DETAILED = 2


class BuilderFlag(Enum):
    GPU_FALLBACK = 3
    TF32 = 7


class DeviceType(Enum):
    GPU = 0
    DLA = 1


class TensorIOMode(Enum):
    INPUT = 1
    OUTPUT = 2


class LayerInformationFormat(Enum):
    JSON = 1


class ErrorCode(Enum):
    INVALID_NODE = 6
    UNSUPPORTED_NODE = 8


float32, float16 = DataType.FLOAT, DataType.HALF


class State:
    """What fails, and what the last build was told."""

    def reset(self, version: str = "10.3.0") -> None:
        self.no_builder = False
        self.parser_errors: list[ParserError] = []
        self.build_error: str | None = None
        self.no_engine: str | None = None
        self.no_context = False
        self.cannot_run: str | None = None
        self.refuse_cache: str | None = None
        self.dla_cores = 0
        self.on_dla = True
        self.network_flags: int | None = None
        self.config: IBuilderConfig | None = None
        self.plan = {"relu": False, "input": [1, 3, 4, 4], "output": [1, 2], "dtype": int(DataType.FLOAT), "extra": 0}
        globals()["__version__"] = version
        for name in ONLY_10:
            if version.startswith("10"):
                setattr(Builder, name, True)
            elif hasattr(Builder, name):
                delattr(Builder, name)


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2

    def __init__(self):
        self.ready = True

    def log(self, severity, msg):
        raise NotImplementedError


class Dims(tuple):
    def __new__(cls, shape):
        return super().__new__(cls, shape)


class IHostMemory(bytes):
    pass


class ITensor:
    pass


class ILayer:
    def get_output(self, index):
        return ITensor()


class INetworkDefinition:
    def __init__(self, builder):
        self._builder = builder
        self._plan = dict(STATE.plan)

    def add_input(self, name, dtype, shape):
        self._plan |= {"relu": True, "input": list(shape), "output": list(shape)}
        return ITensor()

    def add_cast(self, input, to_type):
        return ILayer()

    def add_activation(self, input, type):
        return ILayer()

    def mark_output(self, tensor):
        pass


class ITimingCache:
    def serialize(self):
        return IHostMemory(b"measured")


class IBuilderConfig:
    profiling_verbosity = ProfilingVerbosity.LAYER_NAMES_ONLY
    builder_optimization_level = 3
    default_device_type = DeviceType.GPU
    DLA_core = -1

    def __init__(self):
        self._flags = {BuilderFlag.TF32}
        self._pools = {MemoryPoolType.WORKSPACE: 1 << 33}
        self._cache = None
        STATE.config = self

    def set_flag(self, flag):
        self._flags.add(flag)

    def clear_flag(self, flag):
        self._flags.discard(flag)

    def get_flag(self, flag):
        return flag in self._flags

    def set_memory_pool_limit(self, pool, pool_size):
        self._pools[pool] = pool_size

    def get_memory_pool_limit(self, pool):
        return self._pools[pool]

    def create_timing_cache(self, serialized_timing_cache):
        if serialized_timing_cache and STATE.refuse_cache:
            STATE.logger.log(ILogger.Severity.ERROR, STATE.refuse_cache)
            return None
        return ITimingCache()

    def set_timing_cache(self, cache, ignore_mismatch):
        self._cache = cache
        return True

    def get_timing_cache(self):
        return self._cache


class Builder:
    def __init__(self, logger):
        assert logger.ready
        if STATE.no_builder:
            logger.log(ILogger.Severity.ERROR, "CUDA initialization failure with error: 35")
            msg = "pybind11::init(): factory function returned nullptr"
            raise TypeError(msg)
        STATE.logger = self.logger = logger
        self.num_DLA_cores = STATE.dla_cores

    def create_network(self, flags=0):
        STATE.network_flags = flags
        return INetworkDefinition(self)

    def create_builder_config(self):
        return IBuilderConfig()

    def build_serialized_network(self, network, config):
        assert config.profiling_verbosity == ProfilingVerbosity.DETAILED
        self.logger.log(ILogger.Severity.WARNING, "a warning")
        if STATE.build_error:
            self.logger.log(ILogger.Severity.ERROR, STATE.build_error)
            return None
        dla = config.default_device_type == DeviceType.DLA and STATE.on_dla
        return IHostMemory(json.dumps({**network._plan, "dla": dla}).encode())


class ParserError:
    def __init__(self, node, operator, words, code):
        self._said = node, operator, words, code

    def node_name(self):
        return self._said[0]

    def node_operator(self):
        return self._said[1]

    def desc(self):
        return self._said[2]

    def code(self):
        return self._said[3]


class OnnxParser:
    def __init__(self, network, logger):
        self._network = network

    def parse_from_file(self, model):
        return not STATE.parser_errors

    @property
    def num_errors(self):
        return len(STATE.parser_errors)

    def get_error(self, index):
        return STATE.parser_errors[index]


class Runtime:
    DLA_core = -1

    def __init__(self, logger):
        self._logger = logger
        self.num_DLA_cores = STATE.dla_cores

    def deserialize_cuda_engine(self, serialized_engine):
        try:
            plan = json.loads(serialized_engine)
        except ValueError:
            STATE.no_engine = "IRuntime::deserializeCudaEngine: Error Code 1: Serialization (magic tag does not match)"
        if STATE.no_engine:
            self._logger.log(ILogger.Severity.ERROR, STATE.no_engine)
            return None
        return ICudaEngine(plan, self._logger)


class EngineInspector:
    def __init__(self, plan):
        self._plan = plan

    def get_engine_information(self, format):
        kind = "DLA" if self._plan["dla"] else "kgen"
        layer = {"Name": "body", "LayerType": kind, "Inputs": [{"Format/Datatype": "Half"}], "Outputs": []}
        copy = {"Name": "in", "LayerType": "Reformat", "Inputs": [{"Format/Datatype": "Row major linear FP32"}]}
        return json.dumps({"Layers": [copy, layer], "Bindings": ["x", "y"]})


class ICudaEngine:
    def __init__(self, plan, logger):
        self._plan, self._logger = plan, logger
        self._names = ["x", "y", *(f"y{index}" for index in range(plan["extra"]))]
        self.num_io_tensors = len(self._names)

    def get_tensor_name(self, index):
        return self._names[index]

    def get_tensor_mode(self, name):
        return TensorIOMode.INPUT if name == "x" else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name):
        return DataType(self._plan["dtype"])

    def get_tensor_shape(self, name):
        return Dims(self._plan["input" if name == "x" else "output"])

    def create_execution_context(self):
        return None if STATE.no_context else IExecutionContext(self._plan, self._logger)

    def create_engine_inspector(self):
        return EngineInspector(self._plan)


class IExecutionContext:
    def __init__(self, plan, logger):
        self._plan, self._logger, self._at = plan, logger, {}

    def set_tensor_address(self, name, memory):
        self._at[name] = memory
        return True

    def execute_async_v3(self, stream_handle):
        assert stream_handle in fake_cuda.STATE.handles
        if STATE.cannot_run:
            self._logger.log(ILogger.Severity.ERROR, STATE.cannot_run)
            return False
        fake_cuda.STATE.put(self._compute)
        return True

    def _compute(self):
        source, target = (np.frombuffer(fake_cuda.STATE.memory[self._at[name]], np.float32) for name in ("x", "y"))
        target[:] = np.maximum(source, 0) if self._plan["relu"] else source.sum() * np.arange(1, target.size + 1)


STATE = State()
STATE.reset()
