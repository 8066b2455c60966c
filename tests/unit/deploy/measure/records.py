"""Measurement records of schema 2 as far as a comparison reads them."""

import base64
import math
from pathlib import Path
from typing import Any

import numpy as np

from deploy.document import Document
from deploy.errors import MeasureError
from deploy.measure.statistics import wilson

IMAGES = 400


def interval(value: float, share: float = 0.01) -> dict[str, float]:
    return {"value": value, "low": value * (1 - share), "high": value * (1 + share)}


def accuracy(wrong: set[int], *, count: int = IMAGES) -> dict[str, Any]:
    right = np.ones(count, bool)
    right[list(wrong)] = False
    correct = int(right.sum())
    low, high = wilson(correct, count)
    return {
        "metric": "accuracy",
        "percent": round(100 * correct / count, 2),
        "low_percent": round(100 * low, 2),
        "high_percent": round(100 * high, 2),
        "count": count,
        "correct": correct,
        "per_class_percent": {"a": 99.0, "b": 98.0},
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
    }


def variant(*, wrong: set[int] = frozenset({1, 2, 3}), p90: float = 2.0, **changes: Any) -> dict[str, Any]:
    latency = {}
    for name, value in (("p50", p90 * 0.8), ("p90", p90), ("p99", p90 * 1.5)):
        latency |= {name: value, f"{name}_low": value * 0.99, f"{name}_high": value * 1.01}
    return {
        "precision": "fp32",
        "accuracy": accuracy(wrong),
        "latency_ms": latency,
        "scenarios": {"Offline": {"samples_per_second": interval(1000 / p90)}},
        "engine_bytes": 1_000_000,
        "memory_mb": 60.0,
        "energy": None,
        **changes,
    }


def record(target: str = "board", *, variants: dict[str, Any] | None = None, **changes: Any) -> dict[str, Any]:
    return {
        "schema": 2,
        "target": target,
        "runtime": "openvino",
        "runtime_version": "2026.4.1",
        "device": {"machine_id": "0123", "cpu": {"model": "AMD EPYC", "cores": 2}, "python": "3.11"},
        "profile": "standard",
        "statistics_engine": {"name": "loadgen", "version": "6.0.17"},
        "data_sha256": "d" * 64,
        "partial": None,
        "valid": True,
        "invalid_reasons": [],
        "variants": {"fp32": variant()} if variants is None else variants,
        "failed": {},
        **changes,
    }


def document(content: dict[str, Any], name: str = "a.json") -> Document:
    return Document(Path(name), content, error=MeasureError, remedy="measure it again")


def log_interval(before: float, after: float, share: float) -> tuple[float, float]:
    """What two intervals of `value * (1 -+ share)` say of the ratio, by the formula written out anew."""
    ratio = math.log(after / before)
    low = math.sqrt(math.log(1 - share) ** 2 + math.log(1 + share) ** 2)
    return math.exp(ratio - low), math.exp(ratio + low)
