"""Labelled images in folders: one subfolder per class, under one folder or under one for each split."""

from collections.abc import Iterator
from pathlib import Path

from pipeline.base.errors import DataError
from pipeline.parts.index import Item, Items
from pipeline.parts.sources.listing import ALL, SPLIT_NAMES, Finding, Listing, is_image, refuse_one_class


def are_splits(root: Path) -> bool:
    """Whether `root` holds a folder train with subfolders: a class of that name would hold images."""
    return any(folder.name.lower() == "train" and bool(_folders(folder)) for folder in _folders(root))


def list_classes(root: Path) -> Listing:
    """Lists the images of a folder with one subfolder per class.

    Raises:
        DataError: fewer than two classes, one without images, or folders within them.
    """
    labels = _class_names(root)
    refuse_one_class(labels, f"{str(root)!r}, with one folder per class,")
    findings: list[Finding] = []
    items = Items.of(_scan(root, root, labels, findings))
    return Listing(labels=labels, root=root, parts={ALL: items}, findings=findings)


def list_splits(root: Path) -> Listing:
    """Lists the images of a folder that holds such folders for train and, perhaps, validation and test.

    Raises:
        DataError: as `list_classes`; no folder for train, two for one split, another folder, or a class that is not in
            train.
    """
    folders = _split_folders(root)
    labels = _class_names(folders["train"])
    refuse_one_class(labels, f"{str(folders['train'])!r}, with one folder per class,")
    findings = _beside(root, root)
    parts = {}
    for split, folder in folders.items():
        unknown = sorted(set(_class_names(folder)) - set(labels))
        if unknown:
            msg = f"class {unknown[0]!r} of {str(folder)!r} is not in {str(folders['train'])!r}; add or rename it"
            raise DataError(msg)
        parts[split] = Items.of(_scan(root, folder, labels, findings))
        if not len(parts[split]):
            msg = f"{str(folder)!r} holds no class folder; remove it, and a split is drawn from train"
            raise DataError(msg)
    return Listing(labels=labels, root=root, parts=parts, findings=findings)


def _split_folders(root: Path) -> dict[str, Path]:
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
    return {split: folders[split] for split in ("train", "validation", "test") if split in folders}


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError as error:
        msg = f"{str(folder)!r} cannot be read ({error.strerror}); change its permissions"
        raise DataError(msg) from error


def _folders(parent: Path) -> list[Path]:
    return [entry for entry in _entries(parent) if entry.is_dir() and not entry.name.startswith(".")]


def _class_names(parent: Path) -> tuple[str, ...]:
    return tuple(folder.name for folder in _folders(parent))


def _beside(root: Path, parent: Path) -> list[Finding]:
    """Notes what lies beside the folders in `parent`: images, which have no class, and hidden folders."""
    findings = []
    for entry in _entries(parent):
        path = (entry.relative_to(root).as_posix(),)
        if entry.is_dir() and entry.name.startswith("."):
            findings.append(Finding("ignored", path, "a hidden folder"))
        elif entry.is_file() and is_image(entry):
            findings.append(Finding("unpaired", path, "an image in no class folder"))
    return findings


def _scan(root: Path, parent: Path, labels: tuple[str, ...], findings: list[Finding]) -> Iterator[Item]:
    """Yields the images below `parent`, by their paths from `root`, and notes other files."""
    findings += _beside(root, parent)
    places = {label: place for place, label in enumerate(labels)}
    for folder in _folders(parent):
        count = 0
        for file in _entries(folder):
            path = file.relative_to(root).as_posix()
            if file.is_dir() and file.name.startswith("."):
                findings.append(Finding("ignored", (path,), "a hidden folder"))
            elif file.is_dir():
                msg = (
                    f"class folder {folder.name!r} of {str(parent)!r} holds a folder, {file.name!r}; give the folder "
                    f"whose subfolders are the classes and hold the images themselves; if yours are train, val and "
                    f"test, use data=split_folders"
                )
                raise DataError(msg)
            elif is_image(file):
                count += 1
                yield Item(path, places[folder.name], "")
            else:
                findings.append(Finding("ignored", (path,), "not an image file"))
        if not count:
            msg = f"class {folder.name!r} of {str(parent)!r} holds no image; add images or remove the folder"
            raise DataError(msg)
