"""What the report shows of the data: images per class, some of them, and what the checks found."""

import base64
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.steps.report.documents import Json, read_optional

SCHEMA = 2  # of the data report
SHOWN = 50  # findings
SAMPLE = re.compile(r"(\d+)-(\d+)\.jpg")

# What each kind of finding is called, and each thing done about it.
KINDS = {
    "broken": "broken file",
    "animated": "several pictures in one file",
    "unpaired": "image or label without the other",
    "mask": "mask that does not fit",
    "names": "names that are hard to tell apart",
    "copies": "copy",
    "near_copies": "near copy",
    "ignored": "no part of the data",
}


@dataclass(frozen=True, kw_only=True)
class ClassRow:
    """One class: images by split, their shares of the largest class in percent, and samples as data URIs.

    `pixels` is its share of all pixels in percent, where images have masks; they count to the rarest class they hold.
    """

    label: str
    counts: list[int]
    shares: list[float]
    samples: list[str] = field(default_factory=list)
    pixels: float | None = None


def read_dataset(folder: Path) -> Json | None:
    """Reads the data report, and beside it under `samples` pictures of each class, by its position, as data URIs.

    Raises:
        DataError: the report is of another schema, or none.
    """
    report = read_optional(folder / "report.json", schema=SCHEMA)
    if report is None:
        return None
    samples: dict[int, list[str]] = {}
    matches = (match for file in (folder / "samples").glob("*.jpg") if (match := SAMPLE.fullmatch(file.name)))
    for match in sorted(matches, key=lambda match: (int(match[1]), int(match[2]))):
        content = base64.b64encode((folder / "samples" / match[0]).read_bytes()).decode()
        samples.setdefault(int(match[1]), []).append(f"data:image/jpeg;base64,{content}")
    return {**report, "samples": samples}


def view(report: Json | None) -> dict[str, Any] | None:
    """What the page says of a data report."""
    if report is None:
        return None
    counts: Mapping[str, Mapping[str, int]] = report.get("counts") or {}
    labels = list(dict.fromkeys(label for split in counts.values() for label in split))
    rows = {label: [split.get(label, 0) for split in counts.values()] for label in labels}
    most = max(map(sum, rows.values()), default=0) or 1
    findings = report.get("findings") or []
    pixels = report.get("pixels_percent") or {}
    return {
        "source": report.get("source"),
        "calibration": report.get("calibration"),
        "sizes": _sizes(report),
        "splits": list(counts),
        "classes": [
            ClassRow(
                label=label,
                counts=row,
                shares=[round(100 * count / most, 2) for count in row],
                samples=report["samples"].get(place, []),
                pixels=pixels.get(label),
            )
            for place, (label, row) in enumerate(rows.items())
        ],
        "totals": [sum(split.values()) for split in counts.values()],
        "pictured": bool(report["samples"]),
        "masked": bool(pixels),
        "looked": report.get("near_similarity") is not None,
        "findings": [{**one, "kind": KINDS.get(one["kind"], one["kind"])} for one in findings[:SHOWN]],
        "count": len(findings),
        "found": [_named(kind, count) for kind, count in (report.get("found") or {}).items()],
    }


def _sizes(report: Json) -> str | None:
    """Width x height: that of all images, or the range of both."""
    spreads = [report.get(side) for side in ("width", "height")]
    if None in spreads:
        return None
    ends = [" x ".join(str(spread[end]) for spread in spreads if spread) for end in ("smallest", "largest")]
    return ends[0] if ends[0] == ends[1] else f"{ends[0]} to {ends[1]}"


def _named(found: str, count: int) -> str:
    """Such as "near copy dropped: 3"."""
    kind, action = found.rsplit(" ", 1)
    return f"{KINDS.get(kind, kind)}, {action}: {count:,}"
