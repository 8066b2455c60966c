"""How well answers fit what is true: accuracy of classes, mean intersection over union of masks."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError
from pipeline.base.parity import Score
from pipeline.parts.index import IGNORED, Index


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

    def per_class_percent(self) -> dict[str, float | None]:
        """Returns the IoU of each class, None where it does not occur."""
        values = (100 * self._index.compute()).tolist()
        return {name: None if math.isnan(value) else value for name, value in zip(self._labels, values, strict=True)}


def score_of(index: Index) -> Score:
    """Returns what a data set's answers are judged by."""
    return MeanIoU(index.labels) if index.masked else Accuracy()
