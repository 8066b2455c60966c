"""Images with masks: a folder of each, paired by the files' names, and the names of the classes."""

from collections.abc import Sequence
from pathlib import Path

from pipeline.base.errors import DataError
from pipeline.parts.index import IGNORED, Item, Items
from pipeline.parts.sources.listing import ALL, SPLIT_NAMES, Finding, Listing, is_image, refuse_one_class

CLASSES_FILE = "classes.txt"


def list_masks(root: Path, *, images: str, masks: str, classes: Sequence[str] | None) -> Listing:
    """Lists pairs of image and mask whose names are equal but for the suffix.

    Where the root holds a file train.txt, and perhaps val.txt and test.txt, with one such name per line, they are the
    splits.

    Args:
        root: holds both folders.
        images: name of the images' folder below it.
        masks: name of the masks' folder below it; a mask holds the index of each pixel's class.
        classes: their names, by index; None reads them from classes.txt in the root, one per line.

    Raises:
        DataError: a folder or file is missing, two images have one name, or a split names what is not there.
    """
    labels = tuple(classes) if classes is not None else _classes(root / CLASSES_FILE)
    _check_classes(labels, where=f"{str(root / CLASSES_FILE)!r}" if classes is None else "`prepare.classes`")
    pictures, targets = (_by_stem(root, name) for name in (images, masks))
    findings = [Finding("unpaired", (pictures[stem],), "an image without a mask") for stem in pictures.keys() - targets]
    findings += [Finding("unpaired", (targets[stem],), "a mask without an image") for stem in targets.keys() - pictures]
    pairs = {stem: Item(pictures[stem], 0, "", targets[stem]) for stem in sorted(pictures.keys() & targets)}
    splits = _split_lists(root)
    if not splits:
        return Listing(labels=labels, root=root, parts={ALL: Items.of(pairs.values())}, findings=_sorted(findings))
    if "train" not in splits:
        msg = f"{str(root)!r} holds {splits.popitem()[1].name} but no train.txt; add it, or remove the lists"
        raise DataError(msg)
    parts, homes = {}, dict[str, str]()
    for split, file in splits.items():
        stems = _lines(file)
        if not stems:
            msg = f"{str(file)!r} names no image; fill it, or remove it, and a split is drawn from train"
            raise DataError(msg)
        for stem in stems:
            if stem in homes:
                msg = f"{str(file)!r} names {stem!r}, which stands in {homes[stem]} already; keep one"
                raise DataError(msg)
            if stem not in pictures:
                msg = f"{str(file)!r} names {stem!r}, but {str(root / images)!r} holds no such image; mend the list"
                raise DataError(msg)
            homes[stem] = file.name
        parts[split] = Items.of(pairs[stem] for stem in sorted(stems) if stem in pairs)
    left = sorted(pairs.keys() - homes)
    findings += [Finding("ignored", (pairs[stem].path,), "an image in none of the lists") for stem in left]
    return Listing(labels=labels, root=root, parts=parts, findings=_sorted(findings))


def _split_lists(root: Path) -> dict[str, Path]:
    splits: dict[str, Path] = {}
    for file in sorted(root.glob("*.txt")):
        split = SPLIT_NAMES.get(file.stem.lower())
        if split in splits:
            msg = f"{str(root)!r} holds two lists for one split: {splits[split].name!r}, {file.name!r}; keep one"
            raise DataError(msg)
        if split is not None:
            splits[split] = file
    return splits


def _classes(file: Path) -> tuple[str, ...]:
    if not file.is_file():
        msg = f"no {str(file)!r}; write the names of the classes there, one per line, or set `prepare.classes`"
        raise DataError(msg)
    return tuple(_lines(file))


def _check_classes(labels: Sequence[str], *, where: str) -> None:
    twice = sorted({label for label in labels if labels.count(label) > 1})
    if twice:
        msg = f"{where} names {twice[0]!r} twice; give every class a name of its own"
        raise DataError(msg)
    refuse_one_class(tuple(labels), where)
    if len(labels) > IGNORED:
        msg = f"{where} names {len(labels)} classes; masks of 8 bits can tell {IGNORED} apart"
        raise DataError(msg)


def _lines(file: Path) -> list[str]:
    try:
        lines = [line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        msg = f"{str(file)!r} cannot be read ({error}); save it as UTF-8"
        raise DataError(msg) from error
    return [line for line in lines if line]


def _by_stem(root: Path, name: str) -> dict[str, str]:
    folder = root / name
    if not folder.is_dir():
        msg = f"{str(root)!r} holds no folder {name!r}; set `prepare.images` and `prepare.masks` to the folders' names"
        raise DataError(msg)
    found: dict[str, str] = {}
    for file in sorted(entry for entry in folder.iterdir() if entry.is_file() and is_image(entry)):
        if file.stem in found:
            both = f"{Path(found[file.stem]).name!r} and {file.name!r}"
            msg = f"{str(folder)!r} holds {both}; names must differ before the suffix"
            raise DataError(msg)
        found[file.stem] = file.relative_to(root).as_posix()
    return found


def _sorted(findings: list[Finding]) -> list[Finding]:
    return sorted(findings, key=lambda finding: finding.paths)
