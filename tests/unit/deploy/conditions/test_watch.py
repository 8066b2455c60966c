import json
import os
import subprocess
import sys
import time

import pytest

from deploy.conditions import nvml
from deploy.conditions import watch as module
from deploy.conditions.watch import Watch
from tests.unit.deploy.conditions.fake_nvml import FakeNvml

TICKS = os.sysconf("SC_CLK_TCK")


def stat(machine, *, user, idle=0.0, iowait=0.0, steal=0.0):
    cells = [int(value * TICKS) for value in (user, 0, 0, idle, iowait, 0, 0, steal)]
    machine.write("proc/stat", f"cpu  {' '.join(map(str, cells))} 0 0\ncpu0 1 2\n")


def process(machine, name, seconds, *, waited_for=0.0):
    cells = ["R", *["0"] * 10, str(int(seconds * TICKS)), "0", str(int(waited_for * TICKS)), *["0"] * 9]
    machine.write(f"proc/{name}/stat", f"77 (a (bad) name) {' '.join(cells)}\n")


@pytest.fixture
def clock(monkeypatch):
    """Ten seconds pass from one look at the clock to the next."""
    seconds = iter(range(0, 10_000, 10))
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))


@pytest.fixture
def by_hand(monkeypatch):
    """A watch takes no samples of its own but that at the end."""
    monkeypatch.setattr(Watch, "_run", lambda self: None)


def test_what_others_used_and_what_the_hypervisor_took(machine, clock, by_hand):
    stat(machine, user=100, idle=50)
    process(machine, "self", 5)
    process(machine, "41", 20)
    with Watch(pids=lambda: [41, 42]) as watch:
        stat(machine, user=112, idle=55.5, iowait=1, steal=1.5)
        process(machine, "self", 6)
        process(machine, "41", 23)
    found = watch.summary()
    assert found["seconds"] == 10
    assert (found["background_cores"], found["most_background_cores"]) == (0.8, 0.8)  # of 12 s, 4 were ours
    assert (found["steal_percent"], found["iowait_percent"]) == (7.5, 5.0)
    assert json.loads(json.dumps(found)) == found


def test_time_of_a_child_that_ended_is_still_ours(machine, clock, by_hand):
    stat(machine, user=100)
    process(machine, "self", 5)
    process(machine, "41", 20)
    with Watch(pids=lambda: [41]) as watch:
        stat(machine, user=110)
        process(machine, "self", 5, waited_for=30)
        (machine.root / "proc/41/stat").unlink()
    assert watch.summary()["background_cores"] == 0


def test_heat_clocks_and_events(machine, by_hand):
    machine.plant("sysfs_jetpack6_orin_nano.txt", under="sys")
    machine.write("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000")
    machine.write("sys/fs/cgroup/cpu.stat", "nr_throttled 4")
    watch = Watch()
    for kilohertz, degrees in ((1728000, 63000), (729000, 71000), (1510000, 68500)):
        machine.write("sys/devices/system/cpu/cpufreq/policy4/scaling_cur_freq", "115200")
        machine.write("sys/devices/system/cpu/cpufreq/policy0/scaling_cur_freq", str(kilohertz))
        machine.write("sys/class/thermal/thermal_zone8/temp", str(degrees))
        watch._sample()
    machine.write("sys/class/thermal/cooling_device3/type", "cpu-throttle-alert")
    machine.write("sys/class/thermal/cooling_device3/cur_state", "2")
    with watch:
        machine.write("sys/class/hwmon/hwmon3/oc3_event_cnt", "9")
        machine.write("sys/fs/cgroup/cpu.stat", "nr_throttled 6")
        machine.write("proc/pressure/cpu", "some avg10=0.00 avg60=0.00 avg300=0.00 total=1000000")
    found = watch.summary()
    assert found["mhz"] == {"min": 729, "low": 729, "median": 1510, "max": 1728}  # of the faster cluster
    assert (found["temperature_c"], found["throttled"], found["stopped"]) == (71, 7, 2)
    assert (found["waiting_percent"], found["alerts"]) == (0, ["cpu"])
    assert found["gpu"] == {
        "mhz": {"min": 1020, "low": 1020, "median": 1020, "max": 1020},
        "temperature_c": None,
        "reasons": None,
        "throttled": None,
    }


def test_an_nvidia_gpu(machine, by_hand, monkeypatch):
    reasons, clocks = iter([0x4, 0x40, 0x4]), iter([1980, 1200, 1970])
    fake = FakeNvml(
        nvmlDeviceGetClockInfo=lambda: next(clocks),
        nvmlDeviceGetTemperature=83,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda: next(reasons),
    )
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: fake)
    with Watch(gpu=0) as watch:
        watch._sample()
        watch._sample()
    assert watch.summary()["gpu"] == {
        "mhz": {"min": 1200, "low": 1200, "median": 1970, "max": 1980},
        "temperature_c": 83,
        "reasons": ["SW Power Cap", "HW Thermal Slowdown"],
        "throttled": 1,
    }
    assert fake.open == 0


@pytest.mark.parametrize("text", ["", "cpu", "cpu  a b c d e f g h", "intr 5\n"])
def test_a_machine_that_shows_nothing(machine, by_hand, text):
    machine.write("proc/stat", text)
    machine.write("proc/self/stat", text)
    with Watch(gpu=0) as watch:
        pass
    found = watch.summary()
    known = {name for name, value in found.items() if value is not None}
    assert known == {"seconds", "cores", "load_average", "alerts", "cost_percent"}


def test_a_counter_that_starts_anew(machine, by_hand):
    machine.plant("sysfs_jetpack6_orin_nano.txt", under="sys")
    with Watch() as watch:
        for number in (1, 2, 3):
            machine.write(f"sys/class/hwmon/hwmon3/oc{number}_event_cnt", "0")
        machine.write("sys/class/hwmon/hwmon3/oc1_event_cnt", "1")
    assert watch.summary()["throttled"] == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_real_program_beside_us_is_background_and_our_child_is_not():
    burn = "import time\nend = time.monotonic() + 30\nwhile time.monotonic() < end: pass"
    child = subprocess.Popen([sys.executable, "-c", burn])
    try:
        with Watch() as all_are_others, Watch(pids=lambda: [child.pid]) as the_child_is_ours:
            time.sleep(0.2)
    finally:
        child.kill()
        child.wait()
    assert all_are_others.summary()["background_cores"] > the_child_is_ours.summary()["background_cores"]


def test_the_thread_ends_with_the_block(machine):
    def fail():
        with watch:
            time.sleep(0.02)
            raise KeyError

    watch = Watch(interval_s=0.001)
    with pytest.raises(KeyError):
        fail()
    assert not watch._thread.is_alive()
    assert watch.summary()["cost_percent"] > 0
