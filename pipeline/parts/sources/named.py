"""Data sets that timm's `create_dataset` knows by name: Hugging Face, torchvision, webdataset, tar files, folders.

They are written out as files once, so that everything after sees one kind of data: what the source stores as a file is
copied byte by byte, what it gives as pixels becomes a PNG.
"""

import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from pipeline.base.errors import DataError
from pipeline.base.progress import Reporter
from pipeline.parts.index import Item, Items
from pipeline.parts.sources.listing import ALL, Listing, refuse_one_class

SUFFIXES = {"JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "GIF": ".gif", "TIFF": ".tif"}


def write_named(
    folder: Path,
    *,
    name: str,
    root: Path | None,
    splits: Mapping[str, str],
    download: bool,
) -> Listing:
    """Writes `<folder>/<split>/<number>.<suffix>`.

    Args:
        folder: new; becomes the listing's root.
        name: with timm's prefix, such as "hfds/user/name", "torch/cifar10", "wds/name"; "" for a folder or tar file.
        root: where the source keeps or finds its files; None where it needs none.
        splits: the source's name of each of our splits, such as {"train": "train", "validation": "test"}.
        download: whether the source may fetch what is not there.

    Raises:
        DataError: the source is unknown, needs a package that is missing, or has no such split or no classes.
    """
    labels: tuple[str, ...] = ()
    parts = {}
    for split, theirs in splits.items():
        dataset = _open(name, root, theirs, download)
        names = _class_names(dataset)
        if labels and names and names != labels:
            msg = f"split {theirs!r} of {name!r} has other classes than {next(iter(splits.values()))!r}"
            raise DataError(msg)
        labels = labels or names
        parts[split] = Items.of(_write(folder, split, dataset, name=name))
    seen = max((int(items.labels.max()) for items in parts.values() if len(items)), default=-1)
    labels = labels or tuple(str(number) for number in range(seen + 1))
    if seen >= len(labels):
        msg = f"data set {name!r} has {len(labels)} names of classes, but an image of class {seen}; it cannot be used"
        raise DataError(msg)
    refuse_one_class(labels, f"data set {name!r}")
    if set(parts) == {"train"}:
        parts = {ALL: parts["train"]}
    return Listing(labels=labels, root=folder, parts=parts)


def _open(name: str, root: Path | None, split: str, download: bool) -> Any:
    from timm.data import create_dataset  # imports torch

    try:
        return create_dataset(name, root=None if root is None else str(root), split=split, download=download)
    except ImportError as error:
        msg = f"data set {name!r} needs a package that is not installed ({error}); install the extra `named`"
        raise DataError(msg) from error
    except (OSError, ValueError, RuntimeError, KeyError, AssertionError) as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        msg = f"split {split!r} of data set {name!r} cannot be opened ({reason}); see timm's create_dataset for names"
        raise DataError(msg) from error


def _class_names(dataset: Any) -> tuple[str, ...]:
    source = getattr(dataset, "reader", dataset)
    # Readers name it in two ways; of what has no names the numbers must do.
    places: dict[str, int] = getattr(source, "class_to_idx", None) or getattr(source, "class_name_to_idx", None) or {}
    names: dict[int, str] = {}
    for name, place in places.items():
        names.setdefault(place, str(name))  # ImageNet's classes have several each
    return tuple(names.get(place, str(place)) for place in range(max(names, default=-1) + 1))


def _samples(dataset: Any) -> Iterable[tuple[Any, int]]:
    """Yields files or images with their labels.

    timm's own `ImageDataset` skips what cannot be decoded; its reader gives the bytes.
    """
    reader = getattr(dataset, "reader", None)
    if reader is None:
        return (dataset[place] for place in range(len(dataset)))
    return (reader[place] for place in range(len(reader))) if hasattr(reader, "__getitem__") else iter(reader)


def _write(folder: Path, split: str, dataset: Any, *, name: str) -> Iterator[Item]:
    (folder / split).mkdir(parents=True)
    total, count = len(dataset), 0
    with Reporter(f"{name or 'images'} {split}", total) as reporter:
        for number, (image, label) in enumerate(_samples(dataset)):
            count += 1
            if label is None or int(label) < 0:
                msg = f"image {number} of split {split!r} of {name!r} has no label; use a split that has labels"
                raise DataError(msg)
            path = _write_image(image, folder / split / f"{number:07d}")
            yield Item(path.relative_to(folder).as_posix(), int(label), "")
            reporter.advance()
    # timm's webdataset reader leaves out what it cannot decode.
    if count != total:
        msg = (
            f"split {split!r} of {name!r} gave {count} images of the {total} it says it holds; mend the files that the "
            f"lines above name, or its count of images (_info.json, or `|count` after a pattern of shards)"
        )
        raise DataError(msg)


def _write_image(image: Any, stem: Path) -> Path:
    if isinstance(image, Image.Image):
        path = stem.with_suffix(".png")
        image.save(path)
        return path
    with image:
        content = image.read()
    try:
        kind = Image.open(io.BytesIO(content)).format
    except OSError:
        kind = None  # the check of all files will name it
    path = stem.with_suffix(SUFFIXES.get(kind or "", ".png"))
    path.write_bytes(content)
    return path
