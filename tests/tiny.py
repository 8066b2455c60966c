"""The smallest models and data that are still real: shared by the tests of host library and stages."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from deploy.bundle import Preprocess
from deploy.errors import ImageError
from deploy.preprocess import count_frames, decode_image, decode_mask, load_image
from pipeline.parts.checks.cache import Cache
from pipeline.parts.checks.survey import Survey
from pipeline.parts.index import Index
from pipeline.parts.models import ModelSpec, build_model
from pipeline.parts.sources.folders import list_classes
from pipeline.parts.sources.listing import Listing, existing
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
LOAD = partial(load_image, preprocess=PREPROCESS)


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
