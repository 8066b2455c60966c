"""Energy counters of a device, and which of them sees the place that a target runs on."""

import threading
import time
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Protocol

from deploy.conditions.jetson import Rail, rails
from deploy.conditions.nvml import Nvml, open_nvml
from deploy.errors import MeasureError
from deploy.files import system_text
from deploy.kernel import in_their_order, whole_number
from deploy.nvidia import smi_index
from deploy.target import Target

POWERCAP = Path("/sys/class/powercap")
NVIDIA = "NVIDIA GPU"
SAMPLE_S = 0.05  # an INA3221 converts its three channels in about that time

# What all of a board or module takes: one rail, or those that together are all of it (Jetson Linux Developer Guide,
# "Software-Based Power Consumption Modeling"). VDD_IN is that of an Orin Nano or NX, the first sum that of an AGX Orin.
INPUTS = (
    ("VDD_IN",),
    ("VIN",),
    ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"),
    ("VDD_GPU", "VDD_CPU_SOC_MSS", "VIN_SYS_5V0"),
)


class Meter(Protocol):
    """A counter of energy."""

    @property
    def counter(self) -> str:
        """What it counts, by the name that the device gives it."""

    def start(self) -> None:
        """Begin a span.

        Raises:
            MeasureError: the counter cannot be read any more.
        """

    def stop(self) -> float:
        """End the span, and return its joules.

        Raises:
            MeasureError: the counter cannot be read any more.
        """


class Counted:
    """A counter that the device itself keeps.

    Args:
        counter: its name.
        read: returns joules since some time in the past, None where it cannot be read.
        rounds: joules after which it starts from 0 again; None where it does not.
    """

    def __init__(self, counter: str, read: Callable[[], float | None], *, rounds: float | None = None) -> None:
        self.counter = counter
        self._read, self._rounds, self._first = read, rounds, 0.0

    def start(self) -> None:
        """Take the first reading."""
        self._first = self._now()

    def stop(self) -> float:
        """Take the last reading; a counter that is below the first one has gone round once."""
        joules = self._now() - self._first
        if joules < 0 and self._rounds is None:
            msg = f"energy counter {self.counter!r} went back by {-joules:g} J; measure again"
            raise MeasureError(msg)
        return joules if joules >= 0 else joules + (self._rounds or 0.0)

    def _now(self) -> float:
        joules = self._read()
        if joules is None:
            raise MeasureError(_unreadable(self.counter))
        return joules


class Sampled:
    """Power that is read again and again by a thread, and integrated by the trapezoidal rule.

    Args:
        counter: what is read.
        read: returns watts, None where they cannot be read.
        sample_s: seconds from reading to reading.
    """

    def __init__(self, counter: str, read: Callable[[], float | None], *, sample_s: float = SAMPLE_S) -> None:
        self.counter = counter
        self._read, self._sample_s = read, sample_s
        self._points: list[tuple[float, float]] = []
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Take the first reading, and go on in a thread."""
        self._points, self._ended = [], threading.Event()
        self._sample()
        if not self._points:
            raise MeasureError(_unreadable(self.counter))
        self._thread = threading.Thread(target=self._run, name="meter", daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Take the last reading; one that failed in between is bridged by its neighbours."""
        self._ended.set()
        assert self._thread is not None
        self._thread.join()
        known = len(self._points)
        self._sample()
        if len(self._points) == known:
            raise MeasureError(_unreadable(self.counter))
        return sum((end - begin) * (first + last) / 2 for (begin, first), (end, last) in pairwise(self._points))

    def _run(self) -> None:
        while not self._ended.wait(self._sample_s):
            self._sample()

    def _sample(self) -> None:
        watts = self._read()
        if watts is not None:
            self._points.append((time.monotonic(), watts))


