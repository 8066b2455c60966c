"""Images as tensors: preprocessed exactly as on the device, changed at random only for training."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from pipeline.parts.index import Item

LoadImage = Callable[[Path], NDArray[np.float32]]
"""Decodes and preprocesses one file into an array of shape (3, height, width)."""


@dataclass(frozen=True, kw_only=True)
class Augment:
    """Random changes to a training image.

    Attributes:
        degrees: rotation, uniform in [-degrees, degrees].
        translate: shift, as a share of each side.
        scale: smallest and largest zoom.
        flip: whether left and right may be exchanged.
    """

    degrees: float
    translate: float
    scale: tuple[float, float]
    flip: bool

    def transform(self, fill: Sequence[float]) -> v2.Transform:
        """Returns the transform of one image tensor; `fill` is black after normalisation, per channel."""
        steps: list[v2.Transform] = [
            v2.RandomAffine(
                self.degrees,
                translate=(self.translate, self.translate),
                scale=self.scale,
                interpolation=v2.InterpolationMode.BILINEAR,
                fill=list(fill),
            )
        ]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        return v2.Compose(steps)


class Images(Dataset[tuple[Tensor, int]]):
    """The images of a split and their labels.

    Args:
        root: folder the items' paths start from.
        items: what to load.
        load: decodes and preprocesses one file.
        transform: random changes, for training.
    """

    def __init__(
        self, root: Path, items: Sequence[Item], *, load: LoadImage, transform: v2.Transform | None = None
    ) -> None:
        self._root, self._items, self._load, self._transform = root, items, load, transform

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        item = self._items[index]
        image = torch.from_numpy(self._load(self._root / item.path))
        return (image if self._transform is None else self._transform(image)), item.label


def training_batches(images: Images, *, batch_size: int, workers: int, seed: int) -> DataLoader[tuple[Tensor, int]]:
    """Returns shuffled batches; the order and every random change follow from `seed`."""
    return DataLoader(
        images,
        batch_size=batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=len(images) >= batch_size,
        generator=torch.Generator().manual_seed(seed),
        persistent_workers=workers > 0,
    )


def stacked(root: Path, items: Sequence[Item], *, load: LoadImage) -> NDArray[np.float32]:
    """Loads `items` into one array of shape (len(items), 3, height, width)."""
    return np.stack([load(root / item.path) for item in items])


def labels_of(items: Sequence[Item]) -> NDArray[np.int64]:
    """Returns the labels of `items`, of shape (len(items),)."""
    return np.array([item.label for item in items], dtype=np.int64)
