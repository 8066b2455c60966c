"""Issues the queries of a scenario in plain Python, by LoadGen's rules, where there is no LoadGen."""

import contextlib
import importlib.metadata
import itertools
import random
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from deploy.measure.scenarios import Clock, Outcome, Query, Rules, check_run, judge, no_garbage_collection, reasons

NAME = "slad"
DISTRIBUTIONS = ("slad-edge", "slad-edge-device")  # the second is what a device without the host's half has


def version() -> str:
    """Return the version of slad-edge, or "unknown" where its code was copied and not installed."""
    for name in DISTRIBUTIONS:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(name)
    return "unknown"


def run(
    query: Query,
    rules: Rules,
    *,
    samples: int,
    seed: int,
    expected_ns: int,
    after_query: Callable[[int], None],
    clock: Clock = time.perf_counter_ns,
) -> Outcome:
    """Run one scenario: see `scenarios.Run`."""
    check_run(samples=samples, expected_ns=expected_ns)
    with no_garbage_collection():
        if rules.kind.samples:
            times, issued_ns, took_ns = _stream(
                query, rules, orders=_orders(rules.kind.samples, samples, seed), after_query=after_query, clock=clock
            )
        else:
            times, took_ns = _offline(query, rules.offline_samples(expected_ns), samples=samples, clock=clock)
            issued_ns = took_ns  # LoadGen holds the minimum duration against the end of the one query
            after_query(took_ns)
    seconds = issued_ns / 1e9
    verdict = judge(rules, queries=len(times), seconds=seconds)
    return Outcome(
        rules=rules,
        engine=NAME,
        version=version(),
        samples_ns=np.array(times, np.int64),
        seconds=took_ns / 1e9,
        reasons=reasons(rules, verdict, queries=len(times), seconds=seconds),
    )


def _orders(each: int, samples: int, seed: int) -> Iterator[Sequence[int]]:
    """Draw the images of one query after the other: a random first one and those that follow it, as LoadGen does."""
    draw = random.Random(seed).randrange  # noqa: S311 - an order of images, no secret
    queries = [tuple((first + step) % samples for step in range(each)) for first in range(samples)]
    while True:
        yield queries[draw(samples)]


def _stream(
    query: Query, rules: Rules, *, orders: Iterator[Sequence[int]], after_query: Callable[[int], None], clock: Clock
) -> tuple[list[int], int, int]:
    """Issue query after query until both minima are reached.

    Returns:
        Nanoseconds of each query, and from the start to the last query's issue and to its end.
    """
    times: list[int] = []
    least_queries, least_ns = rules.min_queries, rules.min_ms * 1_000_000
    start = clock()
    for indices in orders:
        issued = clock()
        query(indices)
        took = clock() - issued
        times.append(took)
        after_query(took)
        # The last query's issue counts, not its end: so a slow one does not stand in for a run that is too short.
        if len(times) >= least_queries and issued - start >= least_ns:
            break
    return times, issued - start, issued - start + took


def _offline(query: Query, count: int, *, samples: int, clock: Clock) -> tuple[list[int], int]:
    """Issue one query of `count` samples, one image after the other in turn; return the time of each, and of all."""
    times: list[int] = []
    start = clock()
    for index in itertools.islice(itertools.cycle(range(samples)), count):
        issued = clock()
        query((index,))
        times.append(clock() - issued)
    return times, clock() - start
