"""The processor and the memory at this moment: clocks, governor, heat, throttling, waiting."""

import os
import re
import statistics
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from deploy.files import system_text
from deploy.kernel import CPUINFO, MEMINFO, first_match, in_their_order, whole_number

CPUS = Path("/sys/devices/system/cpu")
THERMAL = Path("/sys/class/thermal")
HWMON = Path("/sys/class/hwmon")
PRESSURE = Path("/proc/pressure/cpu")

# Drivers of the CPU's own sensors, for machines that show no thermal zone of it (AMD's show none).
CPU_SENSORS = frozenset({"coretemp", "k10temp", "zenpower"})
DUMMY_ZONES = ("PMIC",)  # a Jetson Xavier shows a constant 100 degrees there
TOO_COLD_C = -200.0  # a zone whose sensor is switched off shows -256 degrees


def cpu() -> dict[str, Any]:
    """Describe the CPU; what cannot be read is None.

    Returns:
        `cores`, `governor`, `mhz` and `most_mhz` (each {min, median, max} over the cores), `throttled` (events since
        the start of the machine), `waiting_percent` (time in which a task waited for a core, over 10 s).
    """
    return {
        "cores": os.cpu_count() or 1,
        "governor": governor(),
        "mhz": spread(clocks_mhz()),
        "most_mhz": spread(_policies_mhz("scaling_max_freq")),
        "throttled": throttle_events(),
        "waiting_percent": _waiting_percent(),
    }


def load_average() -> float | None:
    """Return the load of the last minute; None where the system has no such number."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def governor() -> str | None:
    """Name the first core's frequency governor."""
    return system_text(CPUS / "cpu0/cpufreq/scaling_governor")


def clocks_mhz(most: int | None = None) -> list[float]:
    """Return the present clocks, one for all cores that change theirs together.

    Args:
        most: number of clocks to read, evenly spaced; None is all.
    """
    found = _policies_mhz("scaling_cur_freq", most=most)
    if found:
        return found
    # A virtual machine shows no policies; its kernel still says what the clock is.
    return [float(each) for each in re.findall(r"^cpu MHz\s*:\s*([\d.]+)", system_text(CPUINFO) or "", re.MULTILINE)]


def held() -> bool | None:
    """Say whether the CPU's clocks are held, as `jetson_clocks` does: the least allowed one is the most allowed one."""
    least, most = _policies_mhz("scaling_min_freq"), _policies_mhz("scaling_max_freq")
    return least == most if least and most else None


def spread(values: Iterable[float]) -> dict[str, int] | None:
    """Return {min, median, max} as integers; None of no values."""
    known = sorted(values)
    if not known:
        return None
    return {"min": round(known[0]), "median": round(statistics.median(known)), "max": round(known[-1])}


def zones_c() -> dict[str, float]:
    """Return the thermal zones in degrees Celsius by name, the hotter one of equal names; {} where there are none."""
    degrees: dict[str, float] = {}
    for zone in in_their_order(list(THERMAL.glob("thermal_zone*"))):
        _keep_hotter(degrees, system_text(zone / "type") or zone.name, whole_number(zone / "temp"))
    for folder in in_their_order(list(HWMON.glob("hwmon*"))):
        name = system_text(folder / "name")
        if name in CPU_SENSORS:
            for sensor in folder.glob("temp*_input"):
                _keep_hotter(degrees, name, whole_number(sensor))
    return degrees


def hottest_c(zones: Mapping[str, float]) -> float | None:
    """Return the highest of the zones' temperatures."""
    return max(zones.values(), default=None)


def throttle_events() -> int | None:
    """Count how often cores and packages were throttled by heat since the machine started; None where nothing counts.

    The counter of a package is shown once for each of its cores, and counted once.
    """
    cores = [whole_number(file) for file in CPUS.glob("cpu*/thermal_throttle/core_throttle_count")]
    packages = {
        whole_number(file.parents[1] / "topology/physical_package_id"): whole_number(file)
        for file in CPUS.glob("cpu*/thermal_throttle/package_throttle_count")
    }
    known = [count for count in (*cores, *packages.values()) if count is not None]
    return sum(known) if known else None


def memory() -> dict[str, int | None]:
    """Return megabytes (2^20 bytes): of the machine, available, and swapped out."""
    lines = dict(re.findall(r"^(\w+):\s*(\d+) kB", system_text(MEMINFO) or "", re.MULTILINE))
    total, available, swap, unused = (
        int(lines[key]) if key in lines else None for key in ("MemTotal", "MemAvailable", "SwapTotal", "SwapFree")
    )
    return {
        "total_mb": None if total is None else total // 1024,
        "available_mb": None if available is None else available // 1024,
        "swap_used_mb": None if swap is None or unused is None else (swap - unused) // 1024,
    }


def waited_us() -> int | None:
    """Return the microseconds in which some task waited for a core, since the machine started."""
    said = first_match(PRESSURE, r"^some .*total=(\d+)")
    return int(said) if said else None


def _waiting_percent() -> float | None:
    said = first_match(PRESSURE, r"^some avg10=([\d.]+)")
    return float(said) if said else None


def _policies_mhz(name: str, *, most: int | None = None) -> list[float]:
    files = in_their_order(list(CPUS.glob(f"cpufreq/policy*/{name}")))
    if most is not None and len(files) > most:
        files = files[:: -(-len(files) // most)]
    return [kilohertz / 1000 for kilohertz in map(whole_number, files) if kilohertz is not None]


def _keep_hotter(degrees: dict[str, float], name: str, millidegrees: int | None) -> None:
    if millidegrees is None or name.startswith(DUMMY_ZONES) or millidegrees / 1000 < TOO_COLD_C:
        return
    degrees[name] = max(round(millidegrees / 1000, 1), degrees.get(name, TOO_COLD_C))
