import re

import numpy as np
import pytest

from deploy.measure.crew import Turns
from deploy.measure.subject import drift


def turns(*medians):
    noise = np.random.default_rng(0).normal(1, 0.02, (len(medians), 50))
    return Turns(
        rounds=[(median * 1e6 * each).astype(int).tolist() for median, each in zip(medians, noise, strict=True)]
    )


def test_a_machine_that_halves_its_speed_is_told_with_the_engine_that_shows_it_most():
    (words,) = drift({"fp32": turns(*[0.1] * 30, *[0.15] * 10), "int8": turns(*[0.1] * 30, *[0.2] * 10)})
    found = re.fullmatch(
        r"the machine's speed changed .*: int8's turns had medians from ([\d.]+) to ([\d.]+) ms", words
    )
    assert (float(found[1]), float(found[2])) == pytest.approx((0.1, 0.2), rel=0.02)


def test_a_steady_machine_with_single_slow_turns_is_not():
    assert drift({"fp32": turns(*[0.1] * 50, *[0.9] * 3)}) == []
    assert drift({"fp32": turns(*np.linspace(0.1, 0.12, 50))}) == []


def test_a_few_turns_say_nothing():
    assert drift({"fp32": turns(*[0.1] * 8, *[0.2] * 8), "int8": Turns()}) == []
