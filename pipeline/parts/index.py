"""The index of a data set: every image's path, label and content hash, by split; and its images as arrays.

On disk it is `index.json`, with the labels and a hash of each part, and one CSV file per part. In memory a part is a
few columns: a million images take about 150 MB, where as many objects would take twice that.
"""

import csv
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, overload

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError

SCHEMA = 3
FILE = "index.json"
SPLITS = ("train", "validation", "test")
PARTS = (*SPLITS, "calibration")
TEXT = np.dtypes.StringDType()

IGNORED = 255
"""In a mask: of no class."""
LoadImage = Callable[[Path], NDArray[np.float32]]
"""Decodes and preprocesses one file into an array of shape (3, height, width)."""
LoadMask = Callable[[Path], NDArray[np.int64]]
"""Decodes a mask and fits it to its image, of shape (height, width)."""


@dataclass(frozen=True, kw_only=True)
class Load:
    """How files become arrays.

    Attributes:
        image: an image.
        mask: its mask, with the values that the file holds.
    """

    image: LoadImage
    mask: LoadMask

    @classmethod
    def by(
        cls, image: Callable[..., NDArray[np.float32]], mask: Callable[..., NDArray[np.int64]], **how: Any
    ) -> "Load":
        """Binds to both functions how a device prepares images."""
        return cls(image=partial(image, **how), mask=partial(mask, **how))


@dataclass(frozen=True, slots=True)
class Item:
    """One labelled image.

    Attributes:
        path: POSIX path relative to the index's root.
        label: position in the index's labels; of an image with a mask, the rarest class in the mask.
        sha256: hash of the file's bytes.
        mask: path of its mask, as `path`; empty where the label is all there is.
        mask_sha256: hash of that file's bytes.
    """

    path: str
    label: int
    sha256: str
    mask: str = ""
    mask_sha256: str = ""


HASH = np.dtype("V32")
BLOCK = 16384  # rows that are lists of objects before they become columns


class Items(Sequence[Item]):
    """Labelled images, in columns.

    Args:
        columns: by the names of `Item`'s attributes, each of shape (count,); those of masks only where there are any.
    """

    def __init__(self, columns: dict[str, NDArray[Any]]) -> None:
        self.columns = columns

    @classmethod
    def of(cls, items: Iterable[Item]) -> "Items":
        """Takes items apart into columns."""
        left = iter(items)
        blocks = [_columns(block) for block in iter(lambda: list(islice(left, BLOCK)), [])] or [_columns(())]
        return cls.joined([cls(block) for block in blocks])

    @classmethod
    def joined(cls, parts: Sequence["Items"]) -> "Items":
        """Appends several, of which each or none has masks, one after another."""
        if len(parts) == 1:
            return parts[0]
        return cls({name: np.concatenate([part.columns[name] for part in parts]) for name in parts[0].columns})

    def replaced(self, **columns: NDArray[Any]) -> "Items":
        """Returns the same items with other columns."""
        return Items(self.columns | columns)

    def __len__(self) -> int:
        return len(self.columns["path"])

    @overload
    def __getitem__(self, place: int) -> Item: ...
    @overload
    def __getitem__(self, place: "slice | NDArray[Any]") -> "Items": ...
    def __getitem__(self, place: "int | slice | NDArray[Any]") -> "Item | Items":
        if isinstance(place, slice | np.ndarray):
            return Items({name: column[place] for name, column in self.columns.items()})
        values = {name: column[place] for name, column in self.columns.items()}
        mask = (str(values["mask"]), bytes(values["mask_sha256"]).hex()) if self.masked else ()
        return Item(str(values["path"]), int(values["label"]), bytes(values["sha256"]).hex(), *mask)

    def __iter__(self) -> Iterator[Item]:
        return (self[place] for place in range(len(self)))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Items) or len(self) != len(other):
            return False
        return all(np.array_equal(column, other.columns[name]) for name, column in self.columns.items())

    __hash__ = None  # type: ignore[assignment]  # arrays can be written to

    @property
    def masked(self) -> bool:
        """Whether the images have masks."""
        return "mask" in self.columns

    @property
    def contents(self) -> NDArray[np.uint64]:
        """The first 64 bits of each hash, of shape (count,).

        A million different images have two alike once in ten million times. Where that does no harm, they take a
        quarter of the memory.
        """
        return np.ascontiguousarray(self.columns["sha256"]).view(np.uint64).reshape(-1, 4)[:, 0]

    @property
    def labels(self) -> NDArray[np.int64]:
        """The labels, of shape (count,)."""
        return self.columns["label"].astype(np.int64)


