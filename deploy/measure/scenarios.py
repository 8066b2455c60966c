"""MLPerf's scenarios: how long a run lasts, when it counts, and what it gives. LoadGen's rules, without LoadGen.

They are those of LoadGen 6.0 (github.com/mlcommons/inference, loadgen/results.cc, early_stopping.cc and
issue_query_controller.cc), so that `issuer`, on devices without it, comes to the verdicts and numbers of `loadgen`.
"""

import contextlib
import gc
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from deploy.errors import MeasureError
from deploy.measure.statistics import log_binomial, percentile_interval, throughput_interval

CONFIDENCE = 0.99  # of the early-stopping estimate
SLACK = 1.1  # LoadGen's: samples of an Offline query beyond those that the expected rate asks for

Query = Callable[[Sequence[int]], None]
Clock = Callable[[], int]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """How queries come.

    Attributes:
        percentile: of the latency, in 0..1, that is the result; None where that is samples per second.
        also: further percentiles of which an early-stopping estimate is given.
        samples: in a query; 0 for all in one.
    """

    percentile: float | None
    also: tuple[float, ...] = ()
    samples: int


SCENARIOS: Mapping[str, Scenario] = {
    "SingleStream": Scenario(percentile=0.9, also=(0.99,), samples=1),
    "MultiStream": Scenario(percentile=0.99, samples=8),
    "Offline": Scenario(percentile=None, samples=0),
}


@dataclass(frozen=True, kw_only=True)
class Rules:
    """What a run must reach, both of it.

    Attributes:
        scenario: one of SCENARIOS.
        min_queries: to be issued; of Offline samples.
        min_seconds: from the first query's issue to the last one's; of Offline to the end of its query. Whole
            milliseconds count.

    Raises:
        MeasureError: the scenario is unknown, or a minimum is too small.
    """

    scenario: str
    min_queries: int
    min_seconds: float

    def __post_init__(self) -> None:
        if self.scenario not in SCENARIOS:
            msg = f"scenario {self.scenario!r}: not one of {', '.join(SCENARIOS)}; name one of them"
            raise MeasureError(msg)
        if self.min_queries < 1 or not 0 <= self.min_seconds < math.inf:
            msg = (
                f"minimum of {self.min_queries!r} queries and {self.min_seconds!r} s; "
                "give at least 1 query and 0 s or more"
            )
            raise MeasureError(msg)

    @property
    def kind(self) -> Scenario:
        """The scenario itself."""
        return SCENARIOS[self.scenario]

    @property
    def min_ms(self) -> int:
        """The minimum duration as LoadGen takes it."""
        return round(self.min_seconds * 1000)

    def offline_samples(self, expected_ns: int) -> int:
        """Return how many samples the one query of Offline has, for an expected time of each."""
        return max(self.min_queries, int(SLACK * (self.min_ms / 1000) * (1e9 / expected_ns)))


