"""A timer that knows no model: it times callables without arguments, and describes samples.

Variants are timed in turns, in blocks of random order, so that a slow spell of the machine hits all of them and their
ratios hold. MLPerf's rule for one stream: a minimum number of queries and a minimum duration, both.
"""

import contextlib
import gc
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np

BLOCK = 16  # recorded queries of one variant in a row: few enough that a slow spell spans several variants

# Unrecorded queries before each block: the first one finds the other variants' weights in the caches and took up to
# twice the median, a cost of taking turns that a device which runs one model never pays.
LEAD_IN = 1

CONFIDENCE = 0.95

# Up to here the binomial is summed exactly; beyond, the normal approximation is off by less than one rank in 20.
EXACT_UP_TO = 5000

Clock = Callable[[], int]


def measure_interleaved(
    callables: Mapping[str, Callable[[], object]],
    *,
    queries: int,
    seconds: float,
    warmup_seconds: float,
    seed: int,
    on_progress: Callable[[str], None],
    clock: Clock = time.perf_counter_ns,
) -> dict[str, list[int]]:
    """Time every callable in randomised blocks until each has enough queries and enough time.

    Args:
        callables: one query each, by variant.
        queries: minimum number of samples of each variant.
        seconds: minimum sum of each variant's own samples.
        warmup_seconds: time each variant runs unrecorded first; at least one query.
        seed: of the order of the blocks.
        on_progress: called with one line about every two seconds.
        clock: nanoseconds from a fixed point.

    Returns:
        Samples in nanoseconds, in the order measured, by variant; all variants have equally many.
    """
    samples: dict[str, list[int]] = {name: [] for name in callables}
    spent = dict.fromkeys(callables, 0)
    order = list(callables)
    shuffle = random.Random(seed).shuffle  # noqa: S311 - an order of measurement, no secret
    report = _Reporter(on_progress, clock)
    with _no_garbage_collection():
        for name in order:
            _warm_up(callables[name], round(warmup_seconds * 1e9), clock)
        while any(len(samples[name]) < queries or spent[name] < seconds * 1e9 for name in order):
            shuffle(order)
            for name in order:
                block = _time_block(callables[name], clock)
                samples[name] += block
                spent[name] += sum(block)
            report(samples, spent, queries=queries, seconds=seconds)
    return samples


def percentile(samples: Sequence[int], q: float) -> int:
    """Return the smallest sample that at least the share `q` of all samples does not exceed (nearest rank).

    Args:
        samples: at least one.
        q: in 0..1, such as 0.9.
    """
    ordered = sorted(samples)
    return ordered[max(math.ceil(round(q * len(ordered), 9)), 1) - 1]


def percentile_interval(samples: Sequence[int], q: float) -> tuple[int, int]:
    """Return a 95 % confidence interval of a percentile that assumes nothing about the distribution.

    With B ~ Binomial(n, q), the interval of the order statistics x_(l) and x_(u) covers the percentile with probability
    P(l <= B < u); l is the largest and u the smallest rank that leave at most 2.5 % on their side (Conover,
    Practical Nonparametric Statistics, 3.2). Where too few samples allow no such rank the extreme sample stands in, and
    the coverage on that side is lower. Above 5000 samples the ranks come from the normal approximation.

    Args:
        samples: at least one.
        q: in 0..1, such as 0.9.
    """
    ordered = sorted(samples)
    lower, upper = interval_ranks(len(ordered), q)
    return ordered[lower - 1], ordered[upper - 1]


def interval_ranks(count: int, q: float) -> tuple[int, int]:
    """Return the ranks l and u, counted from 1, of `percentile_interval` for `count` samples."""
    tail = (1 - CONFIDENCE) / 2
    if count > EXACT_UP_TO:
        half = 1.959964 * math.sqrt(count * q * (1 - q))
        lower, upper = math.floor(count * q - half + 0.5), math.ceil(count * q + half + 0.5)
        return max(lower, 1), min(upper, count)
    lower, upper, below = 0, count + 1, 0.0
    for successes in range(count + 1):
        # Here below = P(B < successes), so `successes` may be l while it is small, and u once 1 - below is small.
        if below <= tail:
            lower = successes
        if 1 - below <= tail:
            upper = successes
            break
        below += _binomial(count, successes, q)
    return max(lower, 1), min(upper, count)


def summarise(samples_ns: Sequence[int]) -> dict[str, float]:
    """Describe samples in milliseconds, rounded to 0.1 microseconds.

    Args:
        samples_ns: at least one, in nanoseconds.

    Returns:
        p50, p90, p99, mean, minimum, maximum, and the 95 % intervals of p50 and p90.
    """
    p50_low, p50_high = percentile_interval(samples_ns, 0.5)
    p90_low, p90_high = percentile_interval(samples_ns, 0.9)
    values: dict[str, float] = {
        "p50": percentile(samples_ns, 0.5),
        "p90": percentile(samples_ns, 0.9),
        "p99": percentile(samples_ns, 0.99),
        "mean": float(np.mean(samples_ns)),
        "minimum": min(samples_ns),
        "maximum": max(samples_ns),
        "p50_low": p50_low,
        "p50_high": p50_high,
        "p90_low": p90_low,
        "p90_high": p90_high,
    }
    return {name: round(value / 1e6, 4) for name, value in values.items()}


def _binomial(count: int, successes: int, q: float) -> float:
    """Return P(B = successes), through logarithms because the coefficients overflow."""
    log = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return math.exp(log + successes * math.log(q) + (count - successes) * math.log1p(-q))


def _warm_up(call: Callable[[], object], nanoseconds: int, clock: Clock) -> None:
    start = clock()
    call()
    while clock() - start < nanoseconds:
        call()


def _time_block(call: Callable[[], object], clock: Clock) -> list[int]:
    times = []
    for _ in range(LEAD_IN):
        call()
    for _ in range(BLOCK):
        start = clock()
        call()
        times.append(clock() - start)
    return times


@contextlib.contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from pausing a query; it is put back as it was."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


class _Reporter:
    """Says between two rounds, about every two seconds, how far the slowest requirement is."""

    def __init__(self, on_progress: Callable[[str], None], clock: Clock) -> None:
        self._on_progress = on_progress
        self._clock = clock
        self._last = clock()

    def __call__(
        self, samples: Mapping[str, list[int]], spent: Mapping[str, int], *, queries: int, seconds: float
    ) -> None:
        now = self._clock()
        if now - self._last < 2_000_000_000:
            return
        self._last = now
        count = min(len(block) for block in samples.values())
        elapsed = min(spent.values()) / 1e9
        self._on_progress(f"latency: {count} of {queries} queries, {elapsed:.1f} of {seconds:g} s, in every variant")