def _columns(items: Sequence[Item]) -> dict[str, NDArray[Any]]:
    columns = {
        "path": _texts([item.path for item in items]),
        "label": np.array([item.label for item in items], np.int32),
        "sha256": _hashes(item.sha256 for item in items),
    }
    if items and items[0].mask:
        columns["mask"] = _texts([item.mask for item in items])
        columns["mask_sha256"] = _hashes(item.mask_sha256 for item in items)
    return columns


def _texts(names: Sequence[str]) -> NDArray[Any]:
    try:
        return np.array(names, TEXT)
    except UnicodeEncodeError as error:
        msg = f"the file name {error.object!r} is not UTF-8; rename it"
        raise DataError(msg) from error


def _hashes(digests: Iterable[str]) -> NDArray[np.void]:
    return np.frombuffer(b"".join(bytes.fromhex(digest or 64 * "0") for digest in digests), HASH)


@dataclass(frozen=True, eq=True)
class Index:
    """A checked data set.

    Attributes:
        labels: names of the classes.
        root: folder the items' paths start from; relative to the index's folder, or absolute.
        parts: items of "train", "validation", "test", and "calibration", those of train that quantisation may look at.
        ignore: value of a mask's pixels that have no class; None where all have one, or there are no masks.
        sha256: hash over labels and parts and, through the items, every file's content; known once it is written.
    """

    labels: tuple[str, ...]
    root: str
    parts: dict[str, Items]
    ignore: int | None = None
    sha256: str = ""

    @property
    def masked(self) -> bool:
        """Whether each pixel has a class, not each image."""
        return self.parts["train"].masked

    def counts(self) -> dict[str, dict[str, int]]:
        """Returns the number of images by split and class name."""
        size = len(self.labels)
        counts = {name: np.bincount(self.parts[name].labels, minlength=size).tolist() for name in SPLITS}
        return {name: dict(zip(self.labels, row, strict=True)) for name, row in counts.items()}


def write_index(index: Index, folder: Path) -> Index:
    """Writes `index.json` and a CSV file of each part into `folder`; returns the index with its hash."""
    parts = {
        name: {"count": len(items), "sha256": _write_part(items, _file(folder, name))}
        for name, items in index.parts.items()
    }
    content: dict[str, Any] = {
        "schema": SCHEMA,
        "labels": index.labels,
        "root": index.root,
        "ignore": index.ignore,
        "parts": parts,
    }
    content["sha256"] = _sha256_of(content)
    (folder / FILE).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return replace(index, sha256=content["sha256"])


def _file(folder: Path, part: str) -> Path:
    return folder / f"{part}.csv"


def _write_part(items: Items, file: Path) -> str:
    names = list(items.columns)
    with file.open("w", encoding="utf-8", newline="") as stream:
        # All of it quoted: Python's csv leaves a carriage return bare, and then reads two rows.
        writer = csv.writer(stream, lineterminator="\n", quoting=csv.QUOTE_ALL)
        writer.writerow(names)
        writer.writerows([getattr(item, name) for name in names] for item in items)
    return _sha256_of_file(file)