class Run(Protocol):
    """One run of one scenario: what `issuer.run` and `loadgen.run` both are."""

    def __call__(
        self,
        query: Query,
        rules: Rules,
        *,
        samples: int,
        seed: int,
        expected_ns: int,
        after_query: Callable[[int], None],
        clock: Clock = ...,
    ) -> "Outcome":
        """Issue queries one after the other until the rules are met, with Python's garbage collector off.

        The time of a query is that of the call, by `clock`. Pauses in `after_query` are in no query's time, but count
        for the minimum duration.

        Args:
            query: runs inference on the images of these indices; may tell of progress, as it is called for every
                sample of Offline too, one at a time.
            rules: what to reach.
            samples: images that may be asked for, by an index in 0..samples - 1; at least one.
            seed: of the order of the images.
            expected_ns: what a query, of Offline a sample, takes where it is fast. Offline issues as many samples as
                fill the minimum duration at that speed, and a tenth more; LoadGen prepares twice the queries that
                fill it, with 340 bytes each, and ends too early where they run out.
            after_query: called between two queries with the nanoseconds that the last one took; of Offline once, with
                those of the whole query.
            clock: nanoseconds from a fixed point, never going back.

        Raises:
            MeasureError: there is no image, or no expected time.
            BaseException: whatever `query` or `after_query` raised.
        """


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a run met each rule.

    Attributes:
        seconds: it took long enough.
        queries: it issued enough queries.
        estimate: they are enough for the early-stopping estimate of the scenario's percentile.
    """

    seconds: bool
    queries: bool
    estimate: bool

    @property
    def valid(self) -> bool:
        """Whether all rules were met."""
        return self.seconds and self.queries and self.estimate


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a run gave. All but the verdict, and `loadgen`, is computed from `samples_ns` and the duration.

    Attributes:
        rules: what it had to reach.
        engine: "loadgen" or "slad": what issued the queries and gave the verdict.
        version: its version.
        samples_ns: time of each query, of Offline of each sample, in order, int64.
        seconds: from the first issue to the last completion, pauses included.
        reasons: in words, why the run is not valid; none where it is.
        loadgen: LoadGen's own numbers, which its way into Python makes about a microsecond longer: `result` in
            nanoseconds or samples per second, and the estimates `p90` and `p99` in nanoseconds where it gives them;
            None without LoadGen.
    """

    rules: Rules
    engine: str
    version: str
    samples_ns: NDArray[np.int64]
    seconds: float
    reasons: tuple[str, ...]
    loadgen: Mapping[str, float] | None = None

    @property
    def valid(self) -> bool:
        """Whether the run met all rules."""
        return not self.reasons

    @property
    def result(self) -> float:
        """The percentile in nanoseconds, or samples per second."""
        if self.rules.kind.percentile is None:
            return len(self.samples_ns) / self.seconds
        return loadgen_percentile(self.samples_ns.tolist(), self.rules.kind.percentile)

    @property
    def estimates(self) -> dict[str, int | None]:
        """Early-stopping estimates in nanoseconds by percentile, as "p90"; None where there were too few queries."""
        kind = self.rules.kind
        places = () if kind.percentile is None else (kind.percentile, *kind.also)
        samples = self.samples_ns.tolist()
        return {name_of(place): early_stopping_estimate(samples, place) for place in places}

    def as_dict(self) -> dict[str, object]:
        """Return what a record holds of the run, times in milliseconds."""
        head = {
            "valid": self.valid,
            "invalid_reasons": list(self.reasons),
            "queries": len(self.samples_ns),
            "samples_per_query": self.rules.kind.samples or len(self.samples_ns),
            "seconds": round(self.seconds, 4),
        }
        place = self.rules.kind.percentile
        if place is None:
            return {**head, "queries": 1, "samples_per_second": self._rate(), "loadgen": self._own()}
        low, high = percentile_interval(self.samples_ns.tolist(), place)
        ends = {"value": self.result, "low": low, "high": high}
        estimates = {name: None if value is None else _ms(value) for name, value in self.estimates.items()}
        return {
            **head,
            "percentile": round(100 * place),
            "latency_ms": {name: _ms(value) for name, value in ends.items()},
            "early_stopping_ms": estimates,
            "early_stopping_reasons": {
                name_of(q): f"takes {queries_needed(q)} queries, {len(self.samples_ns)} ran"
                for q in (place, *self.rules.kind.also)
                if estimates[name_of(q)] is None
            },
            "loadgen": self._own(),
        }

    def _rate(self) -> dict[str, float | None]:
        """Return samples per second; the ends keep their distance to the sum of samples as a share of it.

        What passes between two samples is in the rate, and in no sample.
        """
        found, rate = throughput_interval(self.samples_ns.tolist()), self.result
        if found is None:
            return {"value": round(rate, 2), "low": None, "high": None}
        ends = {"value": rate, "low": rate * found.low / found.value, "high": rate * found.high / found.value}
        return {name: round(value, 2) for name, value in ends.items()}

    def _own(self) -> dict[str, float] | None:
        if self.loadgen is None:
            return None
        latencies = self.rules.kind.percentile is not None
        return {name: _ms(value) if latencies else value for name, value in self.loadgen.items()}


