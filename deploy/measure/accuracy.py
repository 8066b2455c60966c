"""What a loaded engine's answers are worth: top-1 accuracy of classes, mean IoU of masks, each with its interval.

It knows neither the timer nor how an image becomes an input.
"""

import base64
import math
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.data import Split
from deploy.errors import EngineError, MeasureError
from deploy.measure.journal import Journal
from deploy.measure.statistics import Difference, paired_bootstrap, paired_difference, resampled_sums, wilson
from deploy.runtime import Engine

MOST_CLASSES = 100  # in a confusion matrix: above, predictions.csv tells
EVERY_S = 2.0
LOGITS_BYTES = 2**26  # kept of each variant: all of classes, of masks those of some images
T = TypeVar("T")


class Score(Protocol):
    """Gathers the answers to images, one by one, as rows of whole numbers from which all else follows."""

    @property
    def row(self) -> tuple[int, ...]:
        """Shape of what is kept of one image, int64."""

    @property
    def rows(self) -> list[NDArray[np.int64]]:
        """What is kept of the images so far, in their order."""

    def add(self, logits: NDArray[np.float32], target: NDArray[np.int64]) -> None:
        """Take the logits of one image, without the batch axis, and what is true of it."""

    def summary(self) -> dict[str, Any]:
        """Describe them: `metric`, `percent` to 0.01, `count` of images, 95 % interval `low_` and `high_percent`."""

    def by_image(self) -> Sequence[int | float | None]:
        """Return what stands for each image's answer in a table."""


class Classification:
    """Top-1 accuracy; logits (classes,), targets ().

    Args:
        labels: names of the classes.
        rows: true and answered class of each image, of an earlier run.
    """

    row = (2,)

    def __init__(self, labels: Sequence[str], rows: Iterable[NDArray[np.int64]] = ()) -> None:
        self._labels = tuple(labels)
        self.rows = list(rows)

    def add(self, logits: NDArray[np.float32], target: NDArray[np.int64]) -> None:
        """Take one image's logits and its class."""
        self.rows.append(np.array([int(target), int(logits.argmax())]))

    def summary(self) -> dict[str, Any]:
        """Describe top-1 accuracy with its Wilson interval.

        Besides `Score`'s keys: `correct`, a number of images; `right`, a bit of each image in base64, by numpy's
        packbits; `per_class_percent`, the share of a class's images that were taken for it, None for one without
        images; and `confusion`, images by true and answered class, None above 100 classes.
        """
        right, classes = self.right, len(self._labels)
        count, correct = len(right), int(right.sum())
        low, high = wilson(correct, count)
        true, taken = np.stack(self.rows).T
        pairs = np.bincount(true * classes + taken, minlength=classes**2).reshape(classes, classes)
        shares = np.divide(pairs.diagonal(), pairs.sum(1), out=np.full(classes, np.nan), where=pairs.sum(1) > 0)
        return {
            "metric": "accuracy",
            "percent": round(100 * correct / count, 2),
            "correct": correct,
            "count": count,
            "low_percent": round(100 * low, 2),
            "high_percent": round(100 * high, 2),
            "right": base64.b64encode(np.packbits(right).tobytes()).decode(),
            "per_class_percent": dict(zip(self._labels, map(_percent, shares.tolist()), strict=True)),
            "confusion": pairs.tolist() if classes <= MOST_CLASSES else None,
        }

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each image was taken for what it is."""
        true, taken = np.stack(self.rows).T
        return np.asarray(true == taken)

    def by_image(self) -> Sequence[int]:
        """Return the class that each image was taken for."""
        return [int(taken) for _, taken in self.rows]


class Segmentation:
    """Mean intersection over union; logits (classes, height, width), targets (height, width).

    IoU_c = n_cc / (sum_k n_ck + sum_k n_kc - n_cc), where n_tp pixels of class t were taken for p in all images
    together (Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2015); the mean is over the classes
    that occur in a target or an answer. The interval is the percentile bootstrap over images (Efron, 1979; 1000
    resamples of a fixed seed): the pixels of one image are not independent.

    Args:
        labels: names of the classes.
        ignore: target of pixels that do not count; None counts all.
        rows: of each image of an earlier run the pixels hit, of each class, and taken for each class.
    """

    def __init__(self, labels: Sequence[str], *, ignore: int | None, rows: Iterable[NDArray[np.int64]] = ()) -> None:
        self._labels, self._ignore = tuple(labels), ignore
        self.row = (3, len(self._labels))
        self.rows = list(rows)

    def add(self, logits: NDArray[np.float32], target: NDArray[np.int64]) -> None:
        """Take one image's logits and its mask."""
        classes = len(self._labels)
        counted = slice(None) if self._ignore is None else target != self._ignore
        truth, answer = target[counted].ravel(), logits.argmax(axis=0)[counted].ravel()
        sets = (truth[truth == answer], truth, answer)
        self.rows.append(np.stack([np.bincount(pixels, minlength=classes) for pixels in sets]))

    def summary(self) -> dict[str, Any]:
        """Describe mean IoU; besides `Score`'s keys `per_class_percent`, None for a class that does not occur.

        Raises:
            MeasureError: no pixel has a class.
        """
        pixels = np.stack(self.rows)
        each, count = iou(pixels.sum(0)), len(pixels)
        if np.isnan(each).all():
            msg = f"no pixel of {count} masks has a class; mend the masks, or `prepare.ignore`"
            raise MeasureError(msg)
        low, high = np.nanquantile(_mean(iou(resampled_sums(pixels))), (0.025, 0.975))
        return {
            "metric": "mIoU",
            "percent": _percent(float(_mean(each))),
            "count": count,
            "low_percent": _percent(float(low)),
            "high_percent": _percent(float(high)),
            "per_class_percent": dict(zip(self._labels, map(_percent, each.tolist()), strict=True)),
        }

    def by_image(self) -> Sequence[float | None]:
        """Return the mean IoU of each image in percent, None for one that is ignored whole."""
        return [_percent(float(_mean(iou(pixels)))) for pixels in self.rows]


