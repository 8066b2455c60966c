"""Measurement records as the device package writes them."""

import base64
import hashlib
import itertools
import math
from typing import Any

import numpy as np

IMAGES, CLASSES = 450, 10
SHA = {name: hashlib.sha256(name.encode()).hexdigest() for name in ("fp32", "int8")}


def wilson(correct: int, count: int) -> tuple[float, float]:
    z, share = 1.96, correct / count
    centre, root = share + z * z / (2 * count), z * math.sqrt(share * (1 - share) / count + z * z / (4 * count**2))
    scale = 100 / (1 + z * z / count)
    return scale * (centre - root), scale * (centre + root)


def spread(value: float, share: float, *, name: str | None = None) -> dict[str, float]:
    first, ends = name or "value", f"{name}_" if name else ""
    return {first: value, f"{ends}low": value * (1 - share), f"{ends}high": value * (1 + share)}


def accuracy_record(correct: int) -> dict[str, Any]:
    """As many images of each class; all wrong ones are taken for the class after theirs."""
    low, high = wilson(correct, IMAGES)
    each, wrong = IMAGES // CLASSES, IMAGES - correct
    missed = [wrong // CLASSES + (label < wrong % CLASSES) for label in range(CLASSES)]
    rows = [[0] * CLASSES for _ in range(CLASSES)]
    for label, count in enumerate(missed):
        rows[label][label], rows[label][(label + 1) % CLASSES] = each - count, count
    right = np.arange(IMAGES) >= wrong
    return {
        "metric": "accuracy",
        "percent": 100 * correct / IMAGES,
        "correct": correct,
        "count": IMAGES,
        "low_percent": low,
        "high_percent": high,
        "per_class_percent": {str(label): 100 * (each - count) / each for label, count in enumerate(missed)},
        "confusion": rows,
        "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
    }


def scenario_records(p90: float) -> dict[str, Any]:
    run = {
        "queries": 1000,
        "seconds": 10.2,
        "valid": True,
        "invalid_reasons": [],
        "loadgen": None,
        "samples_per_query": 1,
    }
    few = {
        **run,
        "queries": 70,
        "samples_per_query": 8,
        "valid": False,
        "invalid_reasons": ["70 queries, at least 662 are needed"],
    }
    first = {"p90": p90 * 1.03, "p99": p90 * 1.4}
    return {
        "SingleStream": {**run, "percentile": 90, "latency_ms": spread(p90, 0.02), "early_stopping_ms": first},
        "MultiStream": {
            **few, "percentile": 99, "latency_ms": spread(p90 * 9, 0.05), "early_stopping_ms": {"p99": None},
        },
        "Offline": {**run, "queries": 1, "samples_per_query": 5000, "samples_per_second": spread(1200 / p90, 0.01)},
    }  # fmt: skip


def variant_record(precision: str, correct: int, p50: float, p90: float, *, size: int, onnx: str) -> dict[str, Any]:
    percentiles = {"p50": (p50, 0.01), "p90": (p90, 0.02), "p99": (p90 * 1.3, 0.04)}
    latency = {
        key: end for name, (at, share) in percentiles.items() for key, end in spread(at, share, name=name).items()
    }
    steps = {"decode": 0.4, "preprocess": 0.2, "inference": p50, "postprocess": 0.004, "total": p50 + 0.65}
    return {
        "precision": precision,
        "engine_sha256": "e" * 64,
        "onnx_sha256": SHA[onnx],
        "engine_bytes": size,
        "bundle_bytes": size + 1_100_000,
        "accuracy": accuracy_record(correct),
        "latency_ms": {**latency, "mean": p50 * 1.02, "minimum": p50 * 0.9, "maximum": p90 * 2},
        "scenarios": scenario_records(p90),
        "end_to_end_ms": {"copy": None, **{step: spread(at, 0.03, name="p50") for step, at in steps.items()}},
        "memory_mb": 61.5,
        "load_seconds": 0.02,
        "cold_start_seconds": 1.25,
        "energy": None,
        "energy_reason": "the energy counter of the processor cannot be read by this user",
        "golden": {"relative_error": 1e-6, "tolerance": 0.001 if precision == "fp32" else 0.1, "argmax_agreement": 1.0},
        "placement": {
            "asked": "CPU",
            "nodes": {"CPU": 30, "GPU.0": 1},
            "precisions": {"i8": 12, "f32": 19} if precision == "int8" else {},
            "strays": {"count": 1, "first": ["blocks.0.attn/Softmax"]},
        },
        "over_budget": [],
    }


def difference_records(variants: dict[str, Any]) -> list[dict[str, Any]]:
    """Of every pair: points of accuracy give or take 0.6, ratio of p90 give or take 1 %."""
    found = []
    for (reference, theirs), (name, ours) in itertools.combinations(variants.items(), 2):
        points = ours["accuracy"]["percent"] - theirs["accuracy"]["percent"]
        accuracy = {"value": points, "low": points - 0.6, "high": points + 0.6, "method": "Newcombe 1998, paired"}
        ratio = spread(ours["latency_ms"]["p90"] / theirs["latency_ms"]["p90"], 0.01)
        latency = {"percentile": 90, **ratio}
        found.append({"variant": name, "reference": reference, "accuracy_points": accuracy, "latency_ratio": latency})
    return found


def target_record(name: str, runtime: str, variants: dict[str, Any], **other: Any) -> dict[str, Any]:
    device = {
        "schema": 1,
        "target": name,
        "runtime": runtime,
        "runtime_version": "2026.4.1",
        "machine_id": "0123456789abcdef",
        "architecture": "x86_64",
        "system": "Linux",
        "cpu": {"model": "Intel(R) Xeon(R) Platinum 8481C", "cores": 2, "features": ["amx_bf16", "avx512_vnni"]},
        "memory_gb": 23,
        "l4t": None,
        "python": "3.11.7",
        "bf16": True,
    }
    state = {"load_1m": 0.3, "clock_mhz": 2700.0, "temperature_c": None, "power": {"mode": "performance"}}
    during = {"seconds": 42.0, "clock_mhz": 2650.0, "background_cores": 0.04}
    return {
        "schema": 2,
        "target": name,
        "runtime": runtime,
        "runtime_version": "2026.4.1",
        "device": device,
        "state": {"before": state, "during": during, "after": {**state, "load_1m": 1.1}},
        "profile": "standard",
        "statistics_engine": {"name": "loadgen", "version": "6.0.17"},
        "minimum": {"queries": 664, "seconds": 10.0},
        "data_sha256": "d" * 64,
        "attempts": 1,
        "partial": None,
        "budget": {},
        "valid": True,
        "invalid_reasons": [],
        "variants": variants,
        "differences": difference_records(variants),
        "skipped": {},
        "failed": {},
        **other,
    }
