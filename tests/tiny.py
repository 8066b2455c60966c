"""The smallest models and data that are still real: shared by the tests of host library and stages."""

from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from deploy.bundle import Preprocess
from deploy.errors import ImageError
from deploy.preprocess import count_frames, decode_image, decode_mask, load_image, load_mask
from pipeline.parts.checks.cache import Cache
from pipeline.parts.checks.survey import Survey
from pipeline.parts.index import Index, Load
from pipeline.parts.models import ModelSpec, build_model
from pipeline.parts.sources.folders import list_classes
from pipeline.parts.sources.listing import Listing, existing
from pipeline.parts.sources.masks import list_masks
from pipeline.steps.prepare.step import Decoders, Draw, prepare

ARCHITECTURE = "vit_tiny_patch16_224"
SIZE = 16
PREPROCESS = Preprocess(
    resize=SIZE,
    resize_mode="squash",
    crop=(SIZE, SIZE),
    interpolation="bilinear",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    color="RGB",
)
LOAD = Load.by(load_image, load_mask, preprocess=PREPROCESS)


def spec(*, width: int, depth: int, heads: int, weights: str = "random") -> ModelSpec:
    """A vision transformer for 16 x 16 pixels in patches of 8."""
    overrides = {"patch_size": 8, "embed_dim": width, "depth": depth, "num_heads": heads}
    return ModelSpec(ARCHITECTURE, weights, SIZE, overrides)


TEACHER = spec(width=24, depth=4, heads=3)
STUDENT = spec(width=16, depth=2, heads=2)


def model(which: ModelSpec, *, num_classes: int = 3, seed: int = 0) -> VisionTransformer:
    """Builds a model whose head is random too, so that logits differ between classes."""
    torch.manual_seed(seed)
    built = build_model(which, num_classes=num_classes, role="student")
    torch.nn.init.normal_(built.head.weight, std=0.5)
    return built


def write_images(folder: Path, *, classes: int = 3, each: int = 12, seed: int = 0) -> Path:
    """Writes `classes` folders of noisy 12 x 10 images that differ in brightness."""
    generator = np.random.default_rng(seed)
    for label in range(classes):
        (folder / f"class_{label}").mkdir(parents=True)
        for number in range(each):
            pixels = generator.integers(0, 60, (10, 12, 3)) + 90 * label
            Image.fromarray(pixels.astype(np.uint8)).save(folder / f"class_{label}" / f"{number}.png")
    return folder


POLICY = dict.fromkeys(("broken", "animated", "unpaired", "names", "copies", "near_copies"), "refuse")
DECODERS = Decoders(image=decode_image, count_frames=count_frames, mask=decode_mask, broken=ImageError)


def prepared(
    output: Path,
    path: Path,
    *,
    listing: Callable[[Path], Listing] = list_classes,
    source: str = "folder",
    near_similarity: float | None = None,
    cache: Path | None = None,
    workers: int = 1,
    ignore: int | None = None,
    per_class: int | None = None,
    seed: int = 0,
    split_seed: int = 0,
    **policy: str,
) -> Index:
    """Indexes the images at `path` into the new folder `output`."""
    output.mkdir(parents=True)
    with Cache(cache) as known:
        return prepare(
            output,
            listing(existing(path, source=source)),
            source=source,
            decoders=DECODERS,
            survey=Survey(known, workers=workers),
            policy=POLICY | policy,
            near_similarity=near_similarity,
            ignore=ignore,
            draws=Draw(
                validation_fraction=0.25,
                test_fraction=0.25,
                calibration_size=6,
                per_class=per_class,
                split_seed=split_seed,
                seed=seed,
            ),
        )


def stacked(logits: Iterable[np.ndarray]) -> np.ndarray:
    """The logits of all images as one array."""
    return np.stack(list(logits))


WIDE = replace(PREPROCESS, crop=(SIZE, 2 * SIZE))
LOAD_WIDE = Load.by(load_image, load_mask, preprocess=WIDE)
MASK_CLASSES = ("ground", "leaf", "spot")
NO_CLASS = 200  # the value that masks below have where nobody looked


def wide(which: ModelSpec, *, decoder: str = "linear") -> ModelSpec:
    """The same architecture for images twice as wide as high, with a class for each pixel."""
    return replace(which, image_size=WIDE.crop, decoder=decoder)


def write_masked(folder: Path, *, count: int = 24, seed: int = 0) -> Path:
    """Writes pairs of a noisy image and a mask, 24 x 12: brightness tells the classes, and the last one is rare."""
    generator = np.random.default_rng(seed)
    for name in ("images", "masks"):
        (folder / name).mkdir(parents=True)
    for number in range(count):
        mask = np.zeros((12, 24), np.uint8)
        edge = int(generator.integers(8, 16))
        mask[:, edge:] = 1
        mask[6:, edge + 2 : edge + 8] = 2
        pixels = generator.integers(0, 30, (12, 24, 3)) + 100 * mask[..., None]
        mask[:2, :3] = NO_CLASS
        Image.fromarray(pixels.astype(np.uint8)).save(folder / f"images/{number:02d}.png")
        Image.fromarray(mask).save(folder / f"masks/{number:02d}.png")
    (folder / "classes.txt").write_text("".join(f"{name}\n" for name in MASK_CLASSES))
    return folder


def prepared_masks(output: Path, folder: Path) -> Index:
    """Indexes pairs of image and mask."""
    listing = partial(list_masks, images="images", masks="masks", classes=None)
    return prepared(output, folder, listing=listing, source="masks", ignore=NO_CLASS, mask="refuse")
