"""Classify or segment images with one engine: the smallest use of a bundle on the device."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, load_bundle
from deploy.device import fingerprint
from deploy.engine import load_engine, read_manifest
from deploy.errors import EngineError
from deploy.preprocess import decode_image, load_image, prepare_image, unfit_mask
from deploy.runtime import Engine


@dataclass(frozen=True)
class Prediction:
    """The most likely label of one image, with its softmax probability in 0..1."""

    path: Path
    label: str
    probability: float


@dataclass(frozen=True)
class Segments:
    """The most likely class of each pixel of one image.

    Attributes:
        path: the image.
        mask: uint8 of the upright image's (height, width): positions in the bundle's labels, 255 where a crop left the
            image out.
        shares: of the pixels that the model saw, in 0..1, by label.
    """

    path: Path
    mask: NDArray[np.uint8]
    shares: Mapping[str, float]


def open_engine(bundle: Path, engine: Path) -> tuple[Bundle, Engine]:
    """Verify a bundle and an engine that was built from it, and load both.

    Raises:
        BundleError: the bundle is faulty.
        EngineError: the engine does not fit this device or was built from another model.
    """
    model = load_bundle(bundle)
    manifest = read_manifest(engine)
    if manifest.onnx_sha256 != model.onnx_sha256:
        msg = (
            f"engine {engine}: built from ONNX {manifest.onnx_sha256[:12]}, the bundle {bundle} holds "
            f"{model.onnx_sha256[:12]}; name the bundle {manifest.bundle_variant!r}, or build the engine again"
        )
        raise EngineError(msg)
    return model, load_engine(engine, device=fingerprint(manifest.as_target())).engine


def classify(images: Sequence[Path], model: Bundle, engine: Engine) -> Iterator[Prediction]:
    """Yield one prediction per image, in order.

    Raises:
        ImageError: an image cannot be decoded.
    """
    for path in images:
        logits = engine.run(load_image(path, model.preprocess)[None])[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        best = int(odds.argmax())
        yield Prediction(path, model.labels[best], float(odds[best] / odds.sum()))


def segment(images: Sequence[Path], model: Bundle, engine: Engine) -> Iterator[Segments]:
    """Yield the mask of each image, in order.

    Raises:
        ImageError: an image cannot be decoded.
    """
    for path in images:
        image = decode_image(path)
        mask = engine.run(prepare_image(image, model.preprocess)[None])[0].argmax(axis=0).astype(np.uint8)
        counts = np.bincount(mask.ravel(), minlength=len(model.labels))
        shares = dict(zip(model.labels, (counts / mask.size).tolist(), strict=True))
        yield Segments(path, unfit_mask(mask, image.size, model.preprocess), shares)
