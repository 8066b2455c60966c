import statistics

import pytest

from deploy.conditions import energy as module
from deploy.conditions.energy import BATCHES, T_975, measure_energy
from deploy.errors import MeasureError


class Plug:
    """A meter on a device whose clock and power a test sets."""

    counter = "plug"

    def __init__(self):
        self.now, self.joules, self._first = 0.0, 0.0, 0.0

    def run(self, seconds, watts):
        self.now += seconds
        self.joules += watts * seconds

    def start(self):
        self._first = self.joules

    def stop(self):
        return self.joules - self._first


@pytest.fixture
def plug(monkeypatch):
    made = Plug()
    monkeypatch.setattr(module.time, "monotonic", lambda: made.now)
    return made


def measured(plug, *, idle=(3.0,) * BATCHES, busy=(8.0,) * BATCHES, per_second=100):
    idles, busies = iter(idle), iter(busy)

    def run_for(seconds):
        plug.run(seconds, next(busies))
        return round(seconds * per_second)

    return measure_energy(
        run_for, plug, seconds=16, idle_seconds=8, sleep=lambda seconds: plug.run(seconds, next(idles))
    )


def test_idle_power_is_subtracted(plug):
    assert measured(plug) == {
        "mj_per_inference": 50.0,  # (8 - 3) W over 100 inferences a second
        "low": 50.0,
        "high": 50.0,
        "counter": "plug",
        "idle_w": 3.0,
        "seconds": 16.0,
    }


def test_the_interval_is_that_of_the_batches_and_of_the_idle_power(plug):
    busy = (8.0, 8.4, 7.9, 8.1, 8.3, 7.7, 8.0, 8.2)
    idle = (3.0, 3.1, 2.9, 3.0, 3.2, 2.8, 3.0, 3.0)
    found = measured(plug, idle=idle, busy=busy)
    spread = (statistics.variance(busy) / 8 + statistics.variance(idle) / 8) ** 0.5
    assert found["mj_per_inference"] == pytest.approx(10 * (statistics.fmean(busy) - 3), abs=1e-3)
    assert found["high"] - found["low"] == pytest.approx(2 * 10 * T_975 * spread, abs=1e-3)


def test_an_engine_that_takes_no_more_than_the_idle_device_is_reported_as_it_is(plug):
    found = measured(plug, busy=(3.0, 2.9, 3.1, 3.0, 2.9, 3.1, 3.0, 2.9))
    assert found["low"] < 0 < found["high"]


def test_no_query_in_a_batch(plug):
    with pytest.raises(MeasureError, match="no query ended in 2 s, which is too short for one batch of energy"):
        measured(plug, per_second=0)


@pytest.mark.slow
def test_quantile_of_students_distribution():
    from scipy import stats

    assert pytest.approx(stats.t.ppf(0.975, BATCHES - 1), abs=1e-4) == T_975
