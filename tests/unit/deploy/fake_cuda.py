"""A `cuda.bindings.runtime` whose device is the host's memory: every call is noted, and one can be made to fail.

The test of types compares every function, argument and value here with the real module.
"""

# ruff: noqa: N801, N802, N803, N815, N816 - CUDA's own names

import ctypes
import enum
from collections.abc import Callable
from types import SimpleNamespace

cudaStreamNonBlocking = 1
cudaHostAllocDefault = 0


class cudaError_t(enum.IntEnum):
    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2
    cudaErrorInsufficientDriver = 35
    cudaErrorNoDevice = 100
    cudaErrorIllegalAddress = 700


class cudaMemcpyKind(enum.IntEnum):
    cudaMemcpyHostToDevice = 1
    cudaMemcpyDeviceToHost = 2


class cudaStreamCaptureMode(enum.IntEnum):
    cudaStreamCaptureModeThreadLocal = 1


class State:
    """What the device holds and has been told; `reset` starts anew."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self.gpus = [("Fake Orin", 8, 7)]
        self.fail: dict[str, cudaError_t] = {}
        self.calls: list[str] = []
        self.memory: dict[int, ctypes.Array] = {}
        self.handles: set[int] = set()
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: dict[int, list[Callable[[], None]]] = {}

    def put(self, work: Callable[[], None]) -> None:
        """Do what is put on the stream, or note it while a graph is captured."""
        if self.captured is None:
            work()
        else:
            self.captured.append(work)

    def answer(self, name: str, value: Callable[[], object] | None = None) -> tuple:
        self.calls.append(name)
        code = self.fail.get(name, cudaError_t.cudaSuccess)
        if value is None:
            return (code,)
        return code, (value() if code == cudaError_t.cudaSuccess else None)

    def allocate(self, size: int) -> int:
        block = (ctypes.c_char * size)()
        self.memory[ctypes.addressof(block)] = block
        return ctypes.addressof(block)

    def handle(self) -> int:
        number = 1000 + len(self.calls)
        self.handles.add(number)
        return number

    def keep_graph(self, work: list[Callable[[], None]]) -> int:
        number = self.handle()
        self.graphs[number] = work
        return number


STATE = State()


def cudaGetErrorString(error):
    return cudaError_t.cudaSuccess, error.name.removeprefix("cudaError").lower().encode()


def cudaGetDeviceCount():
    return STATE.answer("cudaGetDeviceCount", lambda: len(STATE.gpus))


def cudaSetDevice(device):
    return STATE.answer("cudaSetDevice")


def cudaGetDeviceProperties(device):
    name, major, minor = STATE.gpus[device]
    return STATE.answer(
        "cudaGetDeviceProperties", lambda: SimpleNamespace(name=name.encode() + b"\0\0", major=major, minor=minor)
    )


def cudaRuntimeGetVersion():
    return STATE.answer("cudaRuntimeGetVersion", lambda: 12060)


def cudaDriverGetVersion():
    return STATE.answer("cudaDriverGetVersion", lambda: 13000)


def cudaStreamCreateWithFlags(flags):
    return STATE.answer("cudaStreamCreateWithFlags", STATE.handle)


def cudaStreamDestroy(stream):
    STATE.handles.remove(stream)
    return STATE.answer("cudaStreamDestroy")


def cudaStreamSynchronize(stream):
    return STATE.answer("cudaStreamSynchronize")


def cudaHostAlloc(size, flags):
    return STATE.answer("cudaHostAlloc", lambda: STATE.allocate(size))


def cudaFreeHost(ptr):
    del STATE.memory[ptr]
    return STATE.answer("cudaFreeHost")


def cudaMalloc(size):
    return STATE.answer("cudaMalloc", lambda: STATE.allocate(size))


def cudaFree(devPtr):
    del STATE.memory[devPtr]
    return STATE.answer("cudaFree")


def cudaMemcpyAsync(dst, src, count, kind, stream):
    assert max(ctypes.sizeof(STATE.memory[address]) for address in (dst, src)) == count
    assert stream in STATE.handles
    STATE.put(lambda: ctypes.memmove(dst, src, count))
    return STATE.answer("cudaMemcpyAsync")


def cudaStreamBeginCapture(stream, mode):
    STATE.captured = []
    return STATE.answer("cudaStreamBeginCapture")


def cudaStreamEndCapture(stream):
    work, STATE.captured = STATE.captured, None
    return STATE.answer("cudaStreamEndCapture", lambda: STATE.keep_graph(work or []))


def cudaGraphInstantiate(graph, flags):
    return STATE.answer("cudaGraphInstantiate", lambda: STATE.keep_graph(STATE.graphs[graph]))


def cudaGraphLaunch(graphExec, stream):
    for work in STATE.graphs[graphExec]:
        work()
    return STATE.answer("cudaGraphLaunch")


def cudaGraphDestroy(graph):
    STATE.handles.remove(graph)
    return STATE.answer("cudaGraphDestroy")


def cudaGraphExecDestroy(graphExec):
    STATE.handles.remove(graphExec)
    return STATE.answer("cudaGraphExecDestroy")