def find_meter(target: Target) -> Meter | str:
    """Return the counter that sees the place a target runs on, or the reason why there is none.

    A Jetson's sensors see the whole board, RAPL whole CPUs, NVML one GPU.
    """
    inputs = _input_rails(rails())
    if inputs:
        return Sampled(f"rail {' + '.join(rail.name for rail in inputs)}", lambda: _watts(inputs))
    place = _place(target)
    if place == NVIDIA:
        return _gpu_meter(nvidia_gpu(target))
    return _rapl() if place == "CPU" else f"no energy counter is known here for {target.runtime}'s {place}"


def nvidia_gpu(target: Target) -> int | None:
    """Return the NVIDIA GPU that a target runs on, as `nvidia-smi` counts; None for any other place."""
    return smi_index(int(target.options["device"] or 0)) if _place(target) == NVIDIA else None


def _place(target: Target) -> str:
    provider = target.options.get("provider")
    if target.runtime in {"tensorrt", "torch_tensorrt"} or provider in {"cuda", "tensorrt"}:
        return NVIDIA
    if target.runtime == "openvino":
        return str(target.options["device"])
    return str(target.options["openvino_device"]) if provider == "openvino" else "CPU"


def _gpu_meter(index: int | None) -> Meter | str:
    if index is None:
        return "CUDA_VISIBLE_DEVICES hides the target's GPU"
    nvml = open_nvml(index)
    if nvml is None:
        return f"NVIDIA's management library (libnvidia-ml.so.1) does not open GPU {index}"
    if nvml.energy_mj() is not None:
        return Counted(f"NVML total energy of GPU {index}", lambda: _joules(nvml))
    if nvml.power_w() is not None:
        return Sampled(f"NVML power of GPU {index}", nvml.power_w)
    nvml.close()
    return f"GPU {index} tells neither its energy nor its power"


def _joules(nvml: Nvml) -> float | None:
    millijoules = nvml.energy_mj()
    return None if millijoules is None else millijoules / 1000


def _rapl() -> Meter | str:
    """Return the counters of all CPU packages; most systems show them to root alone, as they tell what is computed."""
    packages = [
        folder
        for folder in in_their_order(list(POWERCAP.glob("intel-rapl:*")))
        if (system_text(folder / "name") or "").startswith("package")
    ]
    if not packages:
        return f"this CPU shows no energy counter (RAPL, {POWERCAP}/intel-rapl:0)"
    if any(whole_number(folder / "energy_uj") is None for folder in packages):
        return (
            f"RAPL's counter {packages[0] / 'energy_uj'} is not readable by this account; "
            "run as root, or `sudo chmod a+r` it until the next start"
        )
    return Packages(packages)


class Packages:
    """The RAPL counters of all CPU packages; each goes round on its own."""

    def __init__(self, folders: Sequence[Path]) -> None:
        self.counter = f"RAPL {' + '.join(system_text(folder / 'name') or folder.name for folder in folders)}"
        self._meters = [_package(folder) for folder in folders]

    def start(self) -> None:
        """Take the first readings."""
        for meter in self._meters:
            meter.start()

    def stop(self) -> float:
        """Take the last readings, and return their sum."""
        return sum(meter.stop() for meter in self._meters)


def _package(folder: Path) -> Counted:
    def joules() -> float | None:
        microjoules = whole_number(folder / "energy_uj")
        return None if microjoules is None else microjoules / 1e6

    rounds = whole_number(folder / "max_energy_range_uj")
    return Counted(str(folder / "energy_uj"), joules, rounds=None if rounds is None else rounds / 1e6)


def _input_rails(found: Sequence[Rail]) -> list[Rail]:
    """Return the rails that together are what the board takes; [] where it shows no such set."""
    named = {rail.name: rail for rail in found}
    names = next((names for names in INPUTS if all(name in named for name in names)), ())
    return [named[name] for name in names]


def _watts(found: Sequence[Rail]) -> float | None:
    powers = [rail.milliwatts() for rail in found]
    known = [power for power in powers if power is not None]
    return sum(known) / 1000 if len(known) == len(powers) else None


def _unreadable(counter: str) -> str:
    return f"energy counter {counter!r} cannot be read any more; measure again, or take `energy_mj` out of the budget"
