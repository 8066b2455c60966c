"""Prepare: turns a folder of images, one subfolder per class, into a checked index with splits."""

import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path

from sklearn.model_selection import train_test_split

from pipeline.base.errors import DataError
from pipeline.base.progress import track
from pipeline.parts.data import LoadImage
from pipeline.parts.digits import write_digits
from pipeline.parts.index import Index, Item, image_folder, write_index

IMAGE_SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}
FEWEST_PER_CLASS = 4  # one image for each split and one more to calibrate with


def prepare(
    output: Path,
    *,
    source: str,
    path: Path | None,
    load: LoadImage,
    broken: type[Exception],
    validation_fraction: float,
    test_fraction: float,
    calibration_size: int,
    seed: int,
) -> Index:
    """Writes `index.json` and `report.json` to `output`, and for the built-in digits the images too.

    Args:
        output: existing folder to write to.
        source: "digits" (built in) or "folder".
        path: for "folder", the folder that holds one subfolder of images per class.
        load: decodes and preprocesses one image.
        broken: what `load` raises for a file that cannot be decoded.
        validation_fraction: share of all images to validate on.
        test_fraction: share of all images that nothing but the measurement reads.
        calibration_size: images of the train split that quantisation may look at.
        seed: fixes the splits.

    Raises:
        DataError: no folder, fewer than two classes, too few images, broken files, or calibration images that are
            also evaluated on.
    """
    if source == "digits":
        root = output / "images"
        write_digits(root)
        stored_root = root.name
    else:
        root = image_folder(path)
        stored_root = str(root)
    labels, items, ignored = _scan(root)
    _refuse_broken(root, items, load, broken)
    splits = _split(items, validation_fraction=validation_fraction, test_fraction=test_fraction, seed=seed)
    calibration = _draw(splits["train"], calibration_size, seed=seed)
    index = Index(labels, stored_root, splits, calibration)
    _refuse_overlap(index)
    write_index(index, output)
    report = {
        "schema": 1,
        "source": source,
        "counts": index.counts(),
        "calibration": len(calibration),
        "refused": [{"path": name, "reason": "not an image file"} for name in ignored],
        "data_sha256": index.sha256,
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return index


def _scan(root: Path) -> tuple[tuple[str, ...], list[Item], list[str]]:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if len(folders) < 2:
        found = ", ".join(repr(folder.name) for folder in folders) or "none"
        msg = f"{str(root)!r} holds {len(folders)} class folder(s) ({found}); a classifier needs at least two"
        raise DataError(msg)
    items, ignored = [], []
    for label, folder in enumerate(folders):
        for file in sorted(folder.iterdir()):
            relative = file.relative_to(root).as_posix()
            if file.is_dir():
                msg = (
                    f"class folder {folder.name!r} of {str(root)!r} holds a folder, {file.name!r}; "
                    f"give the folder whose subfolders are the classes and hold the images themselves"
                )
                raise DataError(msg)
            if file.suffix.lower() in IMAGE_SUFFIXES:
                items.append(Item(relative, label, hashlib.sha256(file.read_bytes()).hexdigest()))
            else:
                ignored.append(relative)
    counts = Counter(item.label for item in items)
    for label, folder in enumerate(folders):
        if counts[label] < FEWEST_PER_CLASS:
            msg = (
                f"class {folder.name!r} of {str(root)!r} holds {counts[label]} image(s), "
                f"fewer than {FEWEST_PER_CLASS}; add images or remove the folder"
            )
            raise DataError(msg)
    return tuple(folder.name for folder in folders), items, ignored


def _refuse_broken(root: Path, items: Sequence[Item], load: LoadImage, broken: type[Exception]) -> None:
    refused = []
    for item in track(items, title="prepare", total=len(items)):
        try:
            load(root / item.path)
        except broken as error:
            refused.append(" ".join(str(error).split()))
    if refused:
        more = f" (and {len(refused) - 3} more)" if len(refused) > 3 else ""
        msg = f"{len(refused)} broken image(s) in {str(root)!r}: {'; '.join(refused[:3])}{more}"
        raise DataError(msg)


def _split(
    items: Sequence[Item], *, validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, tuple[Item, ...]]:
    """Draws the splits, every class in its share; copies of one image stay together in one split."""
    copies: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        copies[item.sha256].append(item)
    groups = list(copies.values())
    for group in groups:
        if len({item.label for item in group}) > 1:
            msg = f"the same image has two labels: {', '.join(repr(i.path) for i in group)}; keep one of them"
            raise DataError(msg)
    try:
        rest, test = _draw_groups(groups, test_fraction, seed=seed)
        train, validation = _draw_groups(rest, validation_fraction / (1 - test_fraction), seed=seed)
    except ValueError as error:
        msg = (
            f"{len(items)} images cannot be split with `prepare.validation_fraction` {validation_fraction} and "
            f"`prepare.test_fraction` {test_fraction}: {error}; lower the fractions or add images"
        )
        raise DataError(msg) from error
    parts = {"train": train, "validation": validation, "test": test}
    return {
        name: tuple(sorted((i for group in part for i in group), key=lambda i: i.path)) for name, part in parts.items()
    }


def _draw_groups(groups: list[list[Item]], share: float, *, seed: int) -> tuple[list[list[Item]], list[list[Item]]]:
    first, second = train_test_split(
        groups, test_size=share, stratify=[group[0].label for group in groups], random_state=seed
    )
    return first, second


def _draw(items: Sequence[Item], size: int, *, seed: int) -> tuple[Item, ...]:
    """Draws one image of each class in turn, so that whoever takes only the first ones still sees every class."""
    shuffle = random.Random(seed).shuffle  # noqa: S311 - a draw of images, no secret
    classes: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        classes[item.label].append(item)
    for members in classes.values():
        shuffle(members)
    rounds = zip_longest(*(classes[label] for label in sorted(classes)))
    return tuple(item for turn in rounds for item in turn if item is not None)[:size]


def _refuse_overlap(index: Index) -> None:
    evaluated = {item.sha256: item.path for name in ("validation", "test") for item in index.splits[name]}
    for item in index.calibration:
        if item.sha256 in evaluated:
            msg = f"calibration image {item.path!r} is the evaluation image {evaluated[item.sha256]!r}; remove one"
            raise DataError(msg)