def judge(rules: Rules, *, queries: int, seconds: float) -> Verdict:
    """Judge a run by LoadGen's rules.

    Args:
        rules: what it had to reach.
        queries: issued; of Offline samples.
        seconds: from the first query's issue to the last one's; of Offline to the end of its query.
    """
    place = rules.kind.percentile
    return Verdict(
        seconds=seconds >= rules.min_ms / 1000,
        queries=queries >= rules.min_queries,
        estimate=place is None or discarded(queries, place) >= 1,
    )


def reasons(rules: Rules, verdict: Verdict, *, queries: int, seconds: float) -> tuple[str, ...]:
    """Say why a run is not valid; arguments as of `judge`."""
    found = []
    if not verdict.seconds:
        found.append(f"{rules.scenario}: {seconds:.3g} s from the first query to the last, not {rules.min_seconds:g} s")
    if not verdict.queries:
        unit = "samples" if rules.kind.percentile is None else "queries"
        found.append(f"{rules.scenario}: {queries} {unit}, not {rules.min_queries}")
    if not verdict.estimate and rules.kind.percentile is not None:
        place = rules.kind.percentile
        found.append(
            f"{rules.scenario}: {queries} queries, and an early-stopping estimate of {name_of(place)} takes "
            f"{queries_needed(place)}"
        )
    return tuple(found)


def loadgen_percentile(samples: Sequence[int], q: float) -> int:
    """Return LoadGen's percentile, the sample at the place floor(n q) counted from 0: one above the nearest rank.

    Args:
        samples: at least one.
        q: in 0..1, below 1.
    """
    return sorted(samples)[int(len(samples) * q)]


def discarded(count: int, q: float) -> int:
    """Return the rank from above of the early-stopping estimate: the largest t with P(B <= t) < 1 %, or 0 for none.

    B ~ Binomial(n, 1 - q) counts the queries of n that take longer than the percentile. LoadGen looks for the largest t
    with n >= h(t) + t, where h(t) is the fewest queries below the percentile at which t above it are allowed at 99 %
    confidence without tolerance; as P(B <= t) falls with n, that is the same t (early_stopping.cc;
    MLPerf Inference rules, appendix "early stopping").

    Args:
        count: of queries, at least one.
        q: in 0..1, such as 0.9.
    """
    mean, deviation = count * (1 - q), math.sqrt(count * q * (1 - q))
    start = max(0, math.floor(mean - 12 * deviation))  # what lies below weighs less than 1e-30
    over = np.arange(start, math.ceil(mean) + 1, dtype=np.float64)
    steps = np.log(count - over[:-1]) - np.log(over[1:]) + math.log((1 - q) / q)  # log P(t + 1) - log P(t)
    logs = log_binomial(count, start, 1 - q) + np.concatenate([[0.0], np.cumsum(steps)])
    below = np.cumsum(np.exp(logs))
    return max(0, start + int(np.searchsorted(below, 1 - CONFIDENCE)) - 1)


def queries_needed(q: float) -> int:
    """Return the fewest queries that give an early-stopping estimate: 64 for 0.9, 662 for 0.99."""
    low, high = 1, 2
    while discarded(high, q) < 1:
        low, high = high, 2 * high
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if discarded(middle, q) >= 1 else (middle + 1, high)
    return low


def early_stopping_estimate(samples: Sequence[int], q: float) -> int | None:
    """Return LoadGen's early-stopping estimate of a percentile: above the true one with 99 % confidence.

    Args:
        samples: at least one.
        q: in 0..1, such as 0.9.

    Returns:
        None for less than `queries_needed`.
    """
    rank = discarded(len(samples), q)
    return sorted(samples)[-rank] if rank else None


def name_of(q: float) -> str:
    """Return a percentile's name, such as "p90"."""
    return f"p{100 * q:g}"


def check_run(*, samples: int, expected_ns: int) -> None:
    """Refuse a run that has nothing to ask for, or for which no number of queries can be told.

    Raises:
        MeasureError: no image, or no expected time.
    """
    if samples < 1 or expected_ns < 1:
        msg = f"a run on {samples!r} images, {expected_ns!r} ns each; give at least one image and one nanosecond"
        raise MeasureError(msg)


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Keep Python's collector from pausing a query; it is put back as it was."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _ms(nanoseconds: float) -> float:
    return round(nanoseconds / 1e6, 4)
