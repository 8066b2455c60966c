"""What samples and shares are worth: percentiles, shares, differences and ratios, each with its 95 % interval.

Latencies are nanoseconds. Nothing here knows where a number comes from, and nothing assumes that latencies are normal.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from deploy.errors import MeasureError

CONFIDENCE = 0.95
Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
T_95_19 = 2.093024054408263  # the same of Student's t with 19 degrees of freedom
PERCENTILES = (50, 90, 99)
RESAMPLES = 1000
BATCHES = 20  # of `throughput_interval`: more than 10 to 30 gain nothing (Schmeiser, Operations Research 30, 1982)

# Up to here the binomial is summed exactly; beyond, the normal approximation is off by less than one rank in 20.
EXACT_UP_TO = 5000

BIN = 256  # samples between two marks of `_Rounds`: few enough to sum for every resample


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval.

    Attributes:
        value: the estimate.
        low: lower end.
        high: upper end.
    """

    value: float
    low: float
    high: float

    def as_dict(self, digits: int) -> dict[str, float]:
        """Return value, low and high, rounded."""
        return {name: round(getattr(self, name), digits) for name in ("value", "low", "high")}


@dataclass(frozen=True)
class Difference(Interval):
    """A difference in points, ours less theirs, with its 95 % interval.

    Attributes:
        method: how the interval was made.
        p_value: two-sided, of the hypothesis that there is no difference; None where no test belongs to the method.
    """

    method: str
    p_value: float | None


def percentile(samples: Sequence[int], q: float) -> int:
    """Return the smallest sample that at least the share `q` of all samples does not exceed (nearest rank).

    Args:
        samples: at least one.
        q: in 0..1, such as 0.9.
    """
    ordered = sorted(samples)
    return ordered[_rank(len(ordered), q) - 1]


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
        half = Z_95 * math.sqrt(count * q * (1 - q))
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
        below += math.exp(log_binomial(count, successes, q))
    return max(lower, 1), min(upper, count)


def log_binomial(count: int, successes: int, q: float) -> float:
    """Return log P(B = successes) of B ~ Binomial(count, q); the coefficients themselves would overflow."""
    log = math.lgamma(count + 1) - math.lgamma(successes + 1) - math.lgamma(count - successes + 1)
    return log + successes * math.log(q) + (count - successes) * math.log1p(-q)