def _sha256_of_file(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _sha256_of(content: dict[str, Any]) -> str:
    """Hash over all that is learnt from; where the images lie is another matter."""
    learnt = {key: content.get(key) for key in ("labels", "ignore", "parts")}
    canonical = json.dumps(learnt, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_index(folder: Path) -> tuple[Index, Path]:
    """Reads an index from `folder`.

    Returns:
        The index, and the folder its items' paths start from.

    Raises:
        DataError: a file is absent, of another schema, or not what its hash says.
    """
    content = _read_header(folder)
    parts = {}
    for name in PARTS:
        file = _file(folder, name)
        if not file.is_file() or _sha256_of_file(file) != content["parts"][name]["sha256"]:
            msg = f"{str(file)!r} is missing or was changed after it was written; run `dvc repro -f prepare`"
            raise DataError(msg)
        parts[name] = _read_part(file)
    index = Index(tuple(content["labels"]), content["root"], parts, content["ignore"], content["sha256"])
    return index, folder / content["root"]


def _read_header(folder: Path) -> dict[str, Any]:
    file = folder / FILE
    if not file.is_file():
        msg = f"no {str(file)!r}; run `dvc repro prepare`"
        raise DataError(msg)
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    if content.get("schema") != SCHEMA:
        msg = f"{str(file)!r} has schema {content.get('schema')!r}, not {SCHEMA}; run `dvc repro -f prepare`"
        raise DataError(msg)
    if content["sha256"] != _sha256_of(content):
        msg = f"{str(file)!r} was changed after it was written; run `dvc repro -f prepare`"
        raise DataError(msg)
    return content


def _read_part(file: Path) -> Items:
    with file.open(encoding="utf-8", newline="") as stream:
        return Items.of(_item(row) for row in csv.DictReader(stream))


def _item(row: dict[str, str]) -> Item:
    masks = row.get("mask", ""), row.get("mask_sha256", "")
    return Item(row["path"], int(row["label"]), row["sha256"], *masks)


class Images(Protocol):
    """Images that slices are taken of: an array of shape (images, 3, height, width), or `Loaded`."""

    def __len__(self) -> int:
        """The number of images."""

    def __getitem__(self, which: slice, /) -> NDArray[np.float32]:
        """Some of them, as an array."""


class Loaded:
    """The images of a part, decoded when they are asked for: all of them need not fit into memory.

    Args:
        root: folder the items' paths start from.
        items: what to load.
        load: decodes and preprocesses one file.
    """

    def __init__(self, root: Path, items: Sequence[Item], *, load: LoadImage) -> None:
        self._root, self._items, self._load = root, items, load

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, which: slice) -> NDArray[np.float32]:
        """Returns images of shape (images, 3, height, width)."""
        return np.stack([self._load(self._root / item.path) for item in self._items[which]])


class Targets:
    """What is true of the images of a part: their labels, or their masks, decoded when they are asked for.

    Args:
        root: folder the items' paths start from.
        items: the images.
        load: decodes and fits one mask.
        ignore: value of a mask's pixels that have no class.
    """

    def __init__(self, root: Path, items: Items, *, load: LoadMask, ignore: int | None) -> None:
        self._root, self._items, self._load, self._ignore = root, items, load, ignore

    def __iter__(self) -> Iterator[NDArray[np.int64]]:
        """Yields labels of shape (), or masks of shape (height, width) with `IGNORED` where a pixel has no class."""
        if not self._items.masked:
            yield from self._items.labels
            return
        for item in self._items:
            yield mask_of(item, self._root, load=self._load, ignore=self._ignore)


def mask_of(item: Item, root: Path, *, load: LoadMask, ignore: int | None) -> NDArray[np.int64]:
    """Returns an item's mask, of shape (height, width), with `IGNORED` where a pixel has no class."""
    mask = load(root / item.mask)
    return mask if ignore is None else np.where(mask == ignore, IGNORED, mask)


LOGITS_BYTES = 2**26


def kept_places(count: int, answer: Sequence[int]) -> NDArray[np.int64]:
    """Returns the places of the images whose logits are kept: all, as long as they take 64 MiB at most.

    A device keeps those of the same test images; see `deploy.measure.step`.

    Args:
        count: number of images.
        answer: shape of the logits of one.
    """
    return evenly(count, max(1, LOGITS_BYTES // (4 * math.prod(answer))))


def evenly(count: int, most: int) -> NDArray[np.int64]:
    """Returns `most` places of 0 to `count` - 1, or all; evenly spaced, since parts are sorted by path and class."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)
