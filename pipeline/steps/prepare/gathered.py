"""All images of a data set with what was seen of them, in columns."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.parts.checks.look import Seen
from pipeline.parts.index import HASH, SPLITS, Items
from pipeline.parts.sources.listing import ALL, Finding, Listing

UNSPLIT = len(SPLITS)


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """Images of all splits, one row each.

    Attributes:
        root: folder the paths start from.
        labels: names of the classes.
        items: the images, with hashes.
        split: position of each one's split in `SPLITS`, or `UNSPLIT`; of shape (count,).
        phash: perceptual hashes, of shape (count,).
        sizes: width and height in pixels, of shape (count, 2).
        scene: a number that images which show the same thing share, of shape (count,).
        pixels: share of all pixels that have each class, of images with masks; else None.
    """

    root: Path
    labels: tuple[str, ...]
    items: Items
    split: NDArray[np.int8]
    phash: NDArray[np.uint64]
    sizes: NDArray[np.int32]
    scene: NDArray[np.int64]
    pixels: NDArray[np.float64] | None = None

    def only(self, kept: NDArray[np.bool_]) -> "Gathered":
        """Returns the rows that `kept`, of shape (count,), says."""
        if kept.all():
            return self
        columns = {name: getattr(self, name)[kept] for name in ("items", "split", "phash", "sizes", "scene")}
        return replace(self, **columns)

    def paths(self, rows: Iterable[int]) -> tuple[str, ...]:
        """Returns the paths of some rows."""
        return tuple(str(self.items.columns["path"][row]) for row in rows)


def gather(listing: Listing, seen: Iterable[Seen]) -> tuple[Gathered, list[Finding]]:
    """Joins the images of a listing and what was seen of each, in the listing's order.

    Returns:
        All of them, and what is wrong with their files.
    """
    items = Items.joined(list(listing.parts.values()))
    codes = [UNSPLIT if name == ALL else SPLITS.index(name) for name in listing.parts]
    split = np.repeat(np.array(codes, np.int8), [len(part) for part in listing.parts.values()])
    hashes, phash = np.zeros(len(items), HASH), np.zeros(len(items), np.uint64)
    sizes = np.zeros((len(items), 2), np.int32)
    findings = []
    for row, one in enumerate(seen):
        if one.kind:
            findings.append(Finding(one.kind, (str(items.columns["path"][row]),), one.reason, (row,)))
        if one.sha256:
            hashes[row] = np.void(bytes.fromhex(one.sha256))
        phash[row], sizes[row] = one.phash, (one.width, one.height)
    items = items.replaced(sha256=hashes)
    found = Gathered(
        root=listing.root,
        labels=listing.labels,
        items=items,
        split=split,
        phash=phash,
        sizes=sizes,
        scene=np.arange(len(items)),
    )
    return found, findings


def gather_masks(found: Gathered, seen: Iterable[Seen], *, ignore: int | None) -> tuple[Gathered, list[Finding]]:
    """Adds what was seen of each image's mask: its hash, and the rarest class in it as the image's label.

    Args:
        found: images, in the order of `seen`.
        seen: of the masks.
        ignore: value of pixels without a class.

    Returns:
        The images, and which masks do not fit: in size, or in a value that is no class.
    """
    count, classes = len(found.items), len(found.labels)
    hashes, pixels = np.zeros(count, HASH), np.zeros((count, classes), np.int64)
    findings = []
    for row, one in enumerate(seen):
        kind, reason = one.kind, one.reason
        strange = [value for value, _ in one.pixels if value >= classes and value != ignore]
        unseen = not found.sizes[row].any()  # the image itself is broken
        if not kind and not unseen and (one.width, one.height) != tuple(found.sizes[row]):
            width, height = found.sizes[row]
            kind, reason = "mask", f"{one.width} x {one.height} pixels, its image {width} x {height}"
        elif not kind and strange:
            kind, reason = "mask", f"value {strange[0]} is none of the {classes} classes, 0 to {classes - 1}"
        elif not kind and not any(value != ignore for value, _ in one.pixels):
            kind, reason = "mask", "no pixel has a class"
        if kind:
            path, mask = (str(found.items.columns[name][row]) for name in ("path", "mask"))
            findings.append(Finding(kind, (path,), f"mask {mask}: {reason}", (row,)))
            continue
        hashes[row] = np.void(bytes.fromhex(one.sha256))
        for value, amount in one.pixels:
            if value != ignore:
                pixels[row, value] = amount
    shares = pixels.sum(0) / max(1, pixels.sum())
    rarest = np.where(pixels > 0, shares, np.inf).argmin(1).astype(np.int32)
    items = found.items.replaced(mask_sha256=hashes, label=rarest)
    return replace(found, items=items, pixels=shares), findings
