"""Times callables of one process in turns, in blocks of random order. Part of `benchmarks.int8`.

So a slow spell of the machine hits all of them, and their ratios hold. A measurement of a target takes a process for
each engine instead; what is compared here shares its process with torch.
"""

import random
import time
from collections.abc import Callable, Mapping

from deploy.measure.scenarios import Clock, no_garbage_collection

BLOCK = 16  # recorded queries of one variant in a row: few enough that a slow spell spans several variants

# Unrecorded queries before each block: the first one finds the other variants' weights in the caches and took up to
# twice the median, a cost of taking turns that a device which runs one model never pays.
LEAD_IN = 1


def measure_interleaved(
    callables: Mapping[str, Callable[[], object]],
    *,
    queries: int,
    seconds: float,
    warmup_seconds: float,
    seed: int,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, list[int]]:
    """Time every callable in randomised blocks until each has enough queries and enough time.

    Args:
        callables: one query each, by variant.
        queries: minimum number of samples of each variant.
        seconds: minimum sum of each variant's own samples.
        warmup_seconds: time each variant runs unrecorded first; at least one query.
        seed: of the order of the blocks.
        clock: nanoseconds from a fixed point.

    Returns:
        Samples in nanoseconds, in the order measured, by variant; all variants have equally many.
    """
    samples: dict[str, list[int]] = {name: [] for name in callables}
    spent = dict.fromkeys(callables, 0)
    order = list(callables)
    shuffle = random.Random(seed).shuffle
    with no_garbage_collection():
        for name in order:
            _warm_up(callables[name], round(warmup_seconds * 1e9), clock)
        while any(len(samples[name]) < queries or spent[name] < seconds * 1e9 for name in order):
            shuffle(order)
            for name in order:
                block = _time_block(callables[name], clock)
                samples[name] += block
                spent[name] += sum(block)
    return samples


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
