"""Which images are trained on, validated on, tested on, and calibrated with."""

import random
from collections.abc import Collection, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import train_test_split

from pipeline.base.errors import DataError
from pipeline.parts.index import SPLITS, Items
from pipeline.steps.prepare.gathered import UNSPLIT, Gathered

FEWEST_PER_CLASS = 4  # to draw splits from: one image for each, and one more to calibrate with
Rows = NDArray[np.int64]


def split(
    found: Gathered, *, given: Collection[str], validation_fraction: float, test_fraction: float, seed: int
) -> dict[str, Items]:
    """Draws the splits that are missing, every class in its share; a scene stays in one split.

    Args:
        found: all images.
        given: names of the splits that the source has, even if none of their images is left.
        validation_fraction: share of the images that are not split yet.
        test_fraction: the same.
        seed: fixes the draw.

    Raises:
        DataError: a class has too few images, or the fractions do not fit.
    """
    splits = {name: np.flatnonzero(found.split == SPLITS.index(name)) for name in given if name in SPLITS[1:]}
    pool = np.flatnonzero((found.split == UNSPLIT) | (found.split == SPLITS.index("train")))
    first, scene = _scenes(found.scene[pool])
    labels = found.items.labels[pool[first]]
    if len(splits) < 2:
        _refuse_few(labels, found, pool)
    rest, share = np.arange(len(first)), 1.0
    try:
        for name, fraction in (("test", test_fraction), ("validation", validation_fraction)):
            if name not in splits:
                rest, drawn = train_test_split(
                    rest, test_size=fraction / share, stratify=labels[rest], random_state=seed
                )
                splits[name] = pool[np.isin(scene, drawn)]
                share -= fraction
    except ValueError as error:
        msg = (
            f"{len(pool)} images, {len(first)} of them of different scenes, cannot be split with "
            f"`prepare.validation_fraction` {validation_fraction} and `prepare.test_fraction` {test_fraction}: "
            f"{error}; every split needs an image of each class: change the fractions or add images"
        )
        raise DataError(msg) from error
    splits["train"] = pool[np.isin(scene, rest)]
    # The order of all at once, since to order each would copy its paths.
    by_path = np.argsort(found.items.columns["path"], kind="stable")
    return {name: found.items[by_path[np.isin(by_path, splits[name])]] for name in SPLITS}


def _scenes(numbers: NDArray[np.int64]) -> tuple[Rows, Rows]:
    """Numbers scenes anew, in the order of their first images; returns those images' places, and each one's scene."""
    _, first, inverse = np.unique(numbers, return_index=True, return_inverse=True)
    order = np.argsort(first)
    return first[order], np.argsort(order)[inverse]


def _refuse_few(labels: NDArray[np.int64], found: Gathered, pool: Rows) -> None:
    counts = np.bincount(labels, minlength=len(found.labels))
    few = np.flatnonzero(counts < FEWEST_PER_CLASS)
    if found.pixels is None and len(few):
        name, count = found.labels[few[0]], counts[few[0]]
        every = int((found.items.labels[pool] == few[0]).sum())
        same = "" if every == count else f" (of {every}; near copies count once, see `prepare.near_similarity`)"
        msg = (
            f"class {name!r} holds {count} different image(s){same} to draw splits from, fewer than "
            f"{FEWEST_PER_CLASS}; add images or remove the class"
        )
        raise DataError(msg)


def few(items: Items, count: int, *, seed: int) -> Items:
    """Draws at most `count` images of each class, in their order."""
    every = np.arange(len(items))
    kept = [row for rows in _shuffled_classes(items.labels, every, seed=seed) for row in rows[:count]]
    return items[np.array(sorted(kept), np.int64)]


def draw(items: Items, size: int, *, apart_from: Sequence[Items], seed: int) -> Items:
    """Draws one image of each class in turn, so that whoever takes only the first ones still sees every class.

    Args:
        items: to draw from.
        size: of the draw, at most.
        apart_from: whose content is not drawn.
        seed: fixes the draw.
    """
    unseen = ~np.isin(items.contents, np.concatenate([other.contents for other in apart_from]))
    rounds = zip_longest(*_shuffled_classes(items.labels, np.flatnonzero(unseen), seed=seed))
    rows = [row for turn in rounds for row in turn if row is not None][:size]
    return items[np.array(rows, np.int64)]


def _shuffled_classes(labels: NDArray[np.int64], rows: Rows, *, seed: int) -> list[list[int]]:
    """Returns those of `rows` that each class has, shuffled."""
    shuffle = random.Random(seed).shuffle  # noqa: S311 - a draw of images, no secret
    _, first, counts = np.unique(labels[rows], return_index=True, return_counts=True)
    by_class = rows[np.argsort(labels[rows], kind="stable")]
    classes: list[list[int]] = [part.tolist() for part in np.split(by_class, np.cumsum(counts)[:-1])]
    for place in np.argsort(first):  # in the order in which the classes occur
        shuffle(classes[place])
    return classes