def difference(ours: Score, theirs: Score) -> Difference:
    """Compare the answers of two variants to the same images, in points: ours less theirs.

    Args:
        ours: top-1 accuracy, paired by Newcombe's method, or mean IoU, by the bootstrap over images.
        theirs: of the same task.
    """
    if isinstance(ours, Classification) and isinstance(theirs, Classification):
        return paired_difference(ours.right, theirs.right)
    return paired_bootstrap(np.stack(ours.rows), np.stack(theirs.rows), lambda sums: _mean(iou(sums)))


def iou(pixels: NDArray[Any]) -> NDArray[np.float64]:
    """Return intersection over union per class, not a number where a class does not occur.

    Args:
        pixels: of shape (..., 3, classes): how many were hit, are of each class, and were taken for it.
    """
    hit, true, taken = (pixels[..., row, :].astype(np.float64) for row in range(3))
    union = true + taken - hit
    shares: NDArray[np.float64] = np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)
    return shares


def _mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the mean over the last axis of what is a number; numpy's own warns where there is none."""
    there = np.isfinite(values)
    sums, counts = np.where(there, values, 0).sum(-1), there.sum(-1)
    means: NDArray[np.float64] = np.divide(sums, counts, out=np.full(counts.shape, np.nan), where=counts > 0)
    return means


def _percent(share: float) -> float | None:
    return None if math.isnan(share) else round(100 * share, 2)


def score_of(split: Split) -> Classification | Segmentation:
    """Return an empty score of the split's task."""
    return Segmentation(split.labels, ignore=split.ignore) if split.masked else Classification(split.labels)


def kept_places(count: int, output_shape: tuple[int, ...]) -> list[int]:
    """Return the places of the images whose logits are kept, evenly spaced: all, as long as they take 64 MiB at most.

    Args:
        count: number of test images.
        output_shape: of one answer, float32.
    """
    most = max(1, LOGITS_BYTES // (4 * math.prod(output_shape)))
    places: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return places


def evaluate(
    engine: Engine,
    items: Sequence[T],
    load: Callable[[T], tuple[NDArray[np.float32], NDArray[np.int64]]],
    *,
    score: Score,
    journal: Journal,
    on_progress: Callable[[str], None],
) -> NDArray[np.float32]:
    """Run every item through an engine, one at a time as on the device, from where an earlier run was ended.

    Args:
        engine: takes (1, 3, H, W).
        items: at least one.
        load: gives an item's input of shape (3, H, W), and what is true of it.
        score: takes all answers; empty, or with those that the journal holds.
        journal: takes all answers as they come, and some logits.
        on_progress: called with one line about every two seconds.

    Returns:
        The kept logits, of shape (kept items, classes, ...), float32.

    Raises:
        MeasureError: there are no items.
        EngineError: the engine gives values that are not finite.
    """
    if not items:
        msg = "there is no item to evaluate; the split is empty"
        raise MeasureError(msg)
    last = time.monotonic()
    for index in range(len(score.rows), len(items)):
        image, target = load(items[index])
        logits = engine.run(image[None])[0].astype(np.float32, copy=False)
        if not np.isfinite(logits).all():
            msg = f"the engine gives logits that are not finite for item {index + 1} of {len(items)}; build it again"
            raise EngineError(msg)
        score.add(logits, target)
        journal.add(score.rows[-1], logits)
        if time.monotonic() - last >= EVERY_S:
            last = time.monotonic()
            journal.flush()
            on_progress(f"accuracy: {index + 1} of {len(items)} images")
    return journal.logits()
