"""One split of the data folder that `prepare` wrote: `index.json`, a CSV file, and the images it names."""

import csv
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

from deploy.document import Document, read_document
from deploy.errors import BundleError
from deploy.files import sha256_file

SCHEMA = 3
REMEDY = "rebuild it with `dvc repro prepare` or copy the data folder again"


@dataclass(frozen=True)
class Item:
    """One labelled image.

    Attributes:
        name: path below the index's root, POSIX: the item's name in records.
        path: absolute path.
        label: index into `Split.labels`; of an image with a mask, the rarest class in it.
        sha256: of the file's bytes when it was indexed.
        mask: absolute path of the mask that tells each pixel's class; None where images have one class each.
        mask_sha256: of that file's bytes.
    """

    name: str
    path: Path
    label: int
    sha256: str
    mask: Path | None = None
    mask_sha256: str = ""


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of the index.

    Attributes:
        labels: names of the classes.
        items: the images.
        root: folder that the names of all items start from.
        ignore: value of a mask's pixels that have no class; None where all have one.
    """

    labels: tuple[str, ...]
    items: tuple[Item, ...]
    root: Path
    ignore: int | None = None

    @property
    def sha256(self) -> str:
        """Hash of all that records of this split depend on: names, classes, and the hashes of the files."""
        items = [[item.name, item.label, item.sha256, item.mask_sha256] for item in self.items]
        told = json.dumps([self.labels, self.ignore, items])
        return hashlib.sha256(told.encode()).hexdigest()

    @property
    def masked(self) -> bool:
        """Whether each pixel has a class, not each image."""
        return bool(self.items) and self.items[0].mask is not None


def load_split(folder: Path, split: str) -> Split:
    """Read one split of `folder`: `index.json` and `<split>.csv`.

    Images are not opened here, and links below the root are followed: people link their images together, and DVC may
    link its cache. Only the names in the index are checked.

    Args:
        folder: the data folder.
        split: "train", "validation" or "test".

    Raises:
        BundleError: the index is missing or faulty, lacks the split, or names a path outside its root.
    """
    document = read_document(folder / "index.json", error=BundleError, remedy=REMEDY, schema=SCHEMA)
    labels = document.texts("labels")
    root = _root(document)
    file = folder / f"{split}.csv"
    if not file.is_file() or sha256_file(file) != document.text(f"parts.{split}.sha256"):
        msg = f"{file}: missing or changed after it was written; {REMEDY}"
        raise BundleError(msg)
    with file.open(encoding="utf-8", newline="") as stream:
        items = (
            _item(row, f"{file}, line {number}", root=root, classes=len(labels))
            for number, row in enumerate(csv.DictReader(stream), 2)
        )
        return Split(labels=labels, items=tuple(items), root=root, ignore=_ignore(document))


def _ignore(document: Document) -> int | None:
    if document.get("ignore") is None:
        return None
    return document.integer("ignore", minimum=0)


def _root(document: Document) -> Path:
    """Resolve `root`: absolute for a user's own folder, else inside the data folder."""
    text = document.text("root")
    if Path(text).is_absolute():
        return Path(text)
    if ".." in PurePosixPath(text).parts:
        document.fail(f"`root` {text!r} leaves the data folder")
    return (document.path.parent / text).absolute()


def _item(row: dict[str, Any], where: str, *, root: Path, classes: int) -> Item:
    name, label, digest = (row.get(key) for key in ("path", "label", "sha256"))
    if not name or not label or not digest:
        _fail(where, f"should hold `path`, `label` and `sha256`, got {row!r}")
    mask, mask_digest = (row.get(key) or "" for key in ("mask", "mask_sha256"))
    for key, value in (("path", name), ("mask", mask)):
        pure = PurePosixPath(value)
        if pure.is_absolute() or ".." in pure.parts:
            _fail(where, f"`{key}` {value!r} leaves the root {root}")
    if not label.isdecimal() or int(label) >= classes:
        _fail(where, f"`label` should be 0..{classes - 1}, got {label!r}")
    there = root / mask if mask else None
    return Item(name, root / name, int(label), digest, mask=there, mask_sha256=mask_digest)


def _fail(where: str, what: str) -> NoReturn:
    msg = f"{where}: {what}; {REMEDY}"
    raise BundleError(msg)
