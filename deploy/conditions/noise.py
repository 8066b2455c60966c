"""Whether a run was noisy, in words: its numbers then say more of the machine's other work than of the engines."""

from collections.abc import Mapping
from typing import Any

# Of each core. A tenth of the cores' time is what a system's own services take; what uses more than that takes turns
# with the engine that is measured, which moves the tail of its latency.
BACKGROUND_PER_CORE = 0.1
# Of all cores' time. What a hypervisor takes comes in slices of milliseconds: 1 % of it lies at the 99th percentile.
STEAL_PERCENT = 1.0
# Of the median. One core's boost lies up to a fifth over that of all cores; what falls deeper is another clock.
LOW_CLOCK = 0.8


def noise(during: Mapping[str, Any]) -> list[str]:
    """Say why a run was noisy, one line per reason; [] of a quiet run.

    What could not be read is no reason.

    Args:
        during: what `Watch.summary` returned.
    """
    found = []
    background, cores = during["background_cores"], during["cores"]
    if background is not None and background > BACKGROUND_PER_CORE * cores:
        found.append(
            f"other programs used {background:g} of {cores} cores on average, "
            f"at most {BACKGROUND_PER_CORE * cores:g} is quiet"
        )
    steal = during["steal_percent"]
    if steal is not None and steal > STEAL_PERCENT:
        found.append(
            f"the hypervisor took {steal:g} % of the cores' time (steal), at most {STEAL_PERCENT:g} % is quiet"
        )
    clock = during["mhz"]
    if clock is not None and clock["low"] < LOW_CLOCK * clock["median"]:
        found.append(
            f"the CPU's clock fell to {clock['low']} of {clock['median']} MHz, at least {LOW_CLOCK:.0%} is steady"
        )
    if during["stopped"]:
        found.append(f"the container's limit of CPU time stopped it {times(during['stopped'])}")
    return found + throttling(during)


def throttling(during: Mapping[str, Any]) -> list[str]:
    """Say how the device slowed itself down while it was watched."""
    found = []
    if during["throttled"]:
        found.append(f"the device throttled itself {times(during['throttled'])}, for heat or over-current")
    if during["alerts"]:
        found.append(f"the device throttled its {', '.join(during['alerts'])} for heat")
    gpu = during["gpu"]
    if gpu is not None and gpu["throttled"]:
        found.append(f"the GPU was slowed down in {gpu['throttled']} samples ({', '.join(gpu['reasons'])})")
    return found


def times(count: int) -> str:
    """Return "once", "2 times" and so on."""
    return "once" if count == 1 else f"{count} times"
