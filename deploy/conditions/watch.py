"""Watches the device while something is measured: who else runs, what the clocks do, whether anything is throttled."""

import math
import os
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from deploy.conditions import cpu
from deploy.conditions.gpu import THROTTLED, words_of
from deploy.conditions.jetson import gpu_mhz, overcurrent_events, throttle_alerts
from deploy.conditions.limits import stopped
from deploy.conditions.nvml import Nvml, open_nvml
from deploy.files import system_text

PROC = Path("/proc")
INTERVAL_S = 1.0
CLOCKS = 8  # read of so many cores at most: reading a clock interrupts its core
Number = TypeVar("Number", int, float)
LOW_SHARE = 0.1  # the clock that is called low is the one a tenth of the samples lie below


@dataclass(frozen=True)
class _Counters:
    """Seconds of the monotonic clock, and of CPU time of all cores; they only grow."""

    at: float
    total: float | None
    busy: float | None
    steal: float | None
    iowait: float | None
    ours: float | None


@dataclass(frozen=True)
class _Events:
    """Counts that only grow; read at both ends alone, since a large machine keeps them in hundreds of files."""

    throttled: int | None
    stopped: int | None
    waited_us: int | None


@dataclass
class _Seen:
    """What goes up and down: a value for each sample that gave one."""

    mhz: list[float] = field(default_factory=list)
    temperature_c: list[float] = field(default_factory=list)
    background: list[float] = field(default_factory=list)
    gpu_mhz: list[float] = field(default_factory=list)
    gpu_temperature_c: list[float] = field(default_factory=list)
    gpu_reasons: list[int] = field(default_factory=list)
    alerts: set[str] = field(default_factory=set)


class Watch:
    """Watches the device from its making to the end of its block; `summary` then says what was seen.

    A thread takes samples while the block runs.

    Args:
        pids: called at each sample; the child processes of this one that belong to the measurement. What they and this
            process use is not background.
        gpu: the NVIDIA GPU that is measured, as `nvidia-smi` counts; None watches only a Jetson's own.
        interval_s: seconds from sample to sample.
    """

    def __init__(
        self,
        *,
        pids: Callable[[], Iterable[int]] = tuple,
        gpu: int | None = None,
        interval_s: float = INTERVAL_S,
    ) -> None:
        self._pids, self._gpu, self._interval_s = pids, gpu, interval_s
        self._nvml: Nvml | None = None
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
        self._seen = _Seen()
        self._first = self._last = self._counters()
        self._before = self._after = _events()
        self._cost_s = 0.0

    def __enter__(self) -> "Watch":
        self._nvml = None if self._gpu is None else open_nvml(self._gpu)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()
        self._sample()
        self._after = _events()
        if self._nvml is not None:
            self._nvml.close()

    def summary(self) -> dict[str, Any]:
        """Return what was seen in JSON values; what could not be read is None.

        Returns:
            `seconds`; `cores`; `background_cores`, what other programs used on average, and the most of one sample;
            `steal_percent` and `iowait_percent` of all cores' time; `waiting_percent`, time in which a task waited for
            a core; `mhz` of the fastest core, and `gpu.mhz`, each {min, low, median, max}, see `LOW_SHARE`;
            `temperature_c`, the highest; `throttled`, events; `alerts`; `stopped`, by the limits of control groups;
            `gpu.reasons` in words and `gpu.throttled`, the number of samples; `cost_percent` of a core for watching.
        """
        first, last, seen, before, after = self._first, self._last, self._seen, self._before, self._after
        seconds = last.at - first.at
        waited = _grown(before.waited_us, after.waited_us)
        return {
            "seconds": round(seconds, 2),
            "cores": os.cpu_count() or 1,
            "load_average": cpu.load_average(),
            "background_cores": _rounded(_background(first, last)),
            "most_background_cores": _rounded(max(seen.background, default=None)),
            "steal_percent": _percent(_grown(first.steal, last.steal), _grown(first.total, last.total)),
            "iowait_percent": _percent(_grown(first.iowait, last.iowait), _grown(first.total, last.total)),
            "waiting_percent": _percent(None if waited is None else waited / 1e6, seconds),
            "mhz": _range(seen.mhz),
            "temperature_c": max(seen.temperature_c, default=None),
            "throttled": _grown(before.throttled, after.throttled),
            "alerts": sorted(seen.alerts),
            "stopped": _grown(before.stopped, after.stopped),
            "gpu": self._gpu_summary(),
            "cost_percent": _percent(self._cost_s, seconds),
        }

    def _gpu_summary(self) -> dict[str, Any] | None:
        seen = self._seen
        if not (seen.gpu_mhz or seen.gpu_temperature_c or seen.gpu_reasons):
            return None
        mask = 0
        for reasons in seen.gpu_reasons:
            mask |= reasons
        return {
            "mhz": _range(seen.gpu_mhz),
            "temperature_c": max(seen.gpu_temperature_c, default=None),
            "reasons": words_of(mask) if seen.gpu_reasons else None,
            "throttled": sum(1 for reasons in seen.gpu_reasons if reasons & THROTTLED) if seen.gpu_reasons else None,
        }

    def _run(self) -> None:
        while not self._ended.wait(self._interval_s):
            self._sample()

    def _sample(self) -> None:
        began = time.thread_time()
        seen, last, now = self._seen, self._last, self._counters()
        # The end of the block can come right after a sample: a share of so short a time says nothing.
        if (background := _background(last, now)) is not None and now.at - last.at >= self._interval_s / 2:
            seen.background.append(background)
        self._last = now
        seen.mhz += [max(clocks)] if (clocks := cpu.clocks_mhz(CLOCKS)) else []
        seen.temperature_c += _known(cpu.hottest_c(cpu.zones_c()))
        seen.alerts |= set(throttle_alerts())
        seen.gpu_mhz += _known(self._nvml.sm_mhz() if self._nvml else gpu_mhz())
        if self._nvml is not None:
            seen.gpu_temperature_c += _known(self._nvml.temperature_c())
            seen.gpu_reasons += [reasons] if (reasons := self._nvml.reasons()) is not None else []
        self._cost_s += time.thread_time() - began

    def _counters(self) -> _Counters:
        ours = _process_seconds(["self", *map(str, self._pids())])
        spent = _cpu_seconds()
        if spent is None:
            return _Counters(at=time.monotonic(), total=None, busy=None, steal=None, iowait=None, ours=ours)
        user, nice, system, _, iowait, irq, softirq, steal = spent
        busy = user + nice + system + irq + softirq
        return _Counters(at=time.monotonic(), total=sum(spent), busy=busy, steal=steal, iowait=iowait, ours=ours)


