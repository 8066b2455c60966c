"""Warm-up by a rule: queries go unrecorded until their median stands still."""

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

WINDOWS = 3  # in a row must agree
SPREAD = 1.03  # of the slowest window's median to the fastest one's
WINDOW_S = 0.1  # and at least `FEWEST` queries: shorter ones differ by chance alone
FEWEST = 8


@dataclass(frozen=True)
class WarmUp:
    """What a warm-up found.

    Attributes:
        seconds: that it took.
        queries: that were run.
        stable: whether the last windows agreed; False where the time was up before.
        median_ns: of the last window.
    """

    seconds: float
    queries: int
    stable: bool
    median_ns: int

    def as_dict(self) -> dict[str, Any]:
        """Return the record's form."""
        return asdict(self) | {"seconds": round(self.seconds, 3)}


def warm_up(query: Callable[[], object], *, limit_s: float, clock: Callable[[], int] = time.perf_counter_ns) -> WarmUp:
    """Run queries in windows until the medians of the last three are within 3 % of one another, or the time is up.

    Args:
        query: runs one.
        limit_s: seconds after which it ends at the latest; the window that has begun is run to its end.
        clock: nanoseconds from a fixed point.
    """
    began, queries, medians = clock(), 0, [0]
    while clock() - began < limit_s * 1e9 or queries == 0:
        start = clock()
        samples: list[int] = []
        while len(samples) < FEWEST or clock() - start < WINDOW_S * 1e9:
            before = clock()
            query()
            samples.append(clock() - before)
        queries += len(samples)
        medians.append(int(np.median(samples)))
        last = medians[-WINDOWS:]
        if len(medians) > WINDOWS and max(last) <= SPREAD * min(last):
            return WarmUp((clock() - began) / 1e9, queries, True, medians[-1])
    return WarmUp((clock() - began) / 1e9, queries, False, medians[-1])
