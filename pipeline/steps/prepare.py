"""Prepare: turns folders of images, one subfolder per class, into a checked index with splits."""

import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

from sklearn.model_selection import train_test_split

from pipeline.base.errors import DataError
from pipeline.base.progress import track
from pipeline.parts.digits import write_digits
from pipeline.parts.folders import ALL, scan_classes, scan_splits
from pipeline.parts.index import SPLITS, Index, Item, LoadImage, image_folder, write_index

FEWEST_PER_CLASS = 4  # to draw splits from: one image for each, and one more to calibrate with


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
    per_class: int | None,
    copies: str,
    split_seed: int,
    seed: int,
) -> Index:
    """Writes `index.json` and `report.json` to `output`, and for the built-in digits the images too.

    Args:
        output: existing folder to write to.
        source: "digits" (built in), "folder", or "split_folders".
        path: for "folder", the folder that holds one subfolder of images per class; for "split_folders", the one that
            holds such a folder for train, and perhaps for validation and test.
        load: decodes and preprocesses one image.
        broken: what `load` raises for a file that cannot be decoded.
        validation_fraction: share of all images to validate on; with split folders, of the training images, where
            there is no folder for validation.
        test_fraction: the same of the images that nothing but the measurement reads.
        calibration_size: images of the train split that quantisation may look at; no copies of evaluated ones.
        per_class: training images kept of each class, where it has more; None keeps all.
        copies: what to do with byte-equal images that have two labels, or lie in two of the split folders: "refuse",
            "keep", or "drop": of those in two splits all go but the test split's, or else the validation split's; of
            those with two labels in one split all go.
        split_seed: fixes the splits that are drawn.
        seed: fixes which images are kept, and the calibration images.

    Raises:
        DataError: no folder, fewer than two classes, too few images, broken files, or copies that are refused.
    """
    if source == "digits":
        root = output / "images"
        write_digits(root)
        stored_root = root.name
    else:
        root = image_folder(path)
        stored_root = str(root)
    found = scan_splits(root) if source == "split_folders" else scan_classes(root)
    _refuse_broken(root, [item for items in found.parts.values() for item in items], load, broken)
    parts, dropped = _settle_copies(found.parts, copies)
    splits = _split(
        parts,
        labels=found.labels,
        validation_fraction=validation_fraction,
        test_fraction=test_fraction,
        seed=split_seed,
    )
    if per_class is not None:
        splits["train"] = _few(splits["train"], per_class, seed=seed)
    evaluated = {item.sha256 for name in ("validation", "test") for item in splits[name]}
    unseen = [item for item in splits["train"] if item.sha256 not in evaluated]
    index = Index(found.labels, stored_root, splits, _draw(unseen, calibration_size, seed=seed))
    _refuse_gaps(index, copies)
    write_index(index, output)
    report = {
        "schema": 1,
        "source": source,
        "counts": index.counts(),
        "calibration": len(index.calibration),
        "refused": found.refused + dropped,
        "data_sha256": index.sha256,
    }
    (output / "report.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    return index


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


def _settle_copies(parts: dict[str, list[Item]], policy: str) -> tuple[dict[str, list[Item]], list[dict[str, str]]]:
    """Refuses, keeps or drops byte-equal images with two labels or in two splits; returns what is left, and dropped."""
    groups: dict[str, list[tuple[str, Item]]] = defaultdict(list)
    for split, items in parts.items():
        for item in items:
            groups[item.sha256].append((split, item))
    faulty = [
        g for g in groups.values() if len({split for split, _ in g}) > 1 or len({item.label for _, item in g}) > 1
    ]
    if policy == "keep" or not faulty:
        return parts, []
    if policy == "refuse":
        shown = "; ".join(", ".join(repr(item.path) for _, item in group) for group in faulty[:3])
        more = f" (and {len(faulty) - 3} more)" if len(faulty) > 3 else ""
        msg = (
            f"the same image has two labels or lies in two splits: {shown}{more}; keep one of them, or set "
            f"`prepare.copies` to drop"
        )
        raise DataError(msg)
    dropped = {item.path: reason for group in faulty for item, reason in _drops(group)}
    kept = {split: [item for item in items if item.path not in dropped] for split, items in parts.items()}
    return kept, [{"path": path, "reason": reason} for path, reason in sorted(dropped.items())]


def _drops(group: Sequence[tuple[str, Item]]) -> Iterator[tuple[Item, str]]:
    """Yields what of a group of equal images is dropped: all but those of the split that must stay as it is.

    Where that one has the image under two labels, none can be trusted.
    """
    home = next(split for split in ("test", "validation", "train", ALL) if any(s == split for s, _ in group))
    at_home = [item for split, item in group if split == home]
    trusted = len({item.label for item in at_home}) == 1
    for split, item in group:
        if not trusted:
            other = next(i.path for i in at_home if i.label != item.label)
            yield item, f"the same image has another label in {other}"
        elif split != home:
            yield item, f"the same image as {at_home[0].path}"


def _split(
    parts: dict[str, list[Item]],
    *,
    labels: Sequence[str],
    validation_fraction: float,
    test_fraction: float,
    seed: int,
) -> dict[str, tuple[Item, ...]]:
    """Draws the splits that are missing, every class in its share; copies of one image stay together in one split."""
    pool = parts.get("train", parts.get(ALL, []))
    splits = {name: items for name, items in parts.items() if name in {"validation", "test"}}
    copies: dict[str, list[Item]] = defaultdict(list)
    for item in pool:
        copies[item.sha256].append(item)
    if len(splits) < 2:
        counts = Counter(group[0].label for group in copies.values())
        for label, name in enumerate(labels):
            if counts[label] < FEWEST_PER_CLASS:
                msg = (
                    f"class {name!r} holds {counts[label]} different image(s) to draw splits from, fewer than "
                    f"{FEWEST_PER_CLASS}; add images or remove the folder"
                )
                raise DataError(msg)
    rest, share = list(copies.values()), 1.0
    try:
        for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
            if name not in splits:
                rest, drawn = _draw_groups(rest, fraction / share, seed=seed)
                splits[name] = [item for group in drawn for item in group]
                share -= fraction
    except ValueError as error:
        msg = (
            f"{len(pool)} images cannot be split with `prepare.validation_fraction` {validation_fraction} and "
            f"`prepare.test_fraction` {test_fraction}: {error}; lower the fractions or add images"
        )
        raise DataError(msg) from error
    splits["train"] = [item for group in rest for item in group]
    return {name: tuple(sorted(splits[name], key=lambda item: item.path)) for name in SPLITS}


def _draw_groups(groups: list[list[Item]], share: float, *, seed: int) -> tuple[list[list[Item]], list[list[Item]]]:
    first, second = train_test_split(
        groups, test_size=share, stratify=[group[0].label for group in groups], random_state=seed
    )
    return first, second


def _refuse_gaps(index: Index, copies: str) -> None:
    """Refuses an index with an empty split or nothing to train on in a class: copies may have been all there was."""
    cause = f"the rest are copies of other images, and `prepare.copies` is {copies}; add images"
    trained = {item.label for item in index.splits["train"]}
    for label, name in enumerate(index.labels):
        if label not in trained:
            msg = f"no image of class {name!r} is left to train on: {cause}"
            raise DataError(msg)
    for name, items in {**index.splits, "calibration": index.calibration}.items():
        if not items:
            msg = f"no image is left for {name}: {cause}"
            raise DataError(msg)


def _shuffled_classes(items: Sequence[Item], *, seed: int) -> list[list[Item]]:
    shuffle = random.Random(seed).shuffle  # noqa: S311 - a draw of images, no secret
    classes: dict[int, list[Item]] = defaultdict(list)
    for item in items:
        classes[item.label].append(item)
    for members in classes.values():
        shuffle(members)
    return [classes[label] for label in sorted(classes)]


def _few(items: Sequence[Item], count: int, *, seed: int) -> tuple[Item, ...]:
    """Draws at most `count` images of each class."""
    kept = [item for members in _shuffled_classes(items, seed=seed) for item in members[:count]]
    return tuple(sorted(kept, key=lambda item: item.path))


def _draw(items: Sequence[Item], size: int, *, seed: int) -> tuple[Item, ...]:
    """Draws one image of each class in turn, so that whoever takes only the first ones still sees every class."""
    rounds = zip_longest(*_shuffled_classes(items, seed=seed))
    return tuple(item for turn in rounds for item in turn if item is not None)[:size]
