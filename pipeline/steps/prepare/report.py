"""What was found in the data, and what was done about it: for the report, and for whoever asks where an image went."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.parts.checks.look import DecodeImage
from pipeline.parts.index import Index, Items
from pipeline.steps.prepare.policy import Outcome

SCHEMA = 2
SAMPLES_PER_CLASS = 4
SAMPLED_CLASSES = 12
SAMPLE_SIDE = 96  # pixels


def write_report(
    output: Path,
    index: Index,
    *,
    sizes: NDArray[np.int32],
    pixels: NDArray[np.float64] | None,
    outcomes: Sequence[Outcome],
    source: str,
    policy: Mapping[str, str],
    near_similarity: float | None,
) -> None:
    """Writes `report.json`: counts, sizes, and every finding with what was done.

    Args:
        output: existing folder.
        index: as it was written.
        sizes: width and height of all images, of shape (count, 2).
        pixels: share of all pixels that have each class, of images with masks.
        outcomes: the findings.
        source: name of the source.
        policy: what was to be done, by kind of finding.
        near_similarity: correlation from which two images were taken for one scene; None: not looked for.
    """
    report: dict[str, Any] = {
        "schema": SCHEMA,
        "source": source,
        "data_sha256": index.sha256,
        "counts": index.counts(),
        "calibration": len(index.parts["calibration"]),
        "width": _spread(sizes[:, 0]),
        "height": _spread(sizes[:, 1]),
        "policy": dict(policy),
        "near_similarity": near_similarity,
        "found": dict(sorted(Counter(f"{one.finding.kind} {one.action}" for one in outcomes).items())),
        "findings": [
            {
                "kind": one.finding.kind,
                "action": one.action,
                "paths": one.finding.paths,
                "reason": one.finding.reason,
                **({"dropped": one.dropped} if one.dropped else {}),
            }
            for one in outcomes
        ],
    }
    if pixels is not None:
        shares = (100 * pixels).round(3).tolist()
        report["pixels_percent"] = dict(zip(index.labels, shares, strict=True))
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _spread(values: NDArray[np.int32]) -> dict[str, int]:
    """Smallest, median and largest of some sizes in pixels."""
    low, middle, high = np.quantile(values, (0, 0.5, 1), method="nearest").tolist()
    return {"smallest": low, "median": middle, "largest": high}


def write_samples(folder: Path, items: Items, *, labels: Sequence[str], root: Path, decode: DecodeImage) -> None:
    """Writes small pictures of the first training images of some classes, `<class>-<number>.jpg`."""
    folder.mkdir()
    for label in range(min(len(labels), SAMPLED_CLASSES)):
        for number, row in enumerate(np.flatnonzero(items.labels == label)[:SAMPLES_PER_CLASS].tolist()):
            image = decode(root / items[row].path)
            image.thumbnail((SAMPLE_SIDE, SAMPLE_SIDE), Image.Resampling.LANCZOS)
            image.save(folder / f"{label}-{number}.jpg", quality=80)
