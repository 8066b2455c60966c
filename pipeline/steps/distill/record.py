"""The record that every method leaves."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file
from torch import Tensor, nn

from pipeline.parts.adapters.saved import trained_state
from pipeline.parts.cka import LAST
from pipeline.parts.network import Network

TRAINED_LOGITS = "validation_logits.npz"
CURVE = (
    "epoch", "phase", "loss", "ce_teacher", "ce_student", "kl", "mse", "learning_rate",
    "teacher_accuracy_percent", "student_accuracy_percent",
)  # fmt: skip
"""Columns of curves.csv; what a method does not have is left blank, so that plots of all methods look alike."""


ALIGNMENT = ("layer", "before", "after", "teacher_kept", "student_kept")


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a training leaves.

    Attributes:
        method: its name.
        models: trained, by role.
        trained: every parameter that was trained.
        metric: what `accuracies` are: "accuracy" or "mIoU".
        accuracies: on validation, in percent, by role.
        places: of the validation images whose logits are kept.
        logits: of these, (images, classes, ...), by role.
        alignment: CKA by layer.
        curve: one row per epoch.
        costs: time and memory, one row per epoch; the only part that differs between two equal runs.
    """

    method: str
    models: Mapping[str, Network]
    trained: Sequence[nn.Parameter]
    metric: str
    accuracies: dict[str, float]
    places: Sequence[int]
    logits: Mapping[str, Tensor]
    alignment: Sequence[Mapping[str, Any]]
    curve: Sequence[Mapping[str, Any]]
    costs: Sequence[Mapping[str, Any]]


def write(output: Path, record: Record) -> None:
    """Writes the record into the existing folder `output`."""
    for role, model in record.models.items():
        state, described = trained_state(model, record.trained)
        save_file(state, output / f"{role}.safetensors", metadata=described)
    arrays: dict[str, Any] = {role: logits.numpy() for role, logits in record.logits.items()}
    np.savez(output / TRAINED_LOGITS, places=np.array(record.places, np.int64), **arrays)
    _write_csv(output / "curves.csv", record.curve, columns=CURVE)
    _write_csv(output / "cka.csv", record.alignment, columns=ALIGNMENT)
    _write_json(output / "metrics.json", _metrics(record))
    _write_csv(output / "cost.csv", record.costs, columns=("epoch", "seconds", "images_per_second", "memory_mb"))
    spent = sum(row["seconds"] for row in record.costs)
    peak = max((row["memory_mb"] for row in record.costs), default=0.0)
    cost = {"schema": 1, "training_seconds": round(spent, 3), "memory_peak_mb": round(peak, 1)}
    _write_json(output / "cost.json", cost)


def _metrics(record: Record) -> dict[str, Any]:
    last = next((row for row in record.alignment if row["layer"] == LAST), {})
    unique = {id(parameter): parameter.numel() for parameter in record.trained}
    metrics: dict[str, Any] = {
        "schema": 2,
        "method": record.method,
        "metric": record.metric,
        **{role: {"validation_accuracy_percent": round(value, 3)} for role, value in record.accuracies.items()},
        "trained_parameters": sum(unique.values()),
    }
    before, after = last.get("before"), last.get("after")
    if before is not None and after is not None and math.isfinite(before) and math.isfinite(after):
        metrics["cka"] = {"before": round(before, 4), "after": round(after, 4)}
        if before > 0:
            metrics["cka"]["drop_percent"] = round(100 * (before - after) / before, 2)
    return metrics


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n", extrasaction="ignore")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: object) -> object:
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else ""
    return value


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
