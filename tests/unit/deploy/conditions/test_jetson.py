import os

import pytest

from deploy.conditions import jetson as module
from deploy.conditions.jetson import (
    ask_tegrastats,
    gpu_device,
    gpu_mhz,
    jetson,
    overcurrent_events,
    parse_tegrastats,
    rails,
    throttle_alerts,
)  # fmt: skip
from deploy.nvidia import parse_nvpmodel
from tests.unit.deploy.conditions.conftest import recorded

NOTHING = {
    "ram_used_mb": None, "ram_total_mb": None, "cpu_percent": [], "cpu_mhz": [], "emc_percent": None, "emc_mhz": None,
    "gpu_percent": None, "gpu_mhz": None, "zones_c": {}, "rails_mw": {},
}  # fmt: skip


def test_tegrastats_of_jetpack_6():
    assert parse_tegrastats(recorded("tegrastats_jetpack6_orin_nano.txt")) == {
        "ram_used_mb": 6185,
        "ram_total_mb": 7620,
        "cpu_percent": [15, 11, 14, 13, 11, 8],
        "cpu_mhz": [729] * 6,
        "emc_percent": 43,
        "emc_mhz": 2133,
        "gpu_percent": 63,
        "gpu_mhz": 621,
        "zones_c": {
            "cpu": 53.968, "soc2": 52.437, "soc0": 50.75, "gpu": 53.343, "tj": 53.968, "soc1": 51.656,
        },
        "rails_mw": {"VDD_IN": 12479, "VDD_CPU_GPU_CV": 4667, "VDD_SOC": 2817},
    }  # fmt: skip


def test_tegrastats_of_jetpack_7_on_an_orin():
    said = parse_tegrastats(recorded("tegrastats_jetpack7_agx_orin.txt"))
    assert (said["gpu_percent"], said["gpu_mhz"], said["emc_percent"], said["emc_mhz"]) == (12, 1300, 3, 3199)
    assert (len(said["cpu_mhz"]), said["cpu_percent"][0]) == (12, 23)
    assert said["zones_c"] == {"cpu": 52.968, "soc2": 48.406, "soc0": 49.531, "gpu": 47.625}  # not their averages
    assert said["rails_mw"] == {"VDD_GPU_SOC": 5139, "VDD_CPU_CV": 3268, "VIN_SYS_5V0": 5500}


def test_tegrastats_of_jetpack_7_on_a_thor_without_root():
    said = parse_tegrastats(recorded("tegrastats_jetpack7_thor.txt"))
    assert (said["gpu_percent"], said["gpu_mhz"], said["emc_mhz"]) == (None, None, None)
    assert said["zones_c"]["tj"] == 63.281
    assert said["rails_mw"] == {"VDD_GPU": 37528, "VDD_CPU_SOC_MSS": 18961, "VIN_SYS_5V0": 18331, "VIN": 87426}


def test_parts_of_lines():
    said = parse_tegrastats("CPU [2%@972,off,off] GR3D_FREQ @[314,315,314] EMC_FREQ 0% VDD_GPU -392mW/-392mW VIN 9mW")
    assert (said["cpu_mhz"], said["gpu_percent"], said["gpu_mhz"]) == ([972], None, 315)
    assert (said["emc_percent"], said["emc_mhz"]) == (0, None)
    assert said["rails_mw"] == {"VDD_GPU": -392, "VIN": 9}


@pytest.mark.parametrize("line", ["", "Must be root to run tegrastats", "CPU [", "RAM N/A", "GR3D_FREQ", "\x00\ufffd"])
def test_other_lines_say_nothing(line):
    assert parse_tegrastats(line) == NOTHING


def test_power_mode_of_a_thor():
    assert parse_nvpmodel(recorded("nvpmodel_jetpack7_thor.txt")) == "MAXN"


def test_an_orin_nano(machine):
    machine.jetson()
    machine.plant("sysfs_jetpack6_orin_nano.txt", under="sys")
    line = recorded("tegrastats_jetpack6_orin_nano.txt").strip()
    machine.command("tegrastats", f'echo "$*" > {machine.root}/asked; echo "{line}"; echo "{line}"')
    assert jetson() == {
        "gpu": {"mhz": 1020, "least_mhz": 1020, "most_mhz": 1020, "governor": "nvhost_podgov"},
        "emc": {"mhz": 2133},  # the kernel shows it to root alone
        "gpu_percent": 63,
        "fan": 255,
        "throttled": 3,
        "alerts": [],
        "clocks_held": True,
        "rails_mw": {"VDD_IN": 9250, "VDD_CPU_GPU_CV": 4665, "VDD_SOC": 2816},
    }
    assert (machine.root / "asked").read_text() == "--interval 1000\n"