def summarise(samples_ns: Sequence[int]) -> dict[str, float]:
    """Describe samples in milliseconds, rounded to 0.1 microseconds.

    Args:
        samples_ns: at least one, in nanoseconds.

    Returns:
        p50, p90 and p99, the `_low` and `_high` ends of the 95 % interval of each, mean, minimum and maximum.
    """
    ordered = sorted(int(sample) for sample in samples_ns)
    values: dict[str, float] = {}
    for place in PERCENTILES:
        lower, upper = interval_ranks(len(ordered), place / 100)
        values[f"p{place}"] = ordered[_rank(len(ordered), place / 100) - 1]
        values[f"p{place}_low"], values[f"p{place}_high"] = ordered[lower - 1], ordered[upper - 1]
    values |= {"mean": sum(ordered) / len(ordered), "minimum": ordered[0], "maximum": ordered[-1]}
    return {name: round(value / 1e6, 4) for name, value in values.items()}


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), each end in 0..1.

    Unlike the normal interval it stays within 0..1 and does not collapse at 0 or 100 %.
    """
    share, z2 = correct / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def paired_difference(ours: ArrayLike, theirs: ArrayLike) -> Difference:
    """Compare two shares of right answers to the same images, in points: ours less theirs.

    The interval is Newcombe's square-and-add: with Wilson's intervals (l, u) of both shares p and q, it reaches from
    p - q - sqrt((p - l_p)^2 - 2 f (p - l_p) (u_q - q) + (u_q - q)^2) to the same with the other ends, where f is the
    correlation of the answers with its numerator ad - bc lessened by n/2, though not below 0, where it is positive
    (Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17, 1998, method 10). The p value is that of McNemar's exact test.

    Args:
        ours: whether each image was answered rightly, shape (images,); at least one.
        theirs: the same of the other variant, for the same images in the same order.

    Raises:
        MeasureError: they are not of the same images.
    """
    one, other = np.asarray(ours, bool), np.asarray(theirs, bool)
    _check_pairs(one.shape, other.shape)
    both, first, second = int((one & other).sum()), int((one & ~other).sum()), int((~one & other).sum())
    none = one.size - both - first - second
    cross: float = both * none - first * second
    if cross > 0:
        cross = max(cross - one.size / 2, 0)
    spread = math.sqrt((both + first) * (second + none) * (both + second) * (first + none))
    correlation = cross / spread if spread else 0.0
    found = _square_and_add((both + first, one.size), (both + second, one.size), correlation=correlation)
    return Difference(
        found.value, found.low, found.high, "Newcombe 1998, paired, method 10", mcnemar_p_value(first, second)
    )


def mcnemar_p_value(first: int, second: int) -> float:
    """Return the two-sided p value of McNemar's exact test (McNemar 1947): 2 P(B <= min), B ~ Binomial(n, 1/2).

    Args:
        first: images that one variant alone answers rightly.
        second: images that the other alone answers rightly; n is both together.
    """
    count, term, total = first + second, 1, 0
    for successes in range(min(first, second) + 1):
        total += term
        term = term * (count - successes) // (successes + 1)
    return float(min(1.0, total / 2 ** (count - 1) if count else 1.0))


def unpaired_difference(correct: int, count: int, *, their_correct: int, their_count: int) -> Difference:
    """Compare two shares of different images, in points: ours less theirs.

    Newcombe's hybrid score interval: as `paired_difference` with no correlation ("Interval estimation for the
    difference between independent proportions: comparison of eleven methods", Statistics in Medicine 17, 1998,
    method 10).

    Args:
        correct: our right answers.
        count: our images, at least one.
        their_correct: the other's right answers.
        their_count: the other's images, at least one.
    """
    found = _square_and_add((correct, count), (their_correct, their_count), correlation=0.0)
    return Difference(found.value, found.low, found.high, "Newcombe 1998, unpaired, method 10", None)


def resampled_sums(values: NDArray[Any], *, seed: int = 0) -> NDArray[np.float64]:
    """Return what each bootstrap resample of the rows of `values` sums to (Efron, "Bootstrap methods", 1979).

    Args:
        values: shape (images, ...).
        seed: equal seeds draw equal rows, which is what pairs two variants.

    Returns:
        Shape (RESAMPLES, ...).
    """
    count = len(values)
    shares = np.random.default_rng(seed).multinomial(count, [1 / count] * count, RESAMPLES).astype(np.float64)
    sums: NDArray[np.float64] = np.tensordot(shares, values.astype(np.float64), axes=1)
    return sums


def paired_bootstrap(
    ours: NDArray[Any], theirs: NDArray[Any], statistic: Callable[[NDArray[Any]], NDArray[np.float64]]
) -> Difference:
    """Compare a statistic of the same images, such as mean IoU, in points: ours less theirs.

    The percentile bootstrap over images, both variants resampled alike (Efron and Tibshirani, An Introduction to the
    Bootstrap, 1993, chapter 13): the 2.5 % and 97.5 % quantiles of 1000 differences. It has no p value.

    Args:
        ours: what stands for each image, shape (images, ...); the statistic is of its sum over images.
        theirs: the same of the other variant.
        statistic: maps sums, shape (..., as `ours` without the images), to shares in 0..1, shape (...).

    Raises:
        MeasureError: they are not of the same images.
    """
    _check_pairs(ours.shape, theirs.shape)
    value = float(statistic(ours.sum(0)) - statistic(theirs.sum(0)))
    drawn = statistic(resampled_sums(ours)) - statistic(resampled_sums(theirs))
    low, high = np.nanquantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Difference(
        100 * value, 100 * float(low), 100 * float(high), f"paired bootstrap, {RESAMPLES} resamples", None
    )


def ratio_of_percentiles(
    ours: Sequence[ArrayLike], theirs: Sequence[ArrayLike], *, q: float, seed: int = 0
) -> Interval:
    """Compare a latency percentile of two variants of one interleaved run: ours as a multiple of theirs.

    The percentile bootstrap over rounds, 1000 resamples, each with the same rounds of both variants: a slow spell of
    the machine is in both or in neither, and samples of one round, which are not independent, stay together (the block
    bootstrap; Künsch, Annals of Statistics 17, 1989). Percentiles are nearest ranks of all samples drawn. With less
    than about 20 rounds the interval is too narrow.

    Args:
        ours: samples of each round, in the order of the rounds; none is empty.
        theirs: the other variant's in the same rounds.
        q: in 0..1, such as 0.9.
        seed: of the resamples.

    Raises:
        MeasureError: there are fewer than two rounds, or not equally many of both.
    """
    if len(ours) != len(theirs) or len(ours) < 2:
        msg = (
            f"rounds to compare: {len(ours)} and {len(theirs)}; measure both in the same rounds, at least 2, "
            "with more queries or seconds"
        )
        raise MeasureError(msg)
    rounds = len(ours)
    weights = np.random.default_rng(seed).multinomial(rounds, [1 / rounds] * rounds, RESAMPLES)
    one, other = _Rounds(ours), _Rounds(theirs)
    whole = np.ones((1, rounds), np.int64)
    drawn = one.percentiles(weights, q) / other.percentiles(weights, q)
    low, high = np.quantile(drawn, ((1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2))
    return Interval(float(one.percentiles(whole, q)[0] / other.percentiles(whole, q)[0]), float(low), float(high))


def throughput_interval(durations_ns: Sequence[int], *, samples_each: int = 1) -> Interval | None:
    """Return samples per second by batch means (Law, Simulation Modeling and Analysis, 9.5.3).

    The durations are cut, in order, into 20 batches; the mean durations of the batches are nearly independent even
    where neighbours are not, so their mean has an interval of Student's t with 19 degrees of freedom. Its ends are
    turned into rates.

    Args:
        durations_ns: of each query, in order.
        samples_each: samples in a query.

    Returns:
        None for fewer than 20 durations.
    """
    if len(durations_ns) < BATCHES:
        return None
    durations = np.asarray(durations_ns, np.float64)
    means = np.array([batch.mean() for batch in np.array_split(durations, BATCHES)])
    mean, half = float(durations.mean()), T_95_19 * float(means.std(ddof=1)) / math.sqrt(BATCHES)
    slowest, fastest = mean + half, max(mean - half, float(durations.min()))
    return Interval(*(samples_each * 1e9 / each for each in (mean, slowest, fastest)))


def _rank(count: int, q: float) -> int:
    """Return the nearest rank of a percentile, counted from 1; rounded, as 0.07 * 100 is above 7."""
    return max(math.ceil(round(q * count, 9)), 1)


def _check_pairs(one: tuple[int, ...], other: tuple[int, ...]) -> None:
    if one != other or not one[0]:
        msg = f"answers to compare in pairs: of shapes {one} and {other}; measure both on the same images"
        raise MeasureError(msg)


def _square_and_add(ours: tuple[int, int], theirs: tuple[int, int], *, correlation: float) -> Interval:
    """Return the difference of two shares (right, count) in points, by Newcombe's square-and-add."""
    (p, p_low, p_high), (q, q_low, q_high) = ((k / n, *wilson(k, n)) for k, n in (ours, theirs))

    def distance(one: float, other: float) -> float:
        return math.sqrt(max(one**2 - 2 * correlation * one * other + other**2, 0.0))

    low, high = p - q - distance(p - p_low, q_high - q), p - q + distance(p_high - p, q - q_low)
    return Interval(100 * (p - q), 100 * max(low, -1.0), 100 * min(high, 1.0))


