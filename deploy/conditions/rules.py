"""The conditions that a target asks for: which of them a run has broken, in words."""

from collections.abc import Mapping
from typing import Any

from deploy.conditions.noise import throttling
from deploy.target import Conditions

# Above this load per core, other programs certainly take turns with the one that is measured.
BUSY_LOAD_PER_CORE = 1.5


def broken_rules(
    before: Mapping[str, Any], during: Mapping[str, Any], after: Mapping[str, Any], *, conditions: Conditions
) -> list[str]:
    """Say why a run is invalid, one line per reason; [] of a valid one.

    What a rule asks for and the device does not show is a reason too. A device that was throttled is one without any
    rule.

    Args:
        before: `state` before the first engine was loaded: the measurement itself keeps every core busy.
        during: what `Watch.summary` returned.
        after: `state` when everything was measured.
        conditions: what the target asks for.
    """
    return [
        *_load(before, conditions.load),
        *_power_mode(before, after, conditions.power_mode),
        *_temperature(before, during, conditions.temperature_c),
        *throttling(during),
    ]


def too_busy(state: Mapping[str, Any], limit: float | None = None) -> str | None:
    """Say by how much a device is too busy to be measured, or None.

    Args:
        state: of the device.
        limit: most load average per core; None is `BUSY_LOAD_PER_CORE`.
    """
    load, cores = state["load_average"], state["cpu"]["cores"]
    most = (BUSY_LOAD_PER_CORE if limit is None else limit) * cores
    if load is None or load <= most:
        return None
    return f"load average {load} on {cores} cores, at most {most:g} is valid"


def _load(before: Mapping[str, Any], limit: float | None) -> list[str]:
    if limit is not None and before["load_average"] is None:
        return [f"the target asks for a load of at most {limit:g} per core, this device shows no load average"]
    busy = too_busy(before, limit)
    return [f"the device was busy before the measurement: {busy}"] if busy else []


def _power_mode(before: Mapping[str, Any], after: Mapping[str, Any], wanted: str | None) -> list[str]:
    mode, later = before["power_mode"], after["power_mode"]
    if wanted is not None and mode is None:
        return [f"the target asks for power mode {wanted!r}, this device shows none"]
    if wanted is not None and mode != wanted:
        return [f"the device was in power mode {mode!r}, the target asks for {wanted!r}"]
    return [] if mode == later else [f"the power mode changed from {mode!r} to {later!r} while it was measured"]


def _temperature(before: Mapping[str, Any], during: Mapping[str, Any], limit: float | None) -> list[str]:
    if limit is None:
        return []
    gpu = during["gpu"] or {}
    degrees = {
        "before the measurement": [before["temperature_c"]],
        "during the measurement": [during["temperature_c"], gpu.get("temperature_c")],
    }
    known = {when: [each for each in values if each is not None] for when, values in degrees.items()}
    if not any(known.values()):
        return [f"the target asks for at most {limit:g} °C, this device shows no temperature"]
    return [
        f"the device was at {max(values):g} °C {when}, the target asks for at most {limit:g} °C"
        for when, values in known.items()
        if values and max(values) > limit
    ]
