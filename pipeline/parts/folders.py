"""Labelled images in folders: one subfolder per class, under one folder or under one for each split."""

import hashlib
from dataclasses import dataclass, field, replace
from pathlib import Path

from pipeline.base.errors import DataError
from pipeline.parts.index import Item

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""Split by the name of its folder, in lower case."""

ALL = "all"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What lies in the folders.

    Attributes:
        labels: names of the classes.
        parts: images by split, or all of them under `ALL`.
        refused: path and reason of every file that is no labelled image.
    """

    labels: tuple[str, ...]
    parts: dict[str, list[Item]]
    refused: list[dict[str, str]] = field(default_factory=list)


def are_splits(root: Path) -> bool:
    """Whether `root` holds a folder train with subfolders: a class of that name would hold images."""
    return any(folder.name.lower() == "train" and bool(_folders(folder)) for folder in _folders(root))


def scan_classes(root: Path) -> Found:
    """Lists the images of a folder with one subfolder per class.

    Raises:
        DataError: fewer than two classes, one without images, folders within them, or a file that cannot be read.
    """
    labels, items, refused = _scan(root, root)
    _refuse_one_class(root, labels)
    return Found(labels=labels, parts={ALL: items}, refused=refused)


def scan_splits(root: Path) -> Found:
    """Lists the images of a folder that holds such folders for train and, perhaps, validation and test.

    Raises:
        DataError: as `scan_classes`; no folder for train, two for one split, another folder, or a class that is not in
            train.
    """
    folders: dict[str, Path] = {}
    for folder in _folders(root):
        split = SPLIT_NAMES.get(folder.name.lower())
        if split is None:
            msg = f"{str(root)!r} holds a folder {folder.name!r}, which is no split; name splits train, val and test"
            raise DataError(msg)
        if split in folders:
            msg = f"{str(root)!r} holds two folders for one split: {folders[split].name!r}, {folder.name!r}; keep one"
            raise DataError(msg)
        folders[split] = folder
    if "train" not in folders:
        msg = f"{str(root)!r} holds no folder 'train'; give the folder that holds train, val and test"
        raise DataError(msg)
    labels, train, refused = _scan(root, folders["train"])
    _refuse_one_class(folders["train"], labels)
    parts = {"train": train}
    for split in [name for name in ("validation", "test") if name in folders]:
        theirs, items, others = _scan(root, folders[split])
        unknown = sorted(set(theirs) - set(labels))
        if unknown:
            msg = (
                f"class {unknown[0]!r} of {str(folders[split])!r} is not in {str(folders['train'])!r}; add or rename it"
            )
            raise DataError(msg)
        if not items:
            msg = f"{str(folders[split])!r} holds no class folder; remove it, and a split is drawn from train"
            raise DataError(msg)
        parts[split] = [replace(item, label=labels.index(theirs[item.label])) for item in items]
        refused += others
    return Found(labels=labels, parts=parts, refused=refused)


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _refuse_one_class(root: Path, labels: tuple[str, ...]) -> None:
    if len(labels) < 2:
        found = ", ".join(map(repr, labels)) or "none"
        msg = f"{str(root)!r} holds {len(labels)} class folder(s) ({found}); a classifier needs at least two"
        raise DataError(msg)


def _scan(root: Path, parent: Path) -> tuple[tuple[str, ...], list[Item], list[dict[str, str]]]:
    """Lists classes, images and other files below `parent`, by their paths from `root`."""
    folders, items = _folders(parent), []
    loose = [entry for entry in parent.iterdir() if entry.is_file() and entry.suffix.lower() in IMAGE_SUFFIXES]
    refused = [{"path": file.relative_to(root).as_posix(), "reason": "in no class folder"} for file in sorted(loose)]
    for label, folder in enumerate(folders):
        files = sorted(folder.iterdir())
        for file in files:
            relative = file.relative_to(root).as_posix()
            if file.is_dir():
                msg = (
                    f"class folder {folder.name!r} of {str(parent)!r} holds a folder, {file.name!r}; give the folder "
                    f"whose subfolders are the classes and hold the images themselves; if yours are train, val and "
                    f"test, use data=split_folders"
                )
                raise DataError(msg)
            if file.suffix.lower() in IMAGE_SUFFIXES:
                items.append(Item(relative, label, _sha256(file)))
            else:
                refused.append({"path": relative, "reason": "not an image file"})
        if not items or items[-1].label != label:
            msg = f"class {folder.name!r} of {str(parent)!r} holds no image; add images or remove the folder"
            raise DataError(msg)
    return tuple(folder.name for folder in folders), items, refused


def _sha256(file: Path) -> str:
    try:
        return hashlib.sha256(file.read_bytes()).hexdigest()
    except OSError as error:
        msg = f"{str(file)!r} cannot be read ({error.strerror}); mend or remove it"
        raise DataError(msg) from error
