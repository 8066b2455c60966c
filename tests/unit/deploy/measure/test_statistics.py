import math
import random
from itertools import product
from math import comb

import numpy as np
import pytest

from deploy.errors import MeasureError
from deploy.measure.statistics import (
    BATCHES,
    RESAMPLES,
    interval_ranks,
    mcnemar_p_value,
    paired_bootstrap,
    paired_difference,
    percentile,
    percentile_interval,
    ratio_of_percentiles,
    resampled_sums,
    summarise,
    throughput_interval,
    unpaired_difference,
    wilson,
)


@pytest.mark.parametrize("count", [1, 2, 9, 10, 99, 664, 1000])
@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_percentile_is_numpys_nearest_rank(count, q):
    samples = random.Random(count).sample(range(10_000), count)
    assert percentile(samples, q) == np.percentile(samples, q * 100, method="inverted_cdf")


@pytest.mark.parametrize(
    ("count", "ranks"),
    [(6, (1, 6)), (8, (1, 8)), (10, (2, 9)), (15, (4, 12)), (20, (6, 15)), (50, (18, 33)), (100, (40, 61))],
)
def test_median_ranks_are_those_of_the_tables(count, ranks):
    assert interval_ranks(count, 0.5) == ranks


def coverage(count: int, q: float, lower: int, upper: int) -> float:
    return sum(math.comb(count, k) * q**k * (1 - q) ** (count - k) for k in range(lower, upper))


@pytest.mark.parametrize(
    ("count", "q"), [*product([100, 257, 664, 1000], [0.5, 0.9]), (368, 0.99), (664, 0.99), (1000, 0.99)]
)
def test_ranks_cover_95_percent_and_are_the_narrowest_on_each_side(count, q):
    lower, upper = interval_ranks(count, q)
    assert coverage(count, q, lower, upper) >= 0.95
    assert coverage(count, q, 0, lower) <= 0.025 < coverage(count, q, 0, lower + 1)
    assert coverage(count, q, upper, count + 1) <= 0.025 < coverage(count, q, upper - 1, count + 1)


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_normal_approximation_continues_the_exact_ranks(q):
    exact, approximate = interval_ranks(5000, q), interval_ranks(5001, q)
    assert all(abs(a - b) <= 2 for a, b in zip(exact, approximate, strict=True))


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_too_few_samples_fall_back_to_the_extremes(count):
    assert percentile_interval(list(range(count)), 0.5) == (0, count - 1)


def test_interval_holds_the_true_median_as_often_as_promised():
    rng = np.random.default_rng(0)
    draws = rng.lognormal(size=(2000, 101))
    hits = sum(low <= 1.0 <= high for low, high in (percentile_interval(row.tolist(), 0.5) for row in draws))
    assert 0.94 <= hits / 2000 <= 0.98


def test_summary_is_in_rounded_milliseconds():
    samples = [1_000_000 + 1000 * index for index in range(100)]
    random.Random(0).shuffle(samples)
    assert summarise(samples) == {
        "p50": 1.049,
        "p90": 1.089,
        "p99": 1.098,
        "mean": 1.0495,
        "minimum": 1.0,
        "maximum": 1.099,
        "p50_low": 1.039,
        "p50_high": 1.06,
        "p90_low": 1.083,
        "p90_high": 1.095,
        "p99_low": 1.096,
        "p99_high": 1.099,
    }


def test_summary_of_one_sample():
    assert set(summarise([2_000_000]).values()) == {2.0}


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_is_that_of_the_literature(correct, count, low, high):
    assert wilson(correct, count) == pytest.approx((low, high), abs=5e-5)


def answers(both: int, first: int, second: int, none: int) -> tuple[np.ndarray, np.ndarray]:
    ours, theirs = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], [both, first, second, none], axis=0).astype(bool).T
    return ours, theirs


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((1, 1, 7, 12), -50.69, -2.56),  # airway reactivity: -0.507 to -0.026 in Fagerland, Lydersen and Laake 2014
        ((59, 6, 16, 80), -11.86, -0.46),  # Cavo 2012: the R package contingencytables 3.1
        ((20, 12, 2, 16), 5.62, 32.92),
        ((36, 12, 2, 0), 5.69, 34.04),
    ],
)
def test_paired_difference_is_that_of_the_literature(table, low, high):
    found = paired_difference(*answers(*table))
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0051)
    assert found.value == pytest.approx(100 * (table[1] - table[2]) / sum(table))
    turned = paired_difference(*reversed(answers(*table)))
    assert (turned.value, turned.low, turned.high) == pytest.approx((-found.value, -found.high, -found.low))
    assert turned.p_value == found.p_value


