"""CUDA through cuda-python: one input, one output and a stream, and every error code as one line."""

import contextlib
import ctypes
import importlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, RuntimeMissingError
from deploy.nvidia import in_the_order_of_the_bus

MODULES = ("cuda.bindings.runtime", "cuda.cudart")  # the second in older releases


@dataclass(frozen=True)
class Gpu:
    """One device as CUDA names it.

    Attributes:
        name: such as "NVIDIA H200" or "Orin".
        compute_capability: such as "8.7".
    """

    name: str
    compute_capability: str


def import_cudart() -> Any:
    """Import CUDA's runtime under either of its names.

    Raises:
        RuntimeMissingError: cuda-python is not installed.
    """
    for name in MODULES:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    remedy = "run `pip install 'slad-edge[tensorrt]'`"
    msg = f"cuda-python is not installed, through which runtime 'tensorrt' reaches the GPU; {remedy}"
    raise RuntimeMissingError(msg)


def checked(result: tuple[Any, ...], doing: str) -> Any:
    """Return the value that stands behind the error code in what a CUDA function returned; None where none stands.

    Args:
        result: the code, and what the function returns.
        doing: "cannot <doing>" is what the message says.

    Raises:
        EngineError: the code is not that of success.
    """
    code = result[0]
    if int(code) == 0:
        return result[1] if len(result) > 1 else None
    words = import_cudart().cudaGetErrorString(code)[1]
    said = words.decode(errors="replace") if isinstance(words, bytes) else str(words)
    remedy = "check driver and memory with `nvidia-smi`, on a Jetson `tegrastats`"
    msg = f"CUDA cannot {doing}: {code.name} ({int(code)}, {said}); {remedy}"
    raise EngineError(msg)


def gpu_count() -> int:
    """Return the number of devices that CUDA can use.

    Raises:
        EngineError: there is none, or no driver that fits.
        RuntimeMissingError: cuda-python is not installed.
    """
    in_the_order_of_the_bus()
    cudart = import_cudart()
    try:
        return int(checked(cudart.cudaGetDeviceCount(), "count the GPUs"))
    except RuntimeError as cause:  # what cuda-python 12.6 raises where it finds no driver
        msg = f"CUDA cannot count the GPUs: {cause}; install the driver, in a container NVIDIA's container runtime"
        raise EngineError(msg) from cause


def use_gpu(index: int) -> Gpu:
    """Make a device the one of this thread, and describe it.

    Raises:
        EngineError: there is no such device.
        RuntimeMissingError: cuda-python is not installed.
    """
    cudart, count = import_cudart(), gpu_count()
    if not index < count:
        msg = f"`device` {index!r}: CUDA finds {count} GPU(s), counted from 0; choose one of those"
        raise EngineError(msg)
    checked(cudart.cudaSetDevice(index), f"use GPU {index}")
    facts = checked(cudart.cudaGetDeviceProperties(index), f"describe GPU {index}")
    name = facts.name.decode(errors="replace") if isinstance(facts.name, bytes) else str(facts.name)
    return Gpu(name.strip("\0 "), f"{facts.major}.{facts.minor}")


def driver_version() -> str:
    """Return the newest CUDA that the driver knows, such as "12.6".

    The version of CUDA's runtime is that of the bindings, and no engine is tied to those.

    Raises:
        EngineError: CUDA does not tell.
        RuntimeMissingError: cuda-python is not installed.
    """
    number = int(checked(import_cudart().cudaDriverGetVersion(), "tell the version of its driver"))
    return f"{number // 1000}.{number % 1000 // 10}"


