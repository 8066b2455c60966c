"""A target's budget against what was measured: in words, for the record, which the host's verdict keeps to."""

from collections.abc import Callable, Mapping
from typing import Any

from deploy.errors import OverBudgetError

Variant = Mapping[str, Any]
Judge = Callable[[Variant, Mapping[str, float], Variant | None], list[str]]


def judged(variants: Mapping[str, dict[str, Any]], budget: Mapping[str, float]) -> dict[str, dict[str, Any]]:
    """Add `over_budget` to each variant: one phrase for each limit that it does not keep, with by how much.

    Args:
        variants: what the record says of each.
        budget: limits by the names of `deploy.target.BUDGETS`.
    """
    exact = next((each for each in variants.values() if each["precision"] == "fp32"), None)
    return {name: {**each, "over_budget": _overruns(each, budget, exact)} for name, each in variants.items()}


def outcome(record: Mapping[str, Any]) -> str:
    """Return in one line which variants of a record keep the budget, and which do not or failed, and why."""
    parts = []
    kept, over = _kept(record), _over(record)
    if not record["budget"]:
        parts.append(f"no budget; measured: {', '.join(record['variants']) or 'none'}")
    else:
        parts.append(f"the budget is kept by {', '.join(kept) or 'none'}")
    if over:
        parts.append(f"over it: {over}")
    if record["failed"]:
        parts.append("failed: " + "; ".join(f"{name} ({reason})" for name, reason in record["failed"].items()))
    return "; ".join(parts)


def check_budget(record: Mapping[str, Any]) -> None:
    """Refuse a record of a target with a budget that none of its variants keeps.

    Raises:
        OverBudgetError: naming every variant, and by how much it misses the budget.
    """
    if not record["budget"] or not record["variants"] or _kept(record):
        return
    msg = (
        f"target {record['target']!r}: no variant keeps its budget: {_over(record)}; give it a faster or smaller "
        f"variant, or raise `targets.{record['target']}.budget`"
    )
    raise OverBudgetError(msg)


def _kept(record: Mapping[str, Any]) -> list[str]:
    return [name for name, variant in record["variants"].items() if not variant["over_budget"]]


def _over(record: Mapping[str, Any]) -> str:
    over = {name: variant["over_budget"] for name, variant in record["variants"].items() if variant["over_budget"]}
    return "; ".join(f"{name} ({', '.join(phrases)})" for name, phrases in over.items())


def _overruns(variant: Variant, budget: Mapping[str, float], exact: Variant | None) -> list[str]:
    return [phrase for key, judge in JUDGES.items() if key in budget for phrase in judge(variant, budget, exact)]


def _latency(variant: Variant, budget: Mapping[str, float], _: Variant | None) -> list[str]:
    name = f"p{budget['percentile']}"
    return _above(f"{name} {{}} ms", variant["latency_ms"][name], budget["latency_ms"])


def _accuracy(variant: Variant, budget: Mapping[str, float], exact: Variant | None) -> list[str]:
    if exact is None:
        return ["accuracy_drop: no fp32 variant of this target was measured to compare with"]
    drop = round(exact["accuracy"]["percent"] - variant["accuracy"]["percent"], 6)
    return _above("{} points below fp32", drop, budget["accuracy_drop"])


def _size(variant: Variant, budget: Mapping[str, float], _: Variant | None) -> list[str]:
    return _above("{} MB", variant["engine_bytes"] / 1e6, budget["size_mb"])


def _memory(variant: Variant, budget: Mapping[str, float], _: Variant | None) -> list[str]:
    if variant["memory_mb"] is None:
        return ["memory_mb: not measured on this device"]
    return _above("{} MB of memory", variant["memory_mb"], budget["memory_mb"])


def _energy(variant: Variant, budget: Mapping[str, float], _: Variant | None) -> list[str]:
    if variant["energy"] is None:
        return [f"energy_mj: not measured: {variant['energy_reason']}"]
    return _above("{} mJ an inference", variant["energy"]["mj_per_inference"], budget["energy_mj"])


JUDGES: Mapping[str, Judge] = {
    "latency_ms": _latency,
    "accuracy_drop": _accuracy,
    "size_mb": _size,
    "memory_mb": _memory,
    "energy_mj": _energy,
}


def _above(words: str, value: float, limit: float) -> list[str]:
    """Say that a value is above its limit, and by how much."""
    if value <= limit:
        return []
    digits = max(0, 3 - len(str(int(value))))
    text = str(round(value, digits)) if digits else str(round(value))
    shown = words.format(text if float(text) > limit else repr(value))
    return [f"{shown}, at most {limit:g} allowed{_excess(value, limit)}"]


def _excess(value: float, limit: float) -> str:
    """Say by how much, as a share or a multiple; of a limit of 0 there is neither."""
    if limit == 0:
        return ""
    if value >= 2 * limit:
        return f", {value / limit:.3g} times that"
    share = 100 * (value / limit - 1)
    return f", {share:.0f} % more" if share >= 1 else ", less than 1 % more"
