"""Which classes a variant takes for which: the whole matrix, or of many classes the most frequent errors."""

import math
from dataclasses import dataclass

from pipeline.steps.report.variants import Accuracy

MOST_CLASSES = 20  # of a matrix that can still be read
MOST_PAIRS = 20
DEEPEST = 60  # percent of the colour where all images of a class are in one cell: text stays readable on it

Cell = tuple[int, int]


@dataclass(frozen=True, kw_only=True)
class Confusion:
    """A matrix or a list, whichever can be read.

    `rows` has a label and its cells, each a count of images and the depth of its colour in percent; `pairs` a true
    class, what it was taken for, the images, and their share of the class in percent. `errors` counts all wrong images.
    """

    labels: tuple[str, ...]
    rows: tuple[tuple[str, tuple[Cell, ...]], ...]
    pairs: tuple[tuple[str, str, int, float], ...]
    errors: int
    kinds: int


def view(accuracy: Accuracy) -> Confusion | None:
    """Lays a confusion matrix out; None where the record has none."""
    counts, labels = accuracy.confusion, tuple(accuracy.per_class)
    if not counts:
        return None
    wrong = [
        (labels[truth], labels[answer], count, 100 * count / sum(row))
        for truth, row in enumerate(counts)
        for answer, count in enumerate(row)
        if count and truth != answer
    ]
    readable = len(labels) <= MOST_CLASSES
    return Confusion(
        labels=labels,
        rows=tuple((labels[truth], _cells(row)) for truth, row in enumerate(counts)) if readable else (),
        pairs=() if readable else tuple(sorted(wrong, key=lambda each: (-each[2], -each[3], each[:2]))[:MOST_PAIRS]),
        errors=sum(count for _, _, count, _ in wrong),
        kinds=len(wrong),
    )


def _cells(row: tuple[int, ...]) -> tuple[Cell, ...]:
    """Counts and depths; by the root, so that a few errors can be seen."""
    total = max(sum(row), 1)
    return tuple((count, round(DEEPEST * math.sqrt(count / total))) for count in row)