def test_a_thor_whose_gpu_sleeps(machine):
    machine.jetson()
    machine.plant("sysfs_jetpack7_thor.txt", under="sys")
    machine.command("tegrastats", "echo 'not to be asked: the kernel says all of it'")
    assert jetson() == {
        "gpu": {"mhz": 314, "least_mhz": 314, "most_mhz": 1575, "governor": "nvhost_podgov"},
        "emc": {"mhz": 2750, "least_mhz": 665, "most_mhz": 4266, "governor": "bpmp-bw"},
        "gpu_percent": None,
        "fan": 58,
        "throttled": None,
        "alerts": [],
        "clocks_held": None,
        "rails_mw": {"VDD_GPU": 0, "VDD_CPU_SOC_MSS": 6510, "VIN_SYS_5V0": 6520, "VIN": 19780},
    }
    machine.write("sys/class/thermal/cooling_device2/cur_state", "1\n")
    assert throttle_alerts() == ["gpu"]
    assert gpu_mhz() == 314


def test_what_is_no_jetson(machine):
    machine.command("tegrastats", "echo 'RAM 1/2MB'")
    assert jetson() is None
    machine.write(
        "proc/device-tree/model", "NVIDIA Jetson Orin Nano Developer Kit\0"
    )  # in a container without the release
    assert jetson()["gpu"] is None


def test_a_jetson_that_shows_nothing(machine):
    machine.jetson()
    found = jetson()
    assert found.pop("alerts") == []
    assert set(found.values()) == {None}
    assert (overcurrent_events(), gpu_mhz(), rails()) == (None, None, [])


def test_emc_of_root(machine):
    machine.jetson()
    machine.write("sys/kernel/debug/bpmp/debug/clk/emc/rate", "3199000000\n")
    assert jetson()["emc"] == {"mhz": 3199}


def test_load_of_the_gpu_by_the_kernel(machine):
    machine.jetson()
    machine.plant("sysfs_jetpack6_orin_nano.txt", under="sys")
    machine.write("sys/class/devfreq/17000000.gpu/device/load", "475\n")
    assert jetson()["gpu_percent"] == 47.5


def test_rails_that_are_none(machine):
    machine.write("sys/class/hwmon/hwmon0/name", "ina3221")
    for number, (label, volts) in enumerate([("NC", "5000"), ("VDD_A", "broken"), ("VDD_B", "5000")], start=1):
        machine.write(f"sys/class/hwmon/hwmon0/in{number}_label", label)
        machine.write(f"sys/class/hwmon/hwmon0/in{number}_input", volts)
        machine.write(f"sys/class/hwmon/hwmon0/curr{number}_input", "200")
    assert [(rail.name, rail.milliwatts()) for rail in rails()] == [("VDD_A", None), ("VDD_B", 1000)]


def test_tegrastats_that_prints_nothing_or_ends_or_is_not_there(machine, monkeypatch):
    assert ask_tegrastats() is None
    machine.command("tegrastats", "exit 1")
    assert ask_tegrastats() is None
    monkeypatch.setattr(module, "TEGRASTATS_S", 0.1)
    machine.command("tegrastats", "exec /bin/sleep 60")
    assert ask_tegrastats() is None


def test_tegrastats_is_ended_after_its_first_line(machine):
    machine.command("tegrastats", f"echo $$ > {machine.root}/pid; printf 'RAM 1/'; echo '2MB'; exec /bin/sleep 60")
    assert ask_tegrastats() == "RAM 1/2MB"
    pid = (machine.root / "pid").read_text().strip()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)


@pytest.mark.parametrize(
    ("names", "gpu"),
    [
        (["17000000.gpu", "bwmgr"], "17000000.gpu"),
        (["15340000.vic", "17000000.ga10b"], "17000000.ga10b"),
        (["gpu-nvd-0", "gpu-gpc-1", "gpu-gpc-0"], "gpu-gpc-0"),
        (["15340000.vic", "bwmgr", "gpu-nvd-0"], None),
    ],
)
def test_names_of_the_gpus_clock(machine, names, gpu):
    for name in names:
        machine.write(f"sys/class/devfreq/{name}/cur_freq", "1000000")
    found = gpu_device()
    assert (found and found.name) == gpu
