"""Images as tensors: preprocessed exactly as on the device, changed at random only for training."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from timm.data.mixup import Mixup
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler
from torchvision import tv_tensors
from torchvision.transforms import v2

from pipeline.base.errors import ParamsError
from pipeline.base.seeding import derived
from pipeline.parts.index import IGNORED, Items, Load, mask_of
from pipeline.parts.pixels import KeptPixels


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
        """Returns the transform of one image tensor, or of an image and its mask.

        What comes from outside the image is black, and in a mask of no class.

        Args:
            fill: black after normalisation, per channel.
        """
        steps: list[v2.Transform] = [
            v2.RandomAffine(
                self.degrees,
                translate=(self.translate, self.translate),
                scale=self.scale,
                interpolation=v2.InterpolationMode.BILINEAR,
                fill={tv_tensors.Mask: IGNORED, "others": list(fill)},
            )
        ]
        if self.flip:
            steps.append(v2.RandomHorizontalFlip())
        return v2.Compose(steps)


@dataclass(frozen=True, kw_only=True)
class Mixing:
    """Changes to a whole batch of images and labels; all zero leaves it alone.

    Attributes:
        mixup: alpha of Mixup (Zhang et al., 2018): images and labels of two samples are blended.
        cutmix: alpha of CutMix (Yun et al., 2019): a rectangle of one image covers another.
        label_smoothing: share of the target that goes to all classes alike.
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def transform(self, classes: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None:
        """Returns timm's Mixup, which makes targets of shape (batch, classes); None where nothing is to be done."""
        if not (self.mixup or self.cutmix or self.label_smoothing):
            return None
        mixup: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = Mixup(
            mixup_alpha=self.mixup,
            cutmix_alpha=self.cutmix,
            prob=1.0 if self.mixup or self.cutmix else 0.0,
            label_smoothing=self.label_smoothing,
            num_classes=classes,
        )
        return mixup


Key = tuple[int, int]
"""Epoch and index of an image: what is drawn for it follows from both."""


class Images(Dataset[tuple[Tensor, int | Tensor]]):
    """The images of a split and their labels, or masks of shape (height, width).

    Args:
        root: folder the items' paths start from.
        items: what to load; with masks, where they have some.
        load: decodes and preprocesses one file.
        kept: does the same with an image, but keeps what it decoded; None decodes every time.
        ignore: value of a mask's pixels that have no class.
        transform: random changes, for training.
        seed: of the random changes.
    """

    def __init__(
        self,
        root: Path,
        items: Items,
        *,
        load: Load,
        kept: KeptPixels | None = None,
        ignore: int | None = None,
        transform: v2.Transform | None = None,
        seed: int = 0,
    ) -> None:
        self._root, self._items, self._load, self._kept = root, items, load, kept
        self._ignore, self._transform, self._seed = ignore, transform, seed

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, key: Key) -> tuple[Tensor, int | Tensor]:
        epoch, index = key
        item = self._items[index]
        path = self._root / item.path
        image = torch.from_numpy(self._load.image(path) if self._kept is None else self._kept.load(path, item.sha256))
        mask = None
        if self._items.masked:
            mask = torch.from_numpy(mask_of(item, self._root, load=self._load.mask, ignore=self._ignore))
        if self._transform is not None:
            with torch.random.fork_rng(devices=[]):
                # torch.manual_seed would seed every GPU as well, and took 4 % of a small training's time.
                torch.default_generator.manual_seed(derived(self._seed, epoch, index))
                if mask is None:
                    image = self._transform(image)
                else:
                    image, mask = self._transform(tv_tensors.Image(image), tv_tensors.Mask(mask))
        if mask is None:
            return image, item.label
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)


class _Order(Sampler[list[Key]]):
    """The keys of one process's micro-batches from step `start` to before `stop`."""

    def __init__(self, stream: "ImageStream", start: int, stop: int) -> None:
        self._stream, self._steps = stream, range(start, stop)

    def __iter__(self) -> Iterator[list[Key]]:
        stream = self._stream
        for step in self._steps:
            epoch, place = divmod(step, stream.steps)
            batch = stream.order(epoch)[place * stream.images : (place + 1) * stream.images]
            mine = batch[stream.process * stream.share : (stream.process + 1) * stream.share]
            for first in range(0, stream.share, stream.micro_batch):
                yield [(epoch, index) for index in mine[first : first + stream.micro_batch]]


class ImageStream:
    """Shuffled training images, as micro-batches of one process, from any step on.

    Order and random changes follow from the seed, the epoch and the image alone.

    Args:
        images: training images.
        batch_size: images per step over all processes; fewer where there are not so many images.
        micro_batch: images per forward pass of one process; None takes all of its share at once.
        workers: processes that load images; 0 loads them in this one.
        seed: of the order.
        process: index of this process.
        processes: number of processes.

    Raises:
        ParamsError: a batch cannot be divided evenly.
    """

    def __init__(
        self,
        images: Images,
        *,
        batch_size: int,
        micro_batch: int | None = None,
        workers: int = 0,
        seed: int,
        process: int = 0,
        processes: int = 1,
    ) -> None:
        count = len(images)
        self.images = batch_size if count >= batch_size else count - count % processes
        self.share = self.images // processes
        self.micro_batch = min(micro_batch or self.share, self.share)
        if not self.images or self.images % processes or self.share % self.micro_batch:
            msg = (
                f"{self.images} images per step do not divide evenly by {processes} processes and micro-batches of "
                f"{self.micro_batch}; change `distill.batch_size`, `distill.processes` or `distill.micro_batch`"
            )
            raise ParamsError(msg)
        self.steps = count // self.images
        self.accumulation = self.share // self.micro_batch
        self.process = process
        self._source, self._workers, self._seed = images, workers, seed

    @lru_cache(maxsize=2)  # noqa: B019 - a stream lives as long as its run
    def order(self, epoch: int) -> list[int]:
        """Returns the order of all images in an epoch."""
        generator = torch.Generator().manual_seed(derived(self._seed, "order", epoch))
        shuffled: list[int] = torch.randperm(len(self._source), generator=generator).tolist()
        return shuffled

    def batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the micro-batches of steps `start` to `stop` - 1: images of shape (n, 3, h, w), labels or masks."""
        loader = DataLoader(
            self._source,
            batch_sampler=_Order(self, start, stop),
            num_workers=self._workers,
            generator=torch.Generator().manual_seed(self._seed),
            pin_memory=torch.cuda.is_available(),
        )
        yield from loader


def evaluation_batches(
    images: Images, places: Sequence[int], *, batch_size: int, workers: int = 0
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yields the images at some places with their labels or masks, in that order."""
    mine = [(0, index) for index in places]
    chunks = [mine[first : first + batch_size] for first in range(0, len(mine), batch_size)]
    yield from DataLoader(images, batch_sampler=chunks, num_workers=workers, generator=torch.Generator())
