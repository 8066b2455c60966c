import time

import pytest

from deploy.conditions import meters as module
from deploy.conditions import nvml
from deploy.conditions.meters import Counted, Sampled, find_meter, nvidia_gpu
from deploy.errors import MeasureError
from deploy.target import Target, read_options
from tests.unit.deploy.conditions.fake_nvml import FakeNvml


def target(runtime="openvino", **options):
    return Target(name="t", runtime=runtime, options=read_options(runtime, options, place="o"))


CUDA = target("onnxruntime", provider="cuda", device=1)


def test_rapl_sums_the_packages_and_each_may_go_round(machine):
    machine.plant("powercap_x86_haswell.txt", under="sys/class/powercap")
    machine.write("sys/class/powercap/intel-rapl:1/name", "package-1")
    machine.write("sys/class/powercap/intel-rapl:1/energy_uj", "262143000000")
    machine.write("sys/class/powercap/intel-rapl:1/max_energy_range_uj", "262143999938")
    meter = find_meter(target())
    assert meter.counter == "RAPL package-0 + package-1"
    meter.start()
    machine.write("sys/class/powercap/intel-rapl:0/energy_uj", "2471974853\n")
    machine.write("sys/class/powercap/intel-rapl:1/energy_uj", "62\n")
    assert meter.stop() == pytest.approx(2.5 + 1.0)


def test_rapl_of_an_account_that_may_not_read_it_is_a_reason(machine):
    machine.plant("powercap_x86_haswell.txt", under="sys/class/powercap")
    (machine.root / "sys/class/powercap/intel-rapl:0/energy_uj").unlink()
    assert "intel-rapl:0/energy_uj is not readable by this account; run as root" in find_meter(target())


def test_a_cpu_without_a_counter_and_places_that_none_sees(machine):
    assert "this CPU shows no energy counter (RAPL" in find_meter(target())
    assert "this CPU shows no energy counter (RAPL" in find_meter(target("onnxruntime"))
    assert find_meter(target(device="GPU")) == "no energy counter is known here for openvino's GPU"
    through = target("onnxruntime", provider="openvino", openvino_device="NPU")
    assert find_meter(through) == "no energy counter is known here for onnxruntime's NPU"


@pytest.mark.parametrize("place", [target(), CUDA, target("tensorrt")], ids=["cpu", "cuda", "tensorrt"])
def test_a_jetson_measures_what_the_board_takes(machine, place):
    machine.plant("sysfs_jetpack6_orin_nano.txt", under="sys")
    meter = find_meter(place)
    assert meter.counter == "rail VDD_IN"
    assert meter._read() == pytest.approx(4.984 * 1.856)


def test_a_thor_has_a_sensor_at_its_input(machine):
    machine.plant("sysfs_jetpack7_thor.txt", under="sys")
    meter = find_meter(target("tensorrt"))
    assert (meter.counter, meter._read()) == ("rail VIN", 19.78)
    machine.write("sys/class/hwmon/hwmon5/label", "another\n")
    assert find_meter(target("tensorrt")).counter == "rail VDD_GPU + VDD_CPU_SOC_MSS + VIN_SYS_5V0"


def test_rails_that_are_not_all_of_a_board_are_no_meter(machine):
    machine.plant("sysfs_jetpack6_orin_nano.txt", under="sys")
    machine.write("sys/class/hwmon/hwmon1/in1_label", "NC")
    assert "no energy counter" in find_meter(target())


@pytest.mark.parametrize(
    ("answers", "counter"),
    [
        (
            {"nvmlDeviceGetTotalEnergyConsumption": 5000, "nvmlDeviceGetPowerUsage": 70_000},
            "NVML total energy of GPU 1",
        ),
        ({"nvmlDeviceGetPowerUsage": 70_000}, "NVML power of GPU 1"),
        ({"nvmlDeviceGetPowerUsage": None}, "GPU 1 tells neither its energy nor its power"),
    ],
)
def test_an_nvidia_gpu(machine, monkeypatch, answers, counter):
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: FakeNvml(gpus=2, **answers))
    meter = find_meter(CUDA)
    assert (meter if isinstance(meter, str) else meter.counter) == counter


def test_energy_of_an_nvidia_gpu(machine, monkeypatch):
    readings = iter([1000, 5000, 19_500])  # one of them is to see whether it can
    answers = {"nvmlDeviceGetTotalEnergyConsumption": lambda: next(readings)}
    monkeypatch.setattr(nvml.ctypes, "CDLL", lambda name: FakeNvml(gpus=2, **answers))
    meter = find_meter(CUDA)
    meter.start()
    assert meter.stop() == 14.5


def test_a_gpu_without_a_driver_and_a_hidden_one(machine, monkeypatch):
    assert find_meter(CUDA) == "NVIDIA's management library (libnvidia-ml.so.1) does not open GPU 1"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,2")
    assert (nvidia_gpu(CUDA), nvidia_gpu(target("tensorrt")), nvidia_gpu(target())) == (2, 3, None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert find_meter(CUDA) == "CUDA_VISIBLE_DEVICES hides the target's GPU"


def test_power_is_integrated_by_trapezoids(monkeypatch):
    seconds, watts = iter([0.0, 1.0, 4.0]), iter([2.0, 4.0, None, 6.0])
    monkeypatch.setattr(module.time, "monotonic", lambda: next(seconds))
    meter = Sampled("rail", lambda: next(watts), sample_s=3600)
    meter.start()
    meter._sample()
    meter._sample()  # this reading failed
    assert meter.stop() == 1 * (2 + 4) / 2 + 3 * (4 + 6) / 2


def test_power_is_read_again_and_again():
    count = 0

    def read():
        nonlocal count
        count += 1
        return 10.0

    meter = Sampled("rail", read, sample_s=0.001)
    began = time.monotonic()
    meter.start()
    time.sleep(0.05)
    joules = meter.stop()
    assert 0.5 <= joules <= 10 * (time.monotonic() - began)
    assert count > 3
    assert not meter._thread.is_alive()


@pytest.mark.parametrize("meter", [Counted("c", lambda: None), Sampled("c", lambda: None)], ids=["counted", "sampled"])
def test_a_counter_that_cannot_be_read_at_first(meter):
    with pytest.raises(MeasureError, match="energy counter 'c' cannot be read any more; measure again"):
        meter.start()


@pytest.mark.parametrize("kind", [Counted, Sampled])
def test_a_counter_that_goes_away(kind):
    readings = iter([5.0])
    meter = kind("c", lambda: next(readings, None))
    meter.start()
    with pytest.raises(MeasureError, match="energy counter 'c' cannot be read any more"):
        meter.stop()


def test_a_counter_that_goes_back_without_a_known_range():
    readings = iter([5.0, 4.0])
    meter = Counted("c", lambda: next(readings))
    meter.start()
    with pytest.raises(MeasureError, match="energy counter 'c' went back by 1 J; measure again"):
        meter.stop()
