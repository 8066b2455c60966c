import os

import pytest

from deploy.conditions import cpu as module
from deploy.conditions.cpu import (
    clocks_mhz,
    cpu,
    governor,
    held,
    hottest_c,
    load_average,
    memory,
    spread,
    throttle_events,
    waited_us,
    zones_c,
)  # fmt: skip

CPU = "sys/devices/system/cpu"


def test_a_virtual_machine_of_x86(machine):
    machine.plant("proc_x86_virtual_machine.txt", under="proc")
    assert cpu() == {
        "cores": os.cpu_count(),
        "governor": None,
        "mhz": {"min": 2596, "median": 2596, "max": 2596},
        "most_mhz": None,
        "throttled": None,
        "waiting_percent": 1.12,
    }
    assert waited_us() == 2955159027
    assert memory() == {"total_mb": 24105, "available_mb": 22617, "swap_used_mb": 0}
    assert (zones_c(), hottest_c({}), held()) == ({}, None, None)


def test_an_orin_nano(machine):
    machine.plant("sysfs_jetpack6_orin_nano.txt", under="sys")
    assert (governor(), held()) == ("schedutil", True)
    assert cpu()["mhz"] == cpu()["most_mhz"] == {"min": 1728, "median": 1728, "max": 1728}
    assert zones_c() == {"cpu-thermal": 63.6, "tj-thermal": 63.8}  # cv0-thermal cannot be read on the board
    assert hottest_c(zones_c()) == 63.8


def test_a_machine_that_shows_nothing(machine):
    assert cpu() == {
        "cores": os.cpu_count(),
        "governor": None,
        "mhz": None,
        "most_mhz": None,
        "throttled": None,
        "waiting_percent": None,
    }
    assert memory() == {"total_mb": None, "available_mb": None, "swap_used_mb": None}
    assert (waited_us(), throttle_events(), held()) == (None, None, None)


@pytest.mark.parametrize("text", ["", "\n", "N/A\n", "\x00\xff garbage", "12 kHz"])
def test_files_that_say_something_else_are_not_there(machine, text):
    for path in ("cpufreq/policy0/scaling_cur_freq", "cpu0/thermal_throttle/core_throttle_count"):
        machine.write(f"{CPU}/{path}", text)
    machine.write("sys/class/thermal/thermal_zone0/temp", text)
    for path in ("pressure/cpu", "cpuinfo", "meminfo"):
        machine.write(f"proc/{path}", text)
    assert (clocks_mhz(), throttle_events(), zones_c(), waited_us()) == ([], None, {}, None)
    assert memory()["available_mb"] is None


def test_cores_and_packages_that_were_throttled(machine):
    for core, (own, package, shared) in enumerate([(3, 0, 7), (0, 0, 7), (2, 1, 5)]):
        machine.write(f"{CPU}/cpu{core}/thermal_throttle/core_throttle_count", f"{own}\n")
        machine.write(f"{CPU}/cpu{core}/thermal_throttle/package_throttle_count", f"{shared}\n")
        machine.write(f"{CPU}/cpu{core}/topology/physical_package_id", f"{package}\n")
    assert throttle_events() == 3 + 0 + 2 + 7 + 5


def test_zones_of_one_name_and_those_that_are_no_sensors(machine):
    zones = [("acpitz", "40000"), ("acpitz", "52500"), ("PMIC-Die", "100000"), ("gpu-thermal", "-256000")]
    for number, (name, text) in enumerate(zones):
        machine.write(f"sys/class/thermal/thermal_zone{number}/type", name)
        machine.write(f"sys/class/thermal/thermal_zone{number}/temp", text)
    for number, (name, text) in enumerate([("k10temp", "61250"), ("nvme", "80000")]):
        machine.write(f"sys/class/hwmon/hwmon{number}/name", name)
        machine.write(f"sys/class/hwmon/hwmon{number}/temp1_input", text)
    assert zones_c() == {"acpitz": 52.5, "k10temp": 61.2}


def test_some_of_many_clocks_are_read_evenly(machine):
    for core in range(20):
        machine.write(f"{CPU}/cpufreq/policy{core}/scaling_cur_freq", f"{core}000\n")
    assert clocks_mhz() == list(range(20))
    assert clocks_mhz(8) == [0, 3, 6, 9, 12, 15, 18]


def test_spread():
    assert spread([]) is None
    assert spread([1200.4, 2600.0, 1800.0, 1900.0]) == {"min": 1200, "median": 1850, "max": 2600}


def test_a_system_without_a_load_average(monkeypatch):
    monkeypatch.delattr(module.os, "getloadavg")
    assert load_average() is None
