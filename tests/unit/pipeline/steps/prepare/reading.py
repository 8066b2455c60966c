"""What the tests of prepare read and write."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.parts.index import SPLITS
from tests import tiny


def splits_of(index):
    return {name: index.parts[name] for name in SPLITS}


def findings(output):
    report = json.loads((output / "report.json").read_text())
    return [tuple(one[key] for key in ("kind", "action", "paths", "reason")) for one in report["findings"]]


def dropped_by(output):
    report = json.loads((output / "report.json").read_text())
    return {path: one["reason"] for one in report["findings"] for path in one.get("dropped", [])}


def paths(index, split):
    return {item.path for item in index.parts[split]}


def leak(parted):
    shutil.copy(parted / "test/class_0/0.png", parted / "train/class_0/copy.png")


def scene(number, *, brighter=0):
    """A smooth picture; a number and its brighter picture are near copies."""
    coarse = np.random.default_rng(number).integers(30, 220, (8, 8, 3), dtype=np.uint8)
    fine = np.asarray(Image.fromarray(coarse).resize((48, 48), Image.Resampling.BICUBIC), np.int16)
    return Image.fromarray((fine + brighter).clip(0, 255).astype(np.uint8))


def refused(output, folder, words, **options):
    """The data cannot be used: one line says so, and nothing is written."""
    with pytest.raises(DataError, match=words) as caught:
        tiny.prepared(output, folder, **options)
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []
