"""The index of a data set: every image's path, label and content hash, by split; and its images as arrays."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError

SCHEMA = 1
FILE = "index.json"
SPLITS = ("train", "validation", "test")

LoadImage = Callable[[Path], NDArray[np.float32]]
"""Decodes and preprocesses one file into an array of shape (3, height, width)."""


@dataclass(frozen=True)
class Item:
    """One labelled image.

    Attributes:
        path: POSIX path relative to the index's root.
        label: position in the index's labels.
        sha256: hash of the file's bytes.
    """

    path: str
    label: int
    sha256: str


@dataclass(frozen=True)
class Index:
    """A checked data set.

    Attributes:
        labels: names of the classes.
        root: folder the items' paths start from; relative to the index's folder, or absolute.
        splits: items of "train", "validation" and "test".
        calibration: items of the train split that quantisation may look at.
    """

    labels: tuple[str, ...]
    root: str
    splits: dict[str, tuple[Item, ...]]
    calibration: tuple[Item, ...]

    @property
    def sha256(self) -> str:
        """Hash over labels, splits, calibration list and, through the items, every image's content."""
        content = {"labels": self.labels, "splits": self.splits, "calibration": self.calibration}
        canonical = json.dumps(content, default=asdict, sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of images by split and class name."""
        return {
            split: {name: sum(item.label == i for item in items) for i, name in enumerate(self.labels)}
            for split, items in self.splits.items()
        }


def image_folder(path: Path | None) -> Path:
    """Returns the absolute path of the user's folder of images.

    Raises:
        DataError: it is not set or no folder.
    """
    if path is None or not path.is_dir():
        msg = f"`prepare.path` {str(path)!r} is no folder; give the folder that holds your images"
        raise DataError(msg)
    return path.resolve()


def write_index(index: Index, folder: Path) -> None:
    """Writes `index.json` into `folder`."""
    content = {"schema": SCHEMA, **asdict(index), "sha256": index.sha256}
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def read_index(folder: Path) -> tuple[Index, Path]:
    """Reads `index.json` from `folder`.

    Returns:
        The index, and the folder its items' paths start from.

    Raises:
        DataError: the file is absent, of another schema, or not what its own hash says.
    """
    file = folder / FILE
    if not file.is_file():
        msg = f"no {str(file)!r}; run `dvc repro prepare`"
        raise DataError(msg)
    content = json.loads(file.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        msg = f"{str(file)!r} has schema {content.get('schema')!r}, not {SCHEMA}; run `dvc repro -f prepare`"
        raise DataError(msg)
    index = Index(
        labels=tuple(content["labels"]),
        root=content["root"],
        splits={name: _items(content["splits"][name]) for name in SPLITS},
        calibration=_items(content["calibration"]),
    )
    if index.sha256 != content["sha256"]:
        msg = f"{str(file)!r} was changed after it was written; run `dvc repro -f prepare`"
        raise DataError(msg)
    return index, folder / index.root


def _items(entries: Sequence[dict[str, Any]]) -> tuple[Item, ...]:
    return tuple(Item(**entry) for entry in entries)


def stacked(root: Path, items: Sequence[Item], *, load: LoadImage) -> NDArray[np.float32]:
    """Loads `items` into one array of shape (len(items), 3, height, width)."""
    return np.stack([load(root / item.path) for item in items])


def labels_of(items: Sequence[Item]) -> NDArray[np.int64]:
    """Returns the labels of `items`, of shape (len(items),)."""
    return np.array([item.label for item in items], dtype=np.int64)
