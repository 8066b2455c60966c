import gc

import pytest

from benchmarks.interleaved import BLOCK, LEAD_IN, measure_interleaved

pytestmark = pytest.mark.slow


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
    options = {"queries": 1, "seconds": 0.0, "warmup_seconds": 0.0, "seed": 0}
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

    options = {"seconds": 0.0, "warmup_seconds": 0.0, "seed": 0, "clock": time.clock}
    assert measure_interleaved({"a": query}, queries=BLOCK * 3, **options) == {"a": [5] * BLOCK * 3}


def test_garbage_collector_is_off_only_while_measuring():
    seen = []
    options = {"queries": 1, "seconds": 0, "warmup_seconds": 0, "seed": 0}
    measure_interleaved({"a": lambda: seen.append(gc.isenabled())}, **options)
    assert not any(seen)
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError):
        measure_interleaved({"a": lambda: 1 // 0}, **options)
    assert gc.isenabled()
