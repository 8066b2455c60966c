"""Classify images with one engine: the smallest use of a bundle on the device."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from deploy.bundle import load_bundle
from deploy.device import fingerprint
from deploy.engine import load_engine, read_manifest
from deploy.errors import EngineError
from deploy.preprocess import load_image


@dataclass(frozen=True)
class Prediction:
    """The most likely label of one image, with its softmax probability in 0..1."""

    path: Path
    label: str
    probability: float


def predict(images: Sequence[Path], *, bundle: Path, engine: Path) -> Iterator[Prediction]:
    """Verify bundle and engine, then classify image after image.

    Args:
        images: image files.
        bundle: folder of the bundle the engine was built from.
        engine: folder of the engine.

    Yields:
        One prediction per image, in order.

    Raises:
        BundleError: the bundle is faulty.
        EngineError: the engine does not fit this device or was built from another model.
        ImageError: an image cannot be decoded.
    """
    model = load_bundle(bundle)
    manifest = read_manifest(engine)
    if manifest.onnx_sha256 != model.onnx_sha256:
        msg = (
            f"engine {engine}: built from ONNX {manifest.onnx_sha256[:12]}, the bundle {bundle} holds "
            f"{model.onnx_sha256[:12]}; name the bundle {manifest.bundle_variant!r}, or build the engine again"
        )
        raise EngineError(msg)
    run = load_engine(engine, device=fingerprint(manifest.target, manifest.runtime)).engine
    for path in images:
        logits = run(load_image(path, model.preprocess)[None])[0].astype(np.float64)
        odds = np.exp(logits - logits.max())
        best = int(odds.argmax())
        yield Prediction(path, model.labels[best], float(odds[best] / odds.sum()))
