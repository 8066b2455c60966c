"""Classify or segment images with one engine: the use of a bundle on the device."""

import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from deploy.bundle import Bundle
from deploy.errors import EngineError, ImageError, TargetError
from deploy.files import write_bytes
from deploy.preprocess import prepare_image, unfit_mask
from deploy.runtime import Engine
from deploy.sources import Camera, ImageFile, Picture


@dataclass(frozen=True)
class Prediction:
    """The most likely label of one picture, with its softmax probability in 0..1."""

    name: str
    label: str
    probability: float

    def as_text(self) -> str:
        """Return the line for people and spreadsheets."""
        return f"{self.name}\t{self.label}\t{self.probability:.4f}"

    def as_dict(self) -> dict[str, Any]:
        """Return the form for programs."""
        return {"name": self.name, "label": self.label, "probability": self.probability}


@dataclass(frozen=True)
class Segments:
    """The most likely class of each pixel of one picture.

    Attributes:
        name: of the picture.
        mask: uint8 of the upright picture's (height, width): positions in the bundle's labels, 255 where a crop left
            the picture out.
        shares: of the pixels that the model saw, in 0..1, by label.
    """

    name: str
    mask: NDArray[np.uint8]
    shares: Mapping[str, float]

    def as_text(self) -> str:
        """Return the line for people and spreadsheets."""
        return "\t".join((self.name, *(f"{label} {share:.4f}" for label, share in self.shares.items())))

    def as_dict(self) -> dict[str, Any]:
        """Return the form for programs."""
        return {"name": self.name, "shares": dict(self.shares)}


def run(
    sources: Sequence[ImageFile | Camera],
    model: Bundle,
    engine: Engine,
    *,
    masks: Path | None,
    on_answer: Callable[[Prediction | Segments], None],
    on_broken: Callable[[str], None],
) -> None:
    """Give the engine every picture, in order; one that cannot be read does not keep the others from it.

    Args:
        sources: where the pictures come from, one source after another.
        model: bundle of the engine.
        engine: the engine.
        masks: folder for the masks, of models that make some.
        on_answer: called with each answer.
        on_broken: called with one line for each source that cannot be read, or not to its end; not where it is alone.

    Raises:
        TargetError: the model makes no masks, or two would be one file, or one would replace an image.
        ImageError: at the end, where a source could not be read.
        EngineError: the engine failed.
        RuntimeMissingError: a camera is asked for and there is no OpenCV.
    """
    if masks is not None:
        _check_masks(sources, masks, model)
    broken = 0
    for source in sources:
        error = _run_source(source, lambda picture: on_answer(_answer(picture, model, engine, masks=masks)))
        if error is not None:
            if len(sources) == 1:
                raise error
            on_broken(str(error))
            broken += 1
    if broken:
        msg = f"{broken} of {len(sources)} images or cameras could not be read, each named above; the others were"
        raise ImageError(msg)


def _run_source(source: ImageFile | Camera, on_picture: Callable[[Picture], None]) -> ImageError | None:
    """Hand on every picture of a source, and return why it could not be read, or not to its end."""
    try:
        with contextlib.closing(source.pictures()) as pictures:
            for picture in pictures:
                on_picture(picture)
    except ImageError as error:
        return error
    return None


def _answer(picture: Picture, model: Bundle, engine: Engine, *, masks: Path | None) -> Prediction | Segments:
    logits = engine.run(prepare_image(picture.image, model.preprocess)[None])[0]
    if not np.isfinite(logits).all():
        msg = f"{picture.name}: the engine's answer is not finite; test it with `python -m deploy selftest`"
        raise EngineError(msg)
    if model.task == "classification":
        return classify(picture.name, logits, model)
    segments = segment(picture, logits, model)
    if masks is not None:
        _write_mask(segments.mask, masks / picture.mask)
    return segments


def classify(name: str, logits: NDArray[np.float32], model: Bundle) -> Prediction:
    """Name the most likely label, of logits of shape (classes,)."""
    exact = logits.astype(np.float64)
    odds = np.exp(exact - exact.max())
    best = int(odds.argmax())
    return Prediction(name, model.labels[best], float(odds[best] / odds.sum()))


def segment(picture: Picture, logits: NDArray[np.float32], model: Bundle) -> Segments:
    """Name the most likely label of each pixel, of logits of shape (classes, H, W)."""
    mask = logits.argmax(axis=0).astype(np.uint8)
    counts = np.bincount(mask.ravel(), minlength=len(model.labels))
    shares = dict(zip(model.labels, (counts / mask.size).tolist(), strict=True))
    return Segments(picture.name, unfit_mask(mask, picture.image.size, model.preprocess), shares)


def _check_masks(sources: Sequence[ImageFile | Camera], folder: Path, model: Bundle) -> None:
    """Refuse masks that would replace one another, or an image."""
    if model.task == "classification":
        msg = f"`--masks` {str(folder)!r}: the bundle {model.folder} gives images a class; leave it out"
        raise TargetError(msg)
    images = [source.path for source in sources if isinstance(source, ImageFile)]
    known = {_identity(image) for image in images} - {None}
    files: dict[Path, str] = {}
    for source in sources:
        file = folder / source.mask
        name = str(source.path) if isinstance(source, ImageFile) else source.name
        inside = file.rglob("*.png") if isinstance(source, Camera) else [file]
        if any(_identity(each) in known for each in inside):
            msg = f"`--masks` {str(folder)!r}: the mask of {name} would replace the image {file}; name another one"
            raise TargetError(msg)
        if file in files:
            msg = f"{files[file]} and {name} would both leave {file}; run them one after the other"
            raise TargetError(msg)
        files[file] = name
    folder.mkdir(parents=True, exist_ok=True)


def _identity(path: Path) -> tuple[int, int] | None:
    """Tell files apart, whatever names and links lead to them; None where there is none."""
    try:
        found = os.stat(path)  # noqa: PTH116 - of a path that need not be there
    except OSError:
        return None
    return found.st_dev, found.st_ino


def _write_mask(mask: NDArray[np.uint8], file: Path) -> None:
    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, format="PNG")
    write_bytes(file, stream.getvalue())
