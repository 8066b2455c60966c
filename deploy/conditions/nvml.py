"""NVIDIA's management library, for what is asked often: `nvidia-smi` would be a process each time."""

import ctypes
from typing import Any

LIBRARY = "libnvidia-ml.so.1"
SM, GPU_TEMPERATURE = 1, 0  # NVML_CLOCK_SM and NVML_TEMPERATURE_GPU of nvml.h


class Nvml:
    """One GPU; each question is answered with None where the device does not support it, as a Jetson Orin."""

    def __init__(self, library: Any, device: ctypes.c_void_p) -> None:
        self._library, self._device = library, device

    def energy_mj(self) -> int | None:
        """Return the millijoules used since the driver was loaded (GPUs since Volta)."""
        return self._ask("nvmlDeviceGetTotalEnergyConsumption", ctypes.c_ulonglong())

    def power_w(self) -> float | None:
        """Return the watts drawn, as the device averages them."""
        milliwatts = self._ask("nvmlDeviceGetPowerUsage", ctypes.c_uint())
        return None if milliwatts is None else milliwatts / 1000

    def sm_mhz(self) -> int | None:
        """Return the clock of the multiprocessors."""
        return self._ask("nvmlDeviceGetClockInfo", ctypes.c_uint(), SM)

    def temperature_c(self) -> int | None:
        """Return the chip's temperature."""
        return self._ask("nvmlDeviceGetTemperature", ctypes.c_uint(), GPU_TEMPERATURE)

    def reasons(self) -> int | None:
        """Return the mask of reasons why the clocks are not higher; see `deploy.conditions.gpu.WORDS`."""
        return self._ask("nvmlDeviceGetCurrentClocksThrottleReasons", ctypes.c_ulonglong())

    def close(self) -> None:
        """Let the library go."""
        self._library.nvmlShutdown()

    def _ask(self, question: str, answer: Any, *more: int) -> int | None:
        call = getattr(self._library, question, None)
        if call is None or call(self._device, *more, ctypes.byref(answer)) != 0:
            return None
        return int(answer.value)


def open_nvml(index: int) -> Nvml | None:
    """Open GPU `index`, as `nvidia-smi` counts; None without a driver or without such a GPU."""
    try:
        library = ctypes.CDLL(LIBRARY)
    except OSError:
        return None
    if library.nvmlInit_v2() != 0:
        return None
    device = ctypes.c_void_p()
    if library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(device)) != 0:
        library.nvmlShutdown()
        return None
    return Nvml(library, device)
