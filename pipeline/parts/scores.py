"""How well answers fit what is true: accuracy of classes, mean intersection over union of masks."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError
from pipeline.base.parity import Score
from pipeline.parts.index import IGNORED, Index

Z_95 = 1.959963984540054
RESAMPLES = 1000


class Accuracy:
    """Top-1 accuracy of classes."""

    metric = "accuracy"

    def __init__(self) -> None:
        self.counts: NDArray[np.int64] = np.zeros(2, np.int64)  # right, all

    def add(self, answers: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Counts answers and true classes, both of shape (images,)."""
        self.counts += (int((answers == targets).sum()), len(targets))

    def percent(self) -> float:
        """Returns the share of right answers."""
        return float(100 * self.counts[0] / self.counts[1])

    def share(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns whether the image was taken for the right class, as its counts."""
        return counts

    def change(self, before: Sequence[NDArray[np.int64]], after: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
        """Returns the 95 % interval of a difference of paired shares, in points.

        With b images right before alone and c right after alone, of n: half an image is added to each of the four
        kinds, then d = (c - b) / n and d +- 1.96 sqrt(b + c - (c - b)^2 / n) / n (Agresti & Min, "Simple improved
        confidence intervals for comparing matched proportions", Statistics in Medicine, 2005). It does not collapse
        where no answer changed.
        """
        right = np.array([[counts[0] for counts in each] for each in (before, after)], bool)
        b, c = (right[0] & ~right[1]).sum() + 0.5, (right[1] & ~right[0]).sum() + 0.5
        n = right.shape[1] + 2
        half = Z_95 * math.sqrt(b + c - (c - b) ** 2 / n)
        return max(float(100 * (c - b - half) / n), -100.0), min(float(100 * (c - b + half) / n), 100.0)

    def per_class_percent(self) -> dict[str, float | None]:
        """Returns nothing: a class's share of right answers says little without what was taken for it."""
        return {}


class MeanIoU:
    """Mean intersection over union of masks, over the classes that occur in a target or an answer.

    IoU_c = n_cc / (sum_k n_ck + sum_k n_kc - n_cc), where n_tp pixels of class t were taken for p in all images
    together (Everingham et al., "The PASCAL Visual Object Classes Challenge", IJCV 2015).

    Args:
        labels: names of the classes.
    """

    metric = "mIoU"

    def __init__(self, labels: Sequence[str]) -> None:
        # It loads torch and torchvision, which nothing else needs where ONNX files are compared.
        from torchmetrics.classification import MulticlassJaccardIndex

        self._labels = tuple(labels)
        options: dict[str, Any] = {"average": "none", "ignore_index": IGNORED, "sync_on_compute": False}
        self._index = MulticlassJaccardIndex(len(labels), zero_division=float("nan"), validate_args=False, **options)

    @property
    def counts(self) -> NDArray[np.int64]:
        """Pixels by true class and answer, of shape (classes, classes)."""
        found: NDArray[np.int64] = self._index.confmat.numpy()
        return found

    @counts.setter
    def counts(self, pixels: NDArray[np.int64]) -> None:
        self._index.confmat = self._index.confmat.new_tensor(pixels)

    def add(self, answers: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Counts pixels of answers and masks, both of shape (images, height, width)."""
        import torch

        self._index.update(torch.from_numpy(answers), torch.from_numpy(targets))

    def percent(self) -> float:
        """Returns the mean over classes.

        Raises:
            DataError: no pixel had a class.
        """
        found = 100 * float(self._index.compute().nanmean())
        if math.isnan(found):
            msg = "no pixel of the masks that are judged has a class; mend the masks, or `prepare.ignore`"
            raise DataError(msg)
        return found

    def share(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns the pixels of each class that were hit, are of it, and were taken for it, of shape (3, classes)."""
        return np.stack([counts.diagonal(), counts.sum(1), counts.sum(0)])

    def change(self, before: Sequence[NDArray[np.int64]], after: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
        """Returns the 95 % interval of the difference of two means, in points: the paired percentile bootstrap.

        Images are drawn, not pixels, which within one image are not independent; the same for both (Efron, 1979; 1000
        resamples of a fixed seed).
        """
        count = len(before)
        shares = np.random.default_rng(0).multinomial(count, [1 / count] * count, RESAMPLES).astype(np.float64)
        means = [_mean_iou(shares, each) for each in (before, after)]
        low, high = np.nanquantile(100 * (means[1] - means[0]), (0.025, 0.975))
        return float(low), float(high)

    def per_class_percent(self) -> dict[str, float | None]:
        """Returns the IoU of each class, None where it does not occur."""
        values = (100 * self._index.compute()).tolist()
        return {name: None if math.isnan(value) else value for name, value in zip(self._labels, values, strict=True)}


def _mean_iou(shares: NDArray[np.float64], sets: Sequence[NDArray[np.int64]]) -> NDArray[np.float64]:
    """Returns the mean IoU of every resample; `shares`, of shape (resamples, images), says how often each was drawn."""
    hit, true, taken = np.moveaxis(np.tensordot(shares, np.stack(sets).astype(np.float64), axes=1), 1, 0)
    union = true + taken - hit
    each = np.divide(hit, union, out=np.full(hit.shape, np.nan), where=union > 0)
    there = np.isfinite(each)
    means: NDArray[np.float64] = np.where(there, each, 0).sum(-1) / np.maximum(there.sum(-1), 1)
    return means


def score_of(index: Index) -> Score:
    """Returns what a data set's answers are judged by."""
    return MeanIoU(index.labels) if index.masked else Accuracy()


def scored(index: Index, logits: Iterable[NDArray[Any]], targets: Iterable[NDArray[np.int64]]) -> Score:
    """Judges answers one image at a time.

    Args:
        index: of the data set.
        logits: of shape (classes, ...), one image each.
        targets: what is true of each image.
    """
    score = score_of(index)
    for one, target in zip(logits, targets, strict=True):
        score.add(one.argmax(0)[None], target[None])
    return score
