"""Energy of an inference: what the device takes while it runs queries, above what it takes when it does nothing."""

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from deploy.conditions.meters import Meter
from deploy.errors import MeasureError

BATCHES = 8
T_975 = 2.3646  # of Student's distribution with BATCHES - 1 degrees of freedom


def measure_energy(
    run_for: Callable[[float], int],
    meter: Meter,
    *,
    seconds: float,
    idle_seconds: float,
    sleep: Callable[[float], None] = time.sleep,
) -> dict[str, Any]:
    """Measure the energy of one inference in batches of queries, after the device's idle power.

    The interval has 95 % confidence. It is the t-interval of the means of `BATCHES` batches, whose variance is that of
    the batches' energies, and that of the idle power, which all of them subtract, estimated from as many parts. Neither
    a drift that is slower than the measurement nor an error of the counter is in it.

    Args:
        run_for: runs queries for so many seconds, and returns how many inferences that were.
        meter: the counter.
        seconds: for all batches together.
        idle_seconds: during which nothing may run, for all parts together.
        sleep: lets time pass.

    Returns:
        `mj_per_inference`, `low`, `high`, the meter's `counter`, `idle_w`, and `seconds` really measured.

    Raises:
        MeasureError: the counter cannot be read, or no query ended in one of the batches.
    """
    idle = [_watts(lambda: sleep(idle_seconds / BATCHES), meter) for _ in range(BATCHES)]
    idle_w = statistics.fmean(idle)
    spans = [_batch(run_for, meter, seconds / BATCHES) for _ in range(BATCHES)]
    above = [1000 * (joules - idle_w * length) / count for joules, length, count in spans]
    mean = statistics.fmean(above)
    # An error of the idle power is one of all batches: times the seconds that one inference takes.
    share = 1000 * statistics.fmean(length / count for _, length, count in spans)
    half = T_975 * (_variance_of_mean(above) + share**2 * _variance_of_mean(idle)) ** 0.5
    return {
        "mj_per_inference": round(mean, 4),
        "low": round(mean - half, 4),
        "high": round(mean + half, 4),
        "counter": meter.counter,
        "idle_w": round(idle_w, 3),
        "seconds": round(sum(length for _, length, _ in spans), 2),
    }


def _watts(work: Callable[[], None], meter: Meter) -> float:
    began = time.monotonic()
    meter.start()
    work()
    joules = meter.stop()
    return joules / (time.monotonic() - began)


def _batch(run_for: Callable[[float], int], meter: Meter, seconds: float) -> tuple[float, float, int]:
    """Return joules, seconds and inferences of one batch."""
    began = time.monotonic()
    meter.start()
    count = run_for(seconds)
    joules = meter.stop()
    length = time.monotonic() - began
    if count < 1:
        msg = f"no query ended in {seconds:g} s, which is too short for one batch of energy; measure for longer"
        raise MeasureError(msg)
    return joules, length, count


def _variance_of_mean(values: Sequence[float]) -> float:
    return statistics.variance(values) / len(values)