def test_paired_difference_is_narrower_than_the_unpaired_one_where_answers_agree():
    paired = paired_difference(*answers(400, 8, 2, 40))
    alone = unpaired_difference(408, 450, their_correct=402, their_count=450)
    assert paired.value == pytest.approx(alone.value)
    assert alone.low < paired.low < 0 < paired.high < alone.high


@pytest.mark.parametrize("table", [(5, 0, 0, 0), (0, 0, 0, 5), (0, 5, 0, 0), (3, 0, 0, 2), (1, 0, 0, 0)])
def test_paired_difference_at_the_edges_holds_its_value_and_stays_in_range(table):
    found = paired_difference(*answers(*table))
    assert -100 <= found.low <= found.value <= found.high <= 100
    assert found.low < found.high or table[1] == table[2]


def test_answers_to_other_images_are_not_paired():
    with pytest.raises(MeasureError, match=r"of shapes \(3,\) and \(2,\); measure both on the same images"):
        paired_difference([True] * 3, [True] * 2)
    with pytest.raises(MeasureError, match="of shapes"):
        paired_difference([], [])


def test_paired_interval_holds_the_true_difference_as_often_as_promised():
    rng, hits, truth = np.random.default_rng(0), 0, 100 * (0.08 - 0.04)
    for table in rng.multinomial(150, [0.8, 0.08, 0.04, 0.08], 1000):
        found = paired_difference(*answers(*table))
        hits += found.low <= truth <= found.high
    assert 0.935 <= hits / 1000 <= 0.98


@pytest.mark.parametrize(("first", "second"), [*product(range(6), repeat=2), (1, 7), (40, 60)])
def test_mcnemar_is_the_sign_test(first, second):
    count = first + second
    expected = min(1.0, 2 * sum(comb(count, k) for k in range(min(first, second) + 1)) / 2**count)
    assert mcnemar_p_value(first, second) == pytest.approx(expected, rel=1e-12)


def test_mcnemar_of_the_literature_and_of_many_images():
    assert mcnemar_p_value(1, 7) == pytest.approx(0.0703, abs=5e-5)  # Fagerland, Lydersen and Laake 2014
    assert mcnemar_p_value(5000, 5000) == 1.0
    assert 0 < mcnemar_p_value(0, 1000) < 1e-300


@pytest.mark.parametrize(
    ("ours", "theirs", "low", "high"),
    [  # Newcombe 1998, table II, method 10
        ((56, 70), (48, 80), 5.24, 33.39),
        ((9, 10), (3, 10), 17.05, 80.90),
        ((6, 7), (2, 7), 5.82, 80.62),
        ((5, 56), (0, 29), -3.81, 19.26),
        ((0, 10), (0, 20), -16.11, 27.75),
        ((0, 10), (0, 10), -27.75, 27.75),
        ((10, 10), (0, 20), 67.91, 100.0),
        ((10, 10), (0, 10), 60.75, 100.0),
    ],
)
def test_unpaired_difference_is_that_of_the_literature(ours, theirs, low, high):
    found = unpaired_difference(*ours, their_correct=theirs[0], their_count=theirs[1])
    assert (found.low, found.high) == pytest.approx((low, high), abs=0.0051)
    assert found.p_value is None


def test_resampled_sums_are_of_whole_rows():
    values = np.arange(12).reshape(3, 2, 2)
    sums = resampled_sums(values)
    assert sums.shape == (RESAMPLES, 2, 2)
    shares = np.random.default_rng(0).multinomial(3, [1 / 3] * 3, RESAMPLES)
    np.testing.assert_allclose(sums[7], sum(share * row for share, row in zip(shares[7], values, strict=True)))


def test_paired_bootstrap_of_a_mean_is_the_normal_interval():
    rng = np.random.default_rng(1)
    theirs = rng.uniform(size=400)
    ours = np.clip(theirs + rng.normal(0.02, 0.05, 400), 0, 1)
    found = paired_bootstrap(ours, theirs, lambda sums: sums / 400)
    gap = ours - theirs
    half = 1.96 * gap.std() / 20
    assert (found.value, found.low, found.high) == pytest.approx(
        (100 * gap.mean(), 100 * (gap.mean() - half), 100 * (gap.mean() + half)), abs=0.06
    )
    same = paired_bootstrap(theirs, theirs, lambda sums: sums / 400)
    assert (same.value, same.low, same.high) == (0, 0, 0)
    with pytest.raises(MeasureError, match="the same images"):
        paired_bootstrap(ours, theirs[:-1], lambda sums: sums)