class _Rounds:
    """Samples of all rounds, sorted once, so that the percentile of a resample of rounds takes one bin's sum.

    Args:
        rounds: samples of each round, none empty.
    """

    def __init__(self, rounds: Sequence[ArrayLike]) -> None:
        arrays = [np.asarray(samples, np.float64).ravel() for samples in rounds]
        self._sizes = np.array([array.size for array in arrays])
        of_round = np.repeat(np.arange(len(arrays)), self._sizes)
        samples = np.concatenate(arrays)
        order = np.argsort(samples, kind="stable")
        self._samples, self._of_round = samples[order], of_round[order]
        bins = math.ceil(samples.size / BIN)
        cells = self._of_round * bins + np.arange(samples.size) // BIN
        # How many samples each round has in each bin.
        self._counts = np.bincount(cells, minlength=len(arrays) * bins).reshape(len(arrays), bins).astype(np.float64)

    def percentiles(self, weights: NDArray[np.int64], q: float) -> NDArray[np.float64]:
        """Return the nearest-rank percentile of each resample.

        Args:
            weights: how often each round was drawn, shape (resamples, rounds).
            q: in 0..1.
        """
        # In floats the product runs in BLAS, and counts are exact up to 2**53.
        below = np.cumsum(weights.astype(np.float64) @ self._counts, axis=1).astype(np.int64)
        found = np.empty(len(weights))
        for row, drawn in enumerate(weights):
            rank = _rank(int(drawn @ self._sizes), q)
            place = int(np.searchsorted(below[row], rank))
            start = place * BIN
            within = np.cumsum(drawn[self._of_round[start : start + BIN]])
            before = int(below[row, place - 1]) if place else 0
            found[row] = self._samples[start + int(np.searchsorted(within, rank - before))]
        return found