class Lane:
    """The way of one query: page-locked arrays on the host, their like on the device, and a stream of their own.

    Page-locked memory lets copies run on the stream, and be captured. Everything is freed by `close`, or when the
    object is collected.

    Attributes:
        image: device's address of the input.
        answer: device's address of the output.
        stream: handle of the stream, as TensorRT takes it.
    """

    def __init__(
        self,
        *,
        device: int,
        input_shape: tuple[int, ...],
        output_shape: tuple[int, ...],
        enqueue: Callable[[int], None],
    ) -> None:
        """Allocate.

        Args:
            device: index of the GPU.
            input_shape: of a float32 array.
            output_shape: of a float32 array.
            enqueue: puts the work between the two copies on the stream whose handle it gets; not called before
                `start`.

        Raises:
            EngineError: there is not enough memory.
            RuntimeMissingError: cuda-python is not installed.
        """
        self._cudart = cudart = import_cudart()
        self._device = device
        self._enqueue = enqueue
        self._graph: Any = None
        self._held: list[tuple[Callable[[Any], Any], Any]] = []
        self.close = weakref.finalize(self, _release, cudart, device, self._held)
        with self._closed_on_error():
            checked(cudart.cudaSetDevice(device), f"use GPU {device}")
            self._stream = checked(cudart.cudaStreamCreateWithFlags(cudart.cudaStreamNonBlocking), "make a stream")
            self._held.append((cudart.cudaStreamDestroy, self._stream))
            self.stream = int(self._stream)
            self._input, self.image = self._allocate(input_shape)
            self._output, self.answer = self._allocate(output_shape)

    def start(self, *, capture: bool) -> None:
        """Run once on zeros, so that nothing is set up in the first query, and capture the work where asked.

        Raises:
            EngineError: the work fails, or cannot be captured.
        """
        with self._closed_on_error():
            self._input[...] = 0
            self._run()
            if capture:
                with self._captured():
                    self._put_on_stream()
                self._run()

    def run(self, image: NDArray[np.float32]) -> NDArray[np.float32]:
        """Copy in, work, copy out, and wait.

        Args:
            image: of the input's shape.

        Returns:
            A fresh array of the output's shape.

        Raises:
            EngineError: the shape is another, or the device failed.
        """
        if image.shape != self._input.shape:
            shapes = f"{self._input.shape}, got {image.shape}"
            msg = f"takes an input of shape {shapes}; prepare the input with its own bundle"
            raise EngineError(msg)
        self._input[...] = image
        self._run()
        answer: NDArray[np.float32] = self._output.copy()
        return answer

    def copy(self, image: NDArray[np.float32]) -> None:
        """Copy an input of the input's shape in and an answer out, and wait.

        Raises:
            EngineError: the device failed.
        """
        self._input[...] = image
        checked(self._cudart.cudaSetDevice(self._device), f"use GPU {self._device}")
        self._put_on_stream(work=False)
        checked(self._cudart.cudaStreamSynchronize(self._stream), "finish the copies")
        self._output.copy()

    @contextlib.contextmanager
    def _closed_on_error(self) -> Iterator[None]:
        """Free everything at once: an error that is kept somewhere keeps this object too."""
        try:
            yield
        except EngineError:
            self.close()
            raise

    def _run(self) -> None:
        cudart = self._cudart
        # CUDA keeps the device by thread, and this need not be the thread that loaded the engine.
        checked(cudart.cudaSetDevice(self._device), f"use GPU {self._device}")
        if self._graph is None:
            self._put_on_stream()
        else:
            checked(cudart.cudaGraphLaunch(self._graph, self._stream), "launch the captured graph")
        checked(cudart.cudaStreamSynchronize(self._stream), "finish a query")

    def _put_on_stream(self, *, work: bool = True) -> None:
        cudart, kinds = self._cudart, self._cudart.cudaMemcpyKind
        address, size = self._input.ctypes.data, self._input.nbytes
        checked(
            cudart.cudaMemcpyAsync(self.image, address, size, kinds.cudaMemcpyHostToDevice, self._stream),
            "copy the input to the device",
        )
        if work:
            self._enqueue(self.stream)
        address, size = self._output.ctypes.data, self._output.nbytes
        checked(
            cudart.cudaMemcpyAsync(address, self.answer, size, kinds.cudaMemcpyDeviceToHost, self._stream),
            "copy the output from the device",
        )

    @contextlib.contextmanager
    def _captured(self) -> Iterator[None]:
        """Keep what the block puts on the stream as a graph: the CPU then launches one thing and not every kernel."""
        cudart = self._cudart
        mode = cudart.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(cudart.cudaStreamBeginCapture(self._stream, mode), "begin to capture a graph")
        try:
            yield
        except EngineError:
            cudart.cudaStreamEndCapture(self._stream)  # or the stream would take no work any more
            raise
        graph = checked(cudart.cudaStreamEndCapture(self._stream), "capture a graph; set `cuda_graph` to false")
        self._held.append((cudart.cudaGraphDestroy, graph))
        self._graph = checked(cudart.cudaGraphInstantiate(graph, 0), "make the captured graph ready")
        self._held.append((cudart.cudaGraphExecDestroy, self._graph))

    def _allocate(self, shape: tuple[int, ...]) -> tuple[NDArray[np.float32], int]:
        """Return an array on the host, and the address of as many bytes on the device."""
        cudart, count = self._cudart, int(np.prod(shape, dtype=np.int64))
        size = count * np.dtype(np.float32).itemsize
        host = checked(
            cudart.cudaHostAlloc(size, cudart.cudaHostAllocDefault), f"lock {size} bytes of the host's memory"
        )
        self._held.append((cudart.cudaFreeHost, host))
        device = checked(cudart.cudaMalloc(size), f"allocate {size} bytes of the device's memory")
        self._held.append((cudart.cudaFree, device))
        array = np.ctypeslib.as_array((ctypes.c_float * count).from_address(int(host))).reshape(shape)
        return array, int(device)


def _release(cudart: Any, device: int, held: list[tuple[Callable[[Any], Any], Any]]) -> None:
    """Free what is held, the last first; error codes mean that the device is lost, and its memory with it."""
    cudart.cudaSetDevice(device)
    while held:
        free, handle = held.pop()
        free(handle)
