"""What training did to how well the student takes INT8: one flat metric, one table of layers, one of groups."""

import csv
import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.parts.friendliness import NOT_OBSERVED, Layer, sqnr_by_group
from pipeline.parts.groups import group_of

MEASURES = ("outlier_ratio", "kurtosis", "sqnr_db")
DIGITS = 2
LEFT_OUT = "head or added by training"
Layers = Mapping[str, Layer]


def write_friendliness(output: Path, *, before: Layers, after: Layers, images: int) -> None:
    """Writes what was measured into the existing folder `output`.

    `friendliness.json` is for `dvc metrics`: of `before` and of `after` the group with the lowest SQNR, its SQNR and
    the median of all groups in dB, the largest outlier ratio and the largest kurtosis. Both are over the layers that
    were measured before, so that they compare: without the head and without bottlenecks, which come with the data.
    Where nothing was measured before, `after` is over all layers. `layers` counts them.

    `friendliness.csv` has a row for every layer, also for those left out above, with a note where a number is missing.
    `friendliness_groups.csv` has the SQNR in dB of every group of layers.

    Args:
        output: folder.
        before: the layers of the pretrained student; without those that were not pretrained.
        after: the layers of the student that is deployed, all of them.
        images: how many were shown.
    """
    found = {"before": before, "after": after}
    compared = before or after
    seen = {when: {name: layer for name, layer in layers.items() if name in compared} for when, layers in found.items()}
    content = {
        "schema": 1,
        "images": images,
        "layers": len(compared),
        "layers_not_observed": sum(layer.note == NOT_OBSERVED for layer in after.values()),
        **{when: _summary(layers) for when, layers in seen.items() if layers},
    }
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    (output / "friendliness.json").write_text(text, encoding="utf-8")
    columns = ["layer", "group", *(f"{measure}_{when}" for measure in MEASURES for when in found), "note"]
    _write_csv(output / "friendliness.csv", (_row(name, found) for name in after), columns=columns)
    groups = {f"{when}_db": sqnr_by_group(layers) for when, layers in found.items()}
    rows = ({"group": group, **{key: of.get(group) for key, of in groups.items()}} for group in groups["after_db"])
    _write_csv(output / "friendliness_groups.csv", rows, columns=("group", *groups))


def _summary(layers: Layers) -> dict[str, Any]:
    """The numbers worth following; a number that no layer has is absent."""
    ratios = {group: value for group, value in sqnr_by_group(layers).items() if value is not None}
    summary: dict[str, Any] = {}
    if ratios:
        lowest = min(ratios, key=ratios.__getitem__)
        summary["lowest_group"] = lowest
        summary["lowest_group_sqnr_db"] = round(ratios[lowest], DIGITS)
        summary["median_group_sqnr_db"] = round(statistics.median(ratios.values()), DIGITS)
    for measure in ("outlier_ratio", "kurtosis"):
        values = [getattr(layer, measure) for layer in layers.values()]
        most = max((value for value in values if value is not None), default=None)
        if most is not None:
            summary[f"largest_{measure}"] = round(most, DIGITS)
    return summary


def _row(name: str, found: Mapping[str, Layers]) -> dict[str, Any]:
    row: dict[str, Any] = {"layer": name, "group": group_of(name)}
    notes = {}
    for when, layers in found.items():
        layer = layers.get(name)
        row |= {f"{measure}_{when}": getattr(layer, measure, None) for measure in MEASURES}
        if layers:
            notes[when] = LEFT_OUT if layer is None else layer.note
    return row | {"note": "; ".join(f"{when}: {note}" for when, note in notes.items() if note)}


def _write_csv(path: Path, rows: Iterable[Mapping[str, Any]], *, columns: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: _cell(value) for name, value in row.items()} for row in rows)


def _cell(value: object) -> object:
    return round(value, DIGITS) if isinstance(value, float) else value
