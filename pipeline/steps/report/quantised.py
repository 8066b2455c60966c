"""What the report shows of INT8 and FP16: how each variant was made, and how well the student takes INT8."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.steps.report import figures
from pipeline.steps.report.documents import Json, read_optional
from pipeline.steps.report.series import read_rows

LAYERS = {"linear": "all with weights", "full": "all with weights, and attention", "mlp": "MLPs of the blocks"}
MEASURES = {
    "lowest_group_sqnr_db": "Lowest SQNR of a group",
    "median_group_sqnr_db": "Median SQNR of the groups",
    "largest_outlier_ratio": "Largest outlier ratio of a layer's input",
    "largest_kurtosis": "Largest kurtosis of a layer's input",
}


@dataclass(frozen=True, kw_only=True)
class Quantised:
    """Records as they were read: those of the variants by name, the metric of friendliness and its two tables."""

    variants: Mapping[str, Json]
    friendliness: Json | None
    groups: list[dict[str, str]]
    layers: list[dict[str, str]]


def read_quantised(onnx: Path, merged: Path, *, current: Collection[str]) -> Quantised:
    """Reads what `quantize` and `merge` recorded; absent records stay away.

    Args:
        onnx: folder of the bundles.
        merged: what `merge` wrote.
        current: variants that were made of the exported network as it is now; others are of an earlier one.

    Raises:
        DataError: a record is of another schema, or none.
    """
    paths = [path for path in sorted(onnx.glob("*/quantization.json")) if path.parent.name in current]
    records = {path.parent.name: read_optional(path) or {} for path in paths}
    return Quantised(
        variants=records,
        friendliness=read_optional(merged / "friendliness.json"),
        groups=read_rows(merged / "friendliness_groups.csv"),
        layers=read_rows(merged / "friendliness.csv"),
    )


def view(found: Quantised) -> dict[str, Any]:
    """What the page says of them."""
    noise: Mapping[str, float] = next(
        (record["sensitivity"] for record in found.variants.values() if "sensitivity" in record), {}
    )
    return {
        "variants": [_variant(name, record) for name, record in found.variants.items()],
        "images": None if found.friendliness is None else found.friendliness.get("images"),
        "measures": [] if found.friendliness is None else _measures(found.friendliness),
        "ranked": bool(noise),
        "groups": [
            (row["group"], _number(row["before_db"]), _number(row["after_db"]), _noise(noise.get(row["group"])))
            for row in found.groups
        ],
        "layers": [
            (
                row["layer"],
                *(
                    _number(row[f"{name}_{when}"])
                    for name in ("outlier_ratio", "kurtosis")
                    for when in ("before", "after")
                ),
                row["note"],
            )
            for row in found.layers
        ],
    }


def _variant(name: str, record: Json) -> dict[str, Any]:
    calibration = record.get("calibration_sha256") or []
    if record.get("precision") == "fp16":
        layers, smooth, bias = "all but LayerNorm and Softmax", "-", "-"
    else:
        share = record.get("smooth_quant")
        layers, bias = (
            LAYERS.get(record.get("layers", ""), "not recorded"),
            record.get("bias_correction", "not recorded"),
        )
        smooth = "off" if share is None else f"{share:g}"
    return {
        "cells": (name, record.get("precision", "not recorded"), layers, smooth, bias, figures.count(len(calibration))),
        "notes": _notes(name, record),
    }


def _notes(name: str, record: Json) -> list[str]:
    notes = []
    reach = record.get("range")
    if reach:
        notes.append(
            f"{name}: the largest value is {reach['largest']:.3g}, given by {reach['node']}, and the largest that a "
            f"LayerNorm reads {reach['norm_largest']:.3g}; FP16 reaches to 65504"
        )
    skipped = record.get("not_quantised") or []
    if skipped:
        shown = ", ".join(skipped[:5]) + (f" and {len(skipped) - 5} more" if len(skipped) > 5 else "")
        notes.append(f"{name}: not quantised are {shown}")
    if record.get("tries"):
        rest = record.get("rest", "fp32").upper()
        tries = ", ".join(f"{one['drop']:.2f} with {one['left_out']}" for one in record["tries"])
        left = figures.enumerate_words(record["left_out"]) if record["left_out"] else "no group"
        notes.append(
            f"{name} may lose {figures.points(record['max_drop'])} on the validation split and leaves {left} in "
            f"{rest}; points lost in each try, with the number of groups left in {rest}: {tries}"
        )
    return notes


def _measures(metric: Json) -> list[tuple[str, str, str]]:
    rows = []
    for key, title in MEASURES.items():
        unit = " dB" if key.endswith("_db") else ""
        cells = []
        for when in ("before", "after"):
            found = metric.get(when) or {}
            text = f"{found[key]:.2f}{unit}" if key in found else figures.MISSING
            cells.append(f"{text} ({found['lowest_group']})" if key in found and key.startswith("lowest") else text)
        rows.append((title, cells[0], cells[1]))
    return rows


def _number(text: str) -> str:
    return f"{float(text):.2f}" if text else "-"


def _noise(share: float | None) -> str:
    return "-" if share is None else figures.error(share)
