"""One split of the data folder that `prepare` wrote: `index.json` and the images it names."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from deploy.document import Document, read_document
from deploy.errors import BundleError

REMEDY = "rebuild it with `dvc repro prepare` or copy the data folder again"


@dataclass(frozen=True)
class Item:
    """One labelled image.

    Attributes:
        name: path below the index's root, POSIX: the item's name in records.
        path: absolute path.
        label: index into `Split.labels`.
        sha256: of the file's bytes when it was indexed.
    """

    name: str
    path: Path
    label: int
    sha256: str


@dataclass(frozen=True)
class Split:
    """The images of one split, in the order of the index."""

    labels: tuple[str, ...]
    items: tuple[Item, ...]


def load_split(folder: Path, split: str) -> Split:
    """Read one split of `folder/index.json`.

    Images are not opened here, and links below the root are followed: people link their images together, and DVC may
    link its cache. Only the names in the index are checked.

    Args:
        folder: the data folder.
        split: "train", "validation" or "test".

    Raises:
        BundleError: the index is missing or faulty, lacks the split, or names a path outside its root.
    """
    document = read_document(folder / "index.json", error=BundleError, remedy=REMEDY)
    labels = document.texts("labels")
    root = _root(document)
    entries = document.get(f"splits.{split}")
    if not isinstance(entries, list):
        document.fail(f"`splits.{split}` should be a list, got {type(entries).__name__}")
    items = (
        _item(document, f"splits.{split}.{index}", entry, root=root, classes=len(labels))
        for index, entry in enumerate(entries)
    )
    return Split(labels=labels, items=tuple(items))


def _root(document: Document) -> Path:
    """Resolve `root`: absolute for a user's own folder, else inside the data folder."""
    text = document.text("root")
    if Path(text).is_absolute():
        return Path(text)
    if ".." in PurePosixPath(text).parts:
        document.fail(f"`root` {text!r} leaves the data folder")
    return (document.path.parent / text).absolute()


def _item(document: Document, key: str, entry: Any, *, root: Path, classes: int) -> Item:
    if not isinstance(entry, dict) or not {"path", "label", "sha256"} <= entry.keys():
        document.fail(f"`{key}` should hold `path`, `label` and `sha256`, got {entry!r}")
    name, label, digest = entry["path"], entry["label"], entry["sha256"]
    if not isinstance(name, str) or not name or not isinstance(digest, str):
        document.fail(f"`{key}` should have strings as `path` and `sha256`, got {entry!r}")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts:
        document.fail(f"`{key}.path` {name!r} leaves the root {root}")
    if type(label) is not int or not 0 <= label < classes:
        document.fail(f"`{key}.label` should be 0..{classes - 1}, got {label!r}")
    return Item(name=name, path=root / pure, label=label, sha256=digest)
