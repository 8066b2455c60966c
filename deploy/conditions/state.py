"""The device's momentary state: what a measurement records before and after, and what the doctor shows."""

from pathlib import Path
from typing import Any

from deploy.conditions import cpu
from deploy.conditions.gpu import gpus_now
from deploy.conditions.jetson import jetson
from deploy.conditions.limits import container, limits, virtual_machine
from deploy.files import system_text
from deploy.nvidia import nvpmodel

PLATFORM_PROFILE = Path("/sys/firmware/acpi/platform_profile")


def state() -> dict[str, Any]:
    """Read the device's state in JSON values; what cannot be read is None.

    Commands are asked for GPUs and a Jetson's power mode: it can take seconds, and none of it is to be done while
    something is timed.
    """
    zones = cpu.zones_c()
    return {
        "load_average": cpu.load_average(),
        "power_mode": power_mode(),
        "temperature_c": cpu.hottest_c(zones),
        "zones_c": zones,
        "cpu": cpu.cpu(),
        "memory": cpu.memory(),
        "limits": limits(),
        "container": container(),
        "virtual_machine": virtual_machine(),
        "nvidia": gpus_now(),
        "jetson": jetson(),
    }


def power_mode() -> str | None:
    """Name the mode: a Jetson's by `nvpmodel`, else the firmware's profile, else the CPU's governor."""
    return nvpmodel() or system_text(PLATFORM_PROFILE) or cpu.governor()