def drawn_by_hand(ours, theirs, q, seed):
    """Every resample pooled and sorted anew."""
    count = len(ours)
    ratios = []
    for weights in np.random.default_rng(seed).multinomial(count, [1 / count] * count, RESAMPLES):
        pooled = [
            np.concatenate([np.repeat(r, w) for r, w in zip(side, weights, strict=True)]) for side in (ours, theirs)
        ]
        one, other = (np.percentile(samples, 100 * q, method="inverted_cdf") for samples in pooled)
        ratios.append(one / other)
    return np.quantile(ratios, (0.025, 0.975))


@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_ratio_of_percentiles_is_the_bootstrap_by_hand(q):
    rng = np.random.default_rng(3)
    ours = [rng.integers(900, 1500, size) for size in (40, 1, 90, 70, 300, 33)]
    theirs = [rng.integers(1000, 1900, size) for size in (20, 60, 7, 400, 2, 50)]
    found = ratio_of_percentiles(ours, theirs, q=q, seed=5)
    assert (found.low, found.high) == pytest.approx(tuple(drawn_by_hand(ours, theirs, q, 5)), rel=1e-12)
    whole = [np.percentile(np.concatenate(side), 100 * q, method="inverted_cdf") for side in (ours, theirs)]
    assert found.value == whole[0] / whole[1]


def test_a_slow_spell_of_both_cancels_in_the_ratio():
    rng = np.random.default_rng(0)
    spell = rng.uniform(1, 2, 40)
    ours = [factor * rng.normal(800, 4, 30) for factor in spell]
    theirs = [factor * rng.normal(1000, 5, 30) for factor in spell]
    together = ratio_of_percentiles(ours, theirs, q=0.5)
    apart = ratio_of_percentiles(ours, [theirs[i] for i in rng.permutation(40)], q=0.5)
    assert together.value == pytest.approx(0.8, rel=0.01)
    assert together.high - together.low < 0.2 * (apart.high - apart.low)


@pytest.mark.slow
def test_ratio_interval_holds_the_true_ratio_as_often_as_promised():
    rng, hits = np.random.default_rng(0), 0
    for _ in range(100):
        shared = rng.lognormal(0, 0.2, 60)  # each round's own speed
        ours, theirs = ([s * rng.normal(c, 5, 5) for s in shared] for c in (90, 100))
        found = ratio_of_percentiles(ours, theirs, q=0.5)
        hits += found.low <= 0.9 <= found.high
    assert hits >= 88


@pytest.mark.parametrize("rounds", [([[1]], [[1]]), ([[1], [2]], [[1]]), ([], [])])
def test_too_few_rounds_give_no_ratio(rounds):
    with pytest.raises(
        MeasureError, match=r"rounds to compare: \d and \d; measure both in the same rounds, at least 2"
    ):
        ratio_of_percentiles(*rounds, q=0.9)


def test_throughput_of_equal_durations():
    found = throughput_interval([2_000_000] * 45, samples_each=8)
    assert (found.value, found.low, found.high) == pytest.approx((4000, 4000, 4000))


def test_throughput_is_that_of_batch_means_by_hand():
    durations = [1000 + 10 * (index % 7) + index for index in range(BATCHES * 5)]
    means = [sum(durations[i : i + 5]) / 5 for i in range(0, BATCHES * 5, 5)]
    mean = sum(means) / BATCHES
    deviation = math.sqrt(sum((each - mean) ** 2 for each in means) / (BATCHES - 1))
    half = 2.0930 * deviation / math.sqrt(BATCHES)  # the t table's 19 degrees of freedom
    found = throughput_interval(durations)
    assert (found.value, found.low, found.high) == pytest.approx(
        (1e9 / mean, 1e9 / (mean + half), 1e9 / (mean - half)), rel=1e-5
    )


def test_throughput_interval_holds_the_truth_of_dependent_durations_as_often_as_promised():
    rng, hits = np.random.default_rng(2), 0
    for _ in range(300):
        noise = rng.normal(0, 20, 4000)
        durations = 1000 + np.convolve(noise, np.ones(10), "same")  # ten neighbours in common
        found = throughput_interval(durations)
        hits += found.low <= 1e6 <= found.high
    assert 0.9 <= hits / 300 <= 0.985


def test_few_durations_have_no_throughput_interval():
    assert throughput_interval([5] * (BATCHES - 1)) is None
    assert throughput_interval([5] * BATCHES) is not None
