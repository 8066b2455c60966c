"""What a loaded engine's answers are worth: top-1 accuracy of classes, mean IoU of masks, each with its interval.

It knows neither the timer nor how an image becomes an input.
"""

import math
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, MeasureError
from deploy.runtime import Engine

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution
RESAMPLES = 1000
T = TypeVar("T")


class Score(Protocol):
    """Gathers the answers to images, one by one."""

    def add(self, logits: NDArray[np.float32], target: NDArray[np.int64]) -> None:
        """Take the logits of one image, without the batch axis, and what is true of it."""

    def summary(self) -> dict[str, Any]:
        """Describe them: `metric`, `percent` to 0.01, `count` of images, 95 % interval `low_` and `high_percent`."""

    def by_image(self) -> Sequence[int | float | None]:
        """Return what stands for each image's answer in a table."""


class Classification:
    """Top-1 accuracy; logits (classes,), targets ()."""

    def __init__(self) -> None:
        self._answers: list[int] = []
        self._correct = 0

    def add(self, logits: NDArray[np.float32], target: NDArray[np.int64]) -> None:
        """Take one image's logits and its class."""
        self._answers.append(int(logits.argmax()))
        self._correct += self._answers[-1] == int(target)

    def summary(self) -> dict[str, Any]:
        """Describe top-1 accuracy with its Wilson interval; besides `Score`'s keys `correct`, a number of images."""
        count = len(self._answers)
        low, high = wilson(self._correct, count)
        return {
            "metric": "accuracy",
            "percent": round(100 * self._correct / count, 2),
            "correct": self._correct,
            "count": count,
            "low_percent": round(100 * low, 2),
            "high_percent": round(100 * high, 2),
        }

    def by_image(self) -> Sequence[int]:
        """Return the class that each image was taken for."""
        return self._answers


class Segmentation:
    """Mean intersection over union; logits (classes, height, width), targets (height, width).

    IoU_c = n_cc / (sum_k n_ck + sum_k n_kc - n_cc), where n_tp pixels of class t were taken for p in all images
    together (Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2015); the mean is over the classes
    that occur in a target or an answer. The interval is the percentile bootstrap over images (Efron, 1979; 1000
    resamples of a fixed seed): the pixels of one image are not independent.

    Args:
        labels: names of the classes.
        ignore: target of pixels that do not count; None counts all.
    """

    def __init__(self, labels: Sequence[str], *, ignore: int | None) -> None:
        self._labels, self._ignore = tuple(labels), ignore
        self._pixels: list[NDArray[np.int64]] = []  # of each image: hit, of each class, and taken for each class

    def add(self, logits: NDArray[np.float32], target: NDArray[np.int64]) -> None:
        """Take one image's logits and its mask."""
        classes = len(self._labels)
        counted = slice(None) if self._ignore is None else target != self._ignore
        truth, answer = target[counted].ravel(), logits.argmax(axis=0)[counted].ravel()
        sets = (truth[truth == answer], truth, answer)
        self._pixels.append(np.stack([np.bincount(pixels, minlength=classes) for pixels in sets]))

    def summary(self) -> dict[str, Any]:
        """Describe mean IoU; besides `Score`'s keys `per_class_percent`, None for a class that does not occur.

        Raises:
            MeasureError: no pixel has a class.
        """
        pixels = np.stack(self._pixels).astype(np.float64)
        each, count = iou(pixels.sum(0)), len(pixels)
        if np.isnan(each).all():
            msg = f"no pixel of {count} masks has a class; mend the masks, or `prepare.ignore`"
            raise MeasureError(msg)
        shares = np.random.default_rng(0).multinomial(count, [1 / count] * count, RESAMPLES).astype(np.float64)
        drawn = _mean(iou(np.tensordot(shares, pixels, axes=1)))
        low, high = np.nanquantile(drawn, (0.025, 0.975))
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
        return [_percent(float(_mean(iou(pixels)))) for pixels in self._pixels]


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


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), each end in 0..1.

    Unlike the normal interval it stays within 0..1 and does not collapse at 0 or 100 %.
    """
    share, z2 = correct / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def evaluate(
    engine: Engine,
    items: Sequence[T],
    load: Callable[[T], tuple[NDArray[np.float32], NDArray[np.int64]]],
    *,
    score: Score,
    keep: Collection[int],
    on_progress: Callable[[str], None],
) -> NDArray[np.float32]:
    """Run every item through an engine, one at a time as on the device.

    Args:
        engine: takes (1, 3, H, W).
        items: at least one.
        load: gives an item's input of shape (3, H, W), and what is true of it.
        score: takes all answers.
        keep: places of the items whose logits are returned.
        on_progress: called with one line about every two seconds.

    Returns:
        Logits of shape (kept items, classes, ...), float32.

    Raises:
        MeasureError: there are no items.
        EngineError: the engine gives values that are not finite.
    """
    if not items:
        msg = "there is no item to evaluate; the split is empty"
        raise MeasureError(msg)
    kept, broken, wanted = [], 0, frozenset(keep)
    last = time.monotonic()
    for index, item in enumerate(items):
        image, target = load(item)
        logits = engine.run(image[None])[0].astype(np.float32, copy=False)
        broken += not np.isfinite(logits).all()
        score.add(logits, target)
        if index in wanted:
            kept.append(logits)
        if time.monotonic() - last >= 2:
            last = time.monotonic()
            on_progress(f"accuracy: {index + 1} of {len(items)} images")
    if broken:
        msg = f"the engine gives logits that are not finite for {broken} of {len(items)} items; build it again"
        raise EngineError(msg)
    return np.stack(kept)
