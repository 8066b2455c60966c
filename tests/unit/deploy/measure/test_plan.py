import pytest

from deploy.measure.plan import Plan
from deploy.measure.scenarios import early_stopping_estimate, queries_needed


def plan(**changes):
    options = {"profile": "standard", "scenarios": (), "queries": 664, "seconds": 10.0, "attempts": 1, "seed": 0}
    return Plan(**options | changes)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"profile": "mlperf", "seconds": 600.0}, None),
        ({"profile": "quick"}, "profile 'quick' is for development"),
        ({"queries": 663}, "at least 664 queries and 10 s, asked for 663 and 10 s"),
        ({"profile": "mlperf"}, "at least 664 queries and 600 s, asked for 664 and 10 s"),
    ],
)
def test_a_profiles_name_is_earned(changes, reason):
    found = plan(**changes).shortfall
    assert found is None if reason is None else found.endswith(reason)


def test_what_standard_asks_for_bounds_p99():
    assert queries_needed(0.99) <= plan().queries
    assert early_stopping_estimate(list(range(plan().queries)), 0.99) is not None


def test_single_stream_is_always_run_and_first():
    assert plan().asked == ("SingleStream",)
    assert plan(scenarios=("Offline", "MultiStream")).asked == ("SingleStream", "MultiStream", "Offline")


def test_turns_of_others_count_for_the_duration_but_not_offline():
    assert plan().rules("SingleStream", engines=4).min_seconds == pytest.approx(50)
    assert plan().rules("Offline", engines=4).min_seconds == 10
    assert plan().rules("Offline", engines=4).min_queries == 664
    assert plan(profile="mlperf").rules("Offline", engines=1).min_queries == 24576


def test_expected_times_are_short_so_that_queries_do_not_run_out():
    assert plan().expected_ns("SingleStream", 1000, engines=3) == 2400
    assert plan().expected_ns("MultiStream", 1000, engines=1) == 6400
    assert plan().expected_ns("Offline", 1000, engines=3) == 800


def test_prepared_queries_do_not_depend_on_how_many_take_turns():
    one, four = (plan().prepared([100_000] * engines) for engines in (1, 4))
    assert one == four == pytest.approx(2 * 12.5e9 / 80_000, rel=0.01)
