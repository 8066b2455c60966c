"""The smallest models and data that are still real: shared by the tests of host library and stages."""

from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.models import VisionTransformer

from deploy.bundle import Preprocess
from deploy.errors import ImageError
from deploy.preprocess import load_image
from pipeline.parts.index import Index
from pipeline.parts.models import ModelSpec, build_model
from pipeline.steps.prepare import prepare

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


def prepared(
    output: Path,
    path: Path,
    *,
    source: str = "folder",
    per_class: int | None = None,
    copies: str = "refuse",
    seed: int = 0,
) -> Index:
    """Indexes the images at `path` into the new folder `output`."""
    output.mkdir(parents=True)
    return prepare(
        output,
        source=source,
        path=path,
        load=LOAD,
        broken=ImageError,
        validation_fraction=0.25,
        test_fraction=0.25,
        calibration_size=6,
        per_class=per_class,
        copies=copies,
        split_seed=0,
        seed=seed,
    )
