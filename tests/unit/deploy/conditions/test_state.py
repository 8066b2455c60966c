import json

from deploy.conditions.state import power_mode, state
from tests.unit.deploy.conditions.conftest import recorded

KEYS = [
    "load_average", "power_mode", "temperature_c", "zones_c", "cpu", "memory", "limits", "container",
    "virtual_machine", "nvidia", "jetson",
]  # fmt: skip


def test_a_machine_that_shows_nothing(machine):
    found = state()
    assert list(found) == KEYS
    assert found["load_average"] >= 0
    assert (found["power_mode"], found["temperature_c"], found["jetson"]) == (None, None, None)
    assert (found["zones_c"], found["nvidia"], found["virtual_machine"]) == ({}, [], False)


def test_a_thor(machine):
    machine.jetson()
    machine.plant("sysfs_jetpack7_thor.txt", under="sys")
    machine.command("nvpmodel", f"echo '{recorded('nvpmodel_jetpack7_thor.txt')}'")
    found = state()
    assert (found["power_mode"], found["temperature_c"]) == ("MAXN", 55.1)
    assert found["jetson"]["rails_mw"]["VIN"] == 19780
    assert json.loads(json.dumps(found)) == found


def test_a_state_stays_small_on_many_cores(machine):
    for core in range(128):
        machine.write(f"sys/devices/system/cpu/cpufreq/policy{core}/scaling_cur_freq", f"{2_000_000 + core}\n")
    assert len(json.dumps(state())) < 1000


def test_power_mode_of_other_machines(machine):
    assert power_mode() is None
    machine.write("sys/devices/system/cpu/cpu0/cpufreq/scaling_governor", "schedutil\n")
    assert power_mode() == "schedutil"
    machine.write("sys/firmware/acpi/platform_profile", "balanced\n")
    assert power_mode() == "balanced"
    machine.command("nvpmodel", "echo 'NV Power Mode: MAXN_SUPER'; echo 2")
    assert power_mode() == "MAXN_SUPER"
