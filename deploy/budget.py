"""A target's budget against what was measured: in words, for the record, which the host's verdict keeps to."""

from collections.abc import Mapping
from typing import Any


def judged(variants: Mapping[str, dict[str, Any]], budget: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Add `over_budget` to each variant: one phrase for each limit that it does not keep.

    Args:
        variants: what the record says of each.
        budget: limits by the names of `deploy.target.BUDGETS`.
    """
    exact = next((each for each in variants.values() if each["precision"] == "fp32"), None)
    return {name: {**each, "over_budget": _overruns(each, budget, exact)} for name, each in variants.items()}


def _overruns(variant: Mapping[str, Any], budget: Mapping[str, float], exact: Mapping[str, Any] | None) -> list[str]:
    found = []
    if "latency_ms" in budget:
        name = f"p{budget['percentile']}"
        found += _above(f"{name} {{}} ms", variant["latency_ms"][name], budget["latency_ms"])
    if "accuracy_drop" in budget:
        if exact is None:
            found.append("accuracy_drop: no fp32 variant of this target was measured to compare with")
        else:
            drop = round(exact["accuracy"]["percent"] - variant["accuracy"]["percent"], 6)
            found += _above("{} points below fp32", drop, budget["accuracy_drop"])
    if "size_mb" in budget:
        found += _above("{} MB", variant["engine_bytes"] / 1e6, budget["size_mb"])
    if "memory_mb" in budget:
        if variant["memory_mb"] is None:
            found.append("memory_mb: not measured on this device")
        else:
            found += _above("{} MB of memory", variant["memory_mb"], budget["memory_mb"])
    if "energy_mj" in budget:
        found.append("energy_mj: not measured on this device")
    return found


def _above(words: str, value: float, limit: float) -> list[str]:
    if value <= limit:
        return []
    digits = max(0, 3 - len(str(int(value))))
    text = str(round(value, digits)) if digits else str(round(value))
    return [f"{words.format(text if float(text) > limit else repr(value))}, at most {limit:g} allowed"]
