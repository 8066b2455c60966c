import gc
from math import comb

import numpy as np
import pytest

from deploy.errors import MeasureError
from deploy.measure.scenarios import (
    Outcome,
    Rules,
    Verdict,
    discarded,
    early_stopping_estimate,
    judge,
    loadgen_percentile,
    no_garbage_collection,
    queries_needed,
    reasons,
)


def rules(scenario: str = "SingleStream", min_queries: int = 100, min_seconds: float = 1.0) -> Rules:
    return Rules(scenario=scenario, min_queries=min_queries, min_seconds=min_seconds)


def by_search(count: int, tenths_of_percent: int) -> int:
    """LoadGen's own way: the fewest h(t) queries below the percentile for t above it, in whole numbers."""
    over = 1000 - tenths_of_percent

    def at_most(t: int, h: int) -> bool:
        below = sum(comb(h + t, k) * over**k * tenths_of_percent ** (h + t - k) for k in range(t + 1))
        return 100 * below < 1000 ** (h + t)

    t = 0
    while True:
        h = 0
        while h + t + 1 <= count and not at_most(t + 1, h):
            h += 1
        if count < h + t + 1 or not at_most(t + 1, h):
            return t
        t += 1


@pytest.mark.parametrize("count", [1, 2, 10, 63, 64, 65, 80, 97, 98, 130])
def test_early_stopping_is_loadgens_search(count):
    assert discarded(count, 0.9) == by_search(count, 900)
    assert discarded(count, 0.5) == by_search(count, 500)


@pytest.mark.parametrize("count", [661, 662, 1000, 5000, 50_000, 1_000_000])
@pytest.mark.parametrize("q", [0.5, 0.9, 0.99])
def test_early_stopping_of_many_queries_is_the_quantile_of_the_binomial(count, q):
    from scipy.stats import binom

    t = int(binom.ppf(0.01, count, 1 - q))
    while binom.cdf(t, count, 1 - q) >= 1 - 0.99:
        t -= 1
    assert discarded(count, q) == max(t, 0)


def test_fewest_queries_of_an_estimate_are_mlperfs():
    assert [queries_needed(q) for q in (0.5, 0.9, 0.99)] == [11, 64, 662]


def test_estimate_leaves_out_the_slowest_queries():
    samples = list(range(1000, 0, -1))
    assert early_stopping_estimate(samples[:663], 0.99) == 1000
    assert early_stopping_estimate(samples, 0.99) == 1000 - discarded(1000, 0.99) + 1 == 999
    assert early_stopping_estimate(samples[:661], 0.99) is None


def test_estimate_is_above_the_true_percentile_as_often_as_promised():
    draws = np.random.default_rng(0).uniform(size=(2000, 300))
    held = sum(early_stopping_estimate(row.tolist(), 0.9) >= 0.9 for row in draws)
    assert 0.985 <= held / 2000 <= 0.999


def test_the_standard_run_of_664_queries_has_an_estimate_of_p99():
    assert discarded(664, 0.99) == 1


def test_loadgens_percentile_is_one_above_the_nearest_rank():
    assert loadgen_percentile(list(range(1, 101)), 0.9) == 91
    assert loadgen_percentile([7], 0.99) == 7


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream"])
def test_a_run_needs_time_and_queries_and_an_estimate(scenario):
    least = {"SingleStream": 64, "MultiStream": 662}[scenario]
    assert judge(rules(scenario, least), queries=least, seconds=1.0).valid
    few = judge(rules(scenario, 1), queries=least - 1, seconds=1.0)
    assert few == Verdict(seconds=True, queries=True, estimate=False)
    assert judge(rules(scenario, 1000), queries=999, seconds=0.9999) == Verdict(
        seconds=False, queries=False, estimate=True
    )


def test_an_offline_run_needs_no_estimate():
    assert judge(rules("Offline", 3), queries=3, seconds=1.0).valid
    assert not judge(rules("Offline", 3), queries=2, seconds=1.0).valid
    assert not judge(rules("Offline", 3), queries=3, seconds=0.9).valid


def test_reasons_say_what_was_missed():
    wanted = rules("MultiStream", 700, 10)
    verdict = judge(wanted, queries=30, seconds=2.5)
    assert reasons(wanted, verdict, queries=30, seconds=2.5) == (
        "MultiStream: 2.5 s from the first query to the last, not 10 s",
        "MultiStream: 30 queries, not 700",
        "MultiStream: 30 queries, and an early-stopping estimate of p99 takes 662",
    )
    offline = rules("Offline", 700, 1)
    assert reasons(offline, judge(offline, queries=30, seconds=2), queries=30, seconds=2) == (
        "Offline: 30 samples, not 700",
    )


def test_offline_has_a_tenth_more_samples_than_the_expected_rate_fills_the_time_with():
    assert rules("Offline", 10, 2.0).offline_samples(1_000_000) == 2200
    assert rules("Offline", 24_576, 2.0).offline_samples(1_000_000) == 24_576


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scenario": "Server"}, "scenario 'Server': not one of SingleStream, MultiStream, Offline"),
        ({"min_queries": 0}, "minimum of 0 queries and 1.0 s; give at least 1 query"),
        ({"min_seconds": -1}, "minimum of 100 queries and -1 s"),
        ({"min_seconds": float("nan")}, "and nan s"),
        ({"min_seconds": float("inf")}, "and inf s"),
    ],
)
def test_rules_that_no_run_can_meet_are_refused(changes, message):
    with pytest.raises(MeasureError, match=message):
        rules(**changes)


def outcome(scenario: str, samples: list[int], **changes) -> Outcome:
    fields = {"engine": "slad", "version": "1", "seconds": 2.0, "reasons": (), **changes}
    return Outcome(rules=rules(scenario, 1, 0), samples_ns=np.array(samples), **fields)


def test_record_of_a_single_stream():
    found = outcome("SingleStream", [1_000_000 + 1000 * i for i in range(100)], loadgen={"result": 2_500_000.0})
    assert found.as_dict() == {
        "valid": True,
        "invalid_reasons": [],
        "queries": 100,
        "samples_per_query": 1,
        "seconds": 2.0,
        "percentile": 90,
        "latency_ms": {"value": 1.09, "low": 1.083, "high": 1.095},
        "early_stopping_ms": {"p90": 1.097, "p99": None},
        "early_stopping_reasons": {"p99": "takes 662 queries, 100 ran"},
        "loadgen": {"result": 2.5},
    }


def test_record_of_an_offline_run_counts_what_passes_between_samples():
    found = outcome("Offline", [10_000_000, 30_000_000] * 20, seconds=1.0, reasons=("too short",)).as_dict()
    assert found == {
        "valid": False,
        "invalid_reasons": ["too short"],
        "queries": 1,
        "samples_per_query": 40,
        "seconds": 1.0,
        "samples_per_second": {"value": 40.0, "low": 40.0, "high": 40.0},
        "loadgen": None,
    }
    few = outcome("Offline", [10_000_000], loadgen={"result": 0.4}).as_dict()
    assert few["samples_per_second"] == {"value": 0.5, "low": None, "high": None}
    assert few["loadgen"] == {"result": 0.4}


def test_garbage_collector_is_off_within_and_as_before_after():
    with no_garbage_collection():
        assert not gc.isenabled()
    assert gc.isenabled()
    with pytest.raises(ZeroDivisionError), no_garbage_collection():
        assert 1 // 0
    assert gc.isenabled()
    gc.disable()
    try:
        with no_garbage_collection():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
