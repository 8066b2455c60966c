"""What a source of images holds, before anything is known of the files."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from pipeline.base.errors import DataError
from pipeline.parts.index import Items

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
SPLIT_NAMES = {"train": "train", "val": "validation", "valid": "validation", "validation": "validation", "test": "test"}
"""Split by its name, in lower case, in a source that is split already."""

ALL = "all"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about files that a user should know.

    Attributes:
        kind: what is the matter, a key of `Policy`, or "ignored" for files that are neither image nor label.
        paths: relative to the root of the images.
        reason: in words.
        rows: of them, those that must go, by their position among all images; empty where none need.
    """

    kind: str
    paths: tuple[str, ...]
    reason: str
    rows: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Listing:
    """Labelled images, their content unread.

    Attributes:
        labels: names of the classes.
        root: folder the paths start from.
        parts: images by split, or all of them under `ALL`; without hashes, and where there are masks without labels.
        findings: what lies there but is no labelled image.
    """

    labels: tuple[str, ...]
    root: Path
    parts: dict[str, Items]
    findings: list[Finding] = field(default_factory=list)


def is_image(path: Path) -> bool:
    """Whether a file's name is that of an image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def refuse_one_class(labels: tuple[str, ...], where: str) -> None:
    """Refuses what no classifier can be trained on.

    Raises:
        DataError: fewer than two classes.
    """
    if len(labels) < 2:
        found = ", ".join(map(repr, labels)) or "none"
        msg = f"{where} holds {len(labels)} class(es) ({found}); at least two are needed"
        raise DataError(msg)


def inside(name: str, *, where: str) -> str:
    """Returns a path of a list, in POSIX form, if it stays below the list's folder.

    Raises:
        DataError: it does not.
    """
    path = PurePosixPath(name)
    if not name or path.is_absolute() or ".." in path.parts:
        msg = f"{where}: path {name!r} leaves the folder of the list; give paths below it"
        raise DataError(msg)
    return path.as_posix()


def existing(path: Path | None, *, source: str) -> Path:
    """Returns the absolute path of what the user gave for `source`.

    Raises:
        DataError: it is not set, not there, or a file where a folder is needed, or the reverse.
    """
    needs_file = source == "list"
    if path is None or not (path.is_file() if needs_file else path.is_dir()):
        what, remedy = ("file", "list of your images") if needs_file else ("folder", "folder that holds your images")
        msg = f"`prepare.path` {str(path)!r} is no {what}; give the {remedy}"
        raise DataError(msg)
    return path.resolve()
