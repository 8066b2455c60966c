import pytest

from deploy.conditions.rules import broken_rules, too_busy
from deploy.target import Conditions

STATE = {"load_average": 1.0, "cpu": {"cores": 2}, "power_mode": "25W", "temperature_c": 50.0}
DURING = {"temperature_c": 60.0, "gpu": None, "throttled": 0, "alerts": []}
NONE = Conditions()
ASKED = Conditions(power_mode="25W", load=0.5, temperature_c=60)


def broken(conditions, *, before=STATE, during=DURING, after=STATE):
    return broken_rules(before, during, after, conditions=conditions)


def test_a_run_that_keeps_all_rules():
    assert broken(NONE) == broken(ASKED) == []


@pytest.mark.parametrize(("load", "busy"), [(None, False), (0.0, False), (3.0, False), (3.01, True)])
def test_busy_is_more_than_one_and_a_half_per_core(load, busy):
    reason = too_busy({**STATE, "load_average": load})
    assert reason == ("load average 3.01 on 2 cores, at most 3 is valid" if busy else None)
    assert len(broken(NONE, before={**STATE, "load_average": load})) == busy


def test_a_load_of_the_targets_own():
    assert broken(ASKED, before={**STATE, "load_average": 1.01}) == [
        "the device was busy before the measurement: load average 1.01 on 2 cores, at most 1 is valid"
    ]


def test_the_measurement_itself_may_be_busy_and_warm_afterwards():
    assert broken(ASKED, after={**STATE, "load_average": 9.0, "temperature_c": 99.0}) == []


def test_another_power_mode_and_one_that_changes():
    assert broken(Conditions(power_mode="MAXN")) == ["the device was in power mode '25W', the target asks for 'MAXN'"]
    assert broken(NONE, after={**STATE, "power_mode": "15W"}) == [
        "the power mode changed from '25W' to '15W' while it was measured"
    ]


def test_heat_before_during_and_of_the_gpu():
    assert broken(ASKED, before={**STATE, "temperature_c": 60.1}) == [
        "the device was at 60.1 °C before the measurement, the target asks for at most 60 °C"
    ]
    assert broken(ASKED, during={**DURING, "gpu": {"temperature_c": 83, "throttled": None}}) == [
        "the device was at 83 °C during the measurement, the target asks for at most 60 °C"
    ]
    assert broken(NONE, during={**DURING, "temperature_c": 105.0}) == []


def test_what_a_rule_asks_for_and_the_device_does_not_show():
    blind = {**STATE, "load_average": None, "power_mode": None, "temperature_c": None}
    assert broken(ASKED, before=blind, during={**DURING, "temperature_c": None}, after=blind) == [
        "the target asks for a load of at most 0.5 per core, this device shows no load average",
        "the target asks for power mode '25W', this device shows none",
        "the target asks for at most 60 °C, this device shows no temperature",
    ]
    assert broken(NONE, before=blind, during={**DURING, "temperature_c": None}, after=blind) == []
    assert broken(ASKED, before={**STATE, "temperature_c": None}) == []  # it is shown during the measurement


def test_a_throttled_device_is_invalid_without_any_rule():
    gpu = {"temperature_c": None, "throttled": 4, "reasons": ["HW Slowdown"]}
    assert broken(NONE, during={**DURING, "throttled": 2, "alerts": ["soc012"], "gpu": gpu}) == [
        "the device throttled itself 2 times, for heat or over-current",
        "the device throttled its soc012 for heat",
        "the GPU was slowed down in 4 samples (HW Slowdown)",
    ]
