import pytest

from deploy.conditions import nvml as module
from deploy.conditions.nvml import open_nvml
from tests.unit.deploy.conditions.fake_nvml import FakeNvml


@pytest.fixture
def library(monkeypatch):
    def install(**answers):
        fake = FakeNvml(**answers)
        monkeypatch.setattr(module.ctypes, "CDLL", lambda name: fake)
        return fake

    return install


def test_what_a_gpu_answers(library):
    fake = library(
        nvmlDeviceGetTotalEnergyConsumption=123_456,
        nvmlDeviceGetPowerUsage=30_390,
        nvmlDeviceGetClockInfo=1980,
        nvmlDeviceGetTemperature=41,
        nvmlDeviceGetCurrentClocksThrottleReasons=0x4,
    )
    gpu = open_nvml(0)
    assert (gpu.energy_mj(), gpu.power_w(), gpu.sm_mhz()) == (123_456, 30.39, 1980)
    assert (gpu.temperature_c(), gpu.reasons()) == (41, 4)
    assert fake.open == 1
    gpu.close()
    assert fake.open == 0


def test_a_jetson_orin_supports_nothing_and_an_old_library_lacks_a_question(library):
    library(nvmlDeviceGetPowerUsage=None, nvmlDeviceGetTemperature=None)
    gpu = open_nvml(0)
    assert (gpu.power_w(), gpu.temperature_c(), gpu.energy_mj()) == (None, None, None)


@pytest.mark.parametrize("trouble", [{"begins": 9}, {"gpus": 0}])
def test_a_driver_that_does_not_start_and_a_gpu_that_is_not_there(library, trouble):
    fake = library(**trouble)
    assert open_nvml(0) is None
    assert fake.open == 0


def test_no_driver(monkeypatch):
    def refuse(name):
        raise OSError(name)

    monkeypatch.setattr(module.ctypes, "CDLL", refuse)
    assert open_nvml(0) is None