def _events() -> _Events:
    events = [each for each in (cpu.throttle_events(), overcurrent_events()) if each is not None]
    return _Events(throttled=sum(events) if events else None, stopped=stopped(), waited_us=cpu.waited_us())


def _cpu_seconds() -> list[float] | None:
    """Read what all cores together spent: user, nice, system, idle, iowait, irq, softirq, steal."""
    cells = (system_text(PROC / "stat") or "").partition("\n")[0].split()
    if len(cells) < 9 or cells[0] != "cpu" or not all(cell.isdecimal() for cell in cells[1:9]):
        return None
    ticks = os.sysconf("SC_CLK_TCK")
    return [int(cell) / ticks for cell in cells[1:9]]


def _process_seconds(names: Sequence[str]) -> float | None:
    """Sum the CPU time of processes, and of those of their children that they have waited for.

    A child's time passes to its parent's when it has ended, so that the sum does not shrink then.
    """
    known = [cells for name in names if len(cells := _stat_cells(name)) > 14]
    if not known:
        return None
    return sum(int(cell) for cells in known for cell in cells[11:15]) / os.sysconf("SC_CLK_TCK")


def _stat_cells(name: str) -> list[str]:
    # The program's name stands in brackets, and may itself hold blanks and brackets.
    return (system_text(PROC / name / "stat") or "").rpartition(")")[2].split()


def _background(first: _Counters, last: _Counters) -> float | None:
    """Return the cores that others used between two readings."""
    busy, ours, seconds = _grown(first.busy, last.busy), _grown(first.ours, last.ours), last.at - first.at
    if busy is None or ours is None or seconds <= 0:
        return None
    return max(0.0, (busy - ours) / seconds)


def _grown(first: Number | None, last: Number | None) -> Number | None:
    """Return the difference; a counter that started anew counts from 0."""
    if first is None or last is None:
        return None
    return last - first if last >= first else last


def _range(values: Sequence[float]) -> dict[str, int] | None:
    spread = cpu.spread(values)
    if spread is None:
        return None
    low = sorted(values)[math.ceil(LOW_SHARE * len(values)) - 1]
    return {"min": spread["min"], "low": round(low), "median": spread["median"], "max": spread["max"]}


def _known(value: float | None) -> list[float]:
    return [] if value is None else [value]


def _percent(part: float | None, whole: float | None) -> float | None:
    return None if part is None or not whole else round(100 * part / whole, 2)


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 2)
