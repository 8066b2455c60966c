import gc
import math
import random

import numpy as np
import pytest

from deploy.latency import (
    BLOCK,
    LEAD_IN,
    interval_ranks,
    measure_interleaved,
    percentile,
    percentile_interval,
    summarise,
)


class FakeTime:
    """A clock that only the fake queries move."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[str] = []

    def clock(self) -> int:
        return self.now

    def query(self, name: str, nanoseconds: int):
        def run() -> None:
            self.now += nanoseconds
            self.calls.append(name)

        return run


def measure(time: FakeTime, durations: dict[str, int], **changes):
    options = {"queries": 1, "seconds": 0.0, "warmup_seconds": 0.0, "seed": 0, "on_progress": lambda line: None}
    calls = {name: time.query(name, duration) for name, duration in durations.items()}
    return measure_interleaved(calls, **{**options, **changes}, clock=time.clock)


def test_samples_are_the_queries_own_time():
    assert measure(FakeTime(), {"a": 7, "b": 11}) == {"a": [7] * BLOCK, "b": [11] * BLOCK}


def test_every_variant_reaches_count_and_duration():
    samples = measure(FakeTime(), {"fast": 1_000_000, "slow": 9_000_000}, queries=50, seconds=0.1)
    assert sum(samples["fast"]) >= 100_000_000
    assert len(samples["fast"]) == len(samples["slow"]) == 112
    by_count = measure(FakeTime(), {"fast": 1_000_000, "slow": 9_000_000}, queries=200, seconds=0.1)
    assert len(by_count["fast"]) == 208


def test_blocks_are_shuffled_reproducibly_and_every_round_has_all():
    orders = []
    for seed in (1, 1, 2):
        time = FakeTime()
        measure(time, dict.fromkeys("abc", 5), queries=BLOCK * 20, seed=seed)
        orders.append(time.calls[3:])
    assert orders[0] == orders[1] != orders[2]
    blocks = [orders[0][i : i + BLOCK + LEAD_IN] for i in range(0, len(orders[0]), BLOCK + LEAD_IN)]
    assert all(len(set(block)) == 1 for block in blocks)
    rounds = ["".join(block[0] for block in blocks[i : i + 3]) for i in range(0, len(blocks), 3)]
    assert {"".join(sorted(each)) for each in rounds} == {"abc"}
    assert len(set(rounds)) > 1


def test_warm_up_runs_at_least_once_and_is_not_recorded():
    time = FakeTime()
    samples = measure(time, {"a": 1_000_000}, warmup_seconds=0.01)
    assert len(time.calls) == 10 + LEAD_IN + BLOCK
    assert len(samples["a"]) == BLOCK
    time = FakeTime()
    measure(time, {"a": 1_000_000})
    assert len(time.calls) == 1 + LEAD_IN + BLOCK


def test_first_query_after_a_switch_is_not_recorded():
    time = FakeTime()
    durations = iter([5, *([1000] * LEAD_IN + [5] * BLOCK) * 3])

    def query() -> None:
        time.now += next(durations)

    options = {"seconds": 0.0, "warmup_seconds": 0.0, "seed": 0, "on_progress": print, "clock": time.clock}
    assert measure_interleaved({"a": query}, queries=BLOCK * 3, **options) == {"a": [5] * BLOCK * 3}


def test_garbage_collector_is_off_only_while_measuring():
    seen = []
    options = {"queries": 1, "seconds": 0, "warmup_seconds": 0, "seed": 0, "on_progress": print}
    measure_interleaved({"a": lambda: seen.append(gc.isenabled())}, **options)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure_interleaved({"a": lambda: 1 // 0}, **options)
    assert gc.isenabled()


def test_progress_is_reported_about_every_two_seconds():
    lines = []
    measure(FakeTime(), {"a": 100_000_000}, queries=100, on_progress=lines.append)
    assert len(lines) == 3
    assert lines[0].startswith("latency: 32 of 100 queries, 3.2 of 0 s")


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


@pytest.mark.parametrize("count", [100, 257, 664, 1000])
@pytest.mark.parametrize("q", [0.5, 0.9])
def test_ranks_cover_95_percent_and_are_the_narrowest_on_each_side(count, q):
    lower, upper = interval_ranks(count, q)
    assert coverage(count, q, lower, upper) >= 0.95
    assert coverage(count, q, 0, lower) <= 0.025 < coverage(count, q, 0, lower + 1)
    assert coverage(count, q, upper, count + 1) <= 0.025 < coverage(count, q, upper - 1, count + 1)


@pytest.mark.parametrize("q", [0.5, 0.9])
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
    }
