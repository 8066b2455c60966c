"""Images that are the same file, or show the same scene."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.parts.checks.look import DecodeImage
from pipeline.parts.checks.near import Links, connected, link, similarity
from pipeline.parts.index import SPLITS
from pipeline.parts.sources.listing import Finding
from pipeline.steps.prepare.gathered import Gathered

# What must stay as it is comes first: a published test split is compared with.
PRECIOUS = [SPLITS.index(name) for name in ("test", "validation", "train")]


def same_files(found: Gathered) -> list[Finding]:
    """Finds byte-equal images that lie in two splits, or have two labels or masks.

    Of those in two splits all but the test split's, or else the validation split's, are to go. Of those with two labels
    in one split, all.
    """
    return list(_same_files(found))


def _same_files(found: Gathered) -> Iterator[Finding]:
    target = found.items.columns["label" if found.pixels is None else "mask_sha256"]
    # Few have the same first bits: sorting whole hashes would take four times the memory.
    alike = ((rows, found.items.columns["sha256"][rows]) for rows in _groups(found.items.contents))
    for rows in (rows[same] for rows, hashes in alike for same in _groups(hashes)):
        home = min(found.split[rows].tolist(), key=_rank)
        at_home = rows[found.split[rows] == home]
        paths = found.paths(rows)
        if len(np.unique(target[at_home])) > 1:
            yield Finding("copies", paths, "one image with two labels", tuple(rows.tolist()))
        elif len(at_home) < len(rows):
            others = rows[found.split[rows] != home]
            yield Finding("copies", paths, f"one image, in {_where(found, rows)}", tuple(others.tolist()))


def _groups(values: NDArray[np.generic]) -> Iterator[NDArray[np.int64]]:
    """Yields the rows of each value that occurs more than once, in the order of their first."""
    order = np.argsort(values, kind="stable")
    same = values[order[1:]] == values[order[:-1]]
    order = order[np.append(False, same) | np.append(same, False)]  # of a million images few have a copy
    ordered = values[order]
    groups = np.split(order, np.flatnonzero(ordered[1:] != ordered[:-1]) + 1)
    yield from sorted((group for group in groups if len(group)), key=lambda group: int(group[0]))


def _rank(split: int) -> int:
    return PRECIOUS.index(split) if split in PRECIOUS else len(PRECIOUS)


def _where(found: Gathered, rows: NDArray[np.int64]) -> str:
    return " and ".join(SPLITS[code] for code in sorted(set(found.split[rows].tolist()) & set(PRECIOUS), key=_rank))


def near_links(found: Gathered, *, decode: DecodeImage, threshold: float) -> Links:
    """Links images whose perceptual hashes are close and whose pixels agree.

    Args:
        found: all images.
        decode: gives an image.
        threshold: correlation from which two are taken for one scene.

    Returns:
        Links; of byte-equal images the first stands for all.
    """
    _, first = np.unique(found.items.contents, return_index=True)
    first.sort()
    paths = found.items.columns["path"]

    def image(place: int) -> Image.Image:
        return decode(found.root / str(paths[first[place]]))

    links = link(found.phash[first], similarity(image), threshold=threshold)
    return [(int(first[one]), int(first[other]), score) for one, other, score in links]


def near_files(found: Gathered, links: Links) -> list[Finding]:
    """Finds scenes with near copies that lie in two splits.

    All images of such a scene are to go but those of the test split, or else the validation split.

    Args:
        found: images, with their scenes.
        links: within the scenes.
    """
    lowest: dict[int, float] = defaultdict(lambda: 1.0)
    for one, _, score in links:
        lowest[int(found.scene[one])] = min(score, lowest[int(found.scene[one])])
    findings = []
    for rows in _groups(found.scene):
        scene = int(found.scene[rows[0]])
        home = min(found.split[rows].tolist(), key=_rank)
        others = rows[found.split[rows] != home]
        if scene in lowest and len(others):
            reason = f"correlation {lowest[scene]:.3f}, in {_where(found, rows)}"
            findings.append(Finding("near_copies", found.paths(rows), reason, tuple(others.tolist())))
    return findings


def with_scenes(found: Gathered, links: Links) -> Gathered:
    """Gives the images that show one scene, byte-equal or near copies, one number."""
    _, same = np.unique(found.items.contents, return_inverse=True)
    ends = np.array([link[:2] for link in links], np.int64).reshape(-1, 2)
    return replace(found, scene=connected(int(same.max(initial=-1)) + 1, same[ends])[same])
