"""One look at a file: what must be known of an image or a mask before anything is trained on it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import imagehash
import numpy as np
from numpy.typing import NDArray
from PIL import Image

DecodeImage = Callable[[Path], Image.Image]
"""Gives an image as the device will see it: upright, in RGB."""
DecodeMask = Callable[[Path], NDArray[np.uint8]]
"""Gives a mask's class indices, of shape (height, width)."""


@dataclass(frozen=True, slots=True)
class Seen:
    """What a look at a file found.

    Attributes:
        sha256: of its bytes.
        width: in pixels, upright.
        height: the same.
        phash: perceptual hash of an image (imagehash.phash, 64 bits); 0 of a mask.
        pixels: (value, number of pixels) of a mask; empty of an image.
        kind: of what is wrong: "broken", "animated"; empty where nothing is.
        reason: in words.
    """

    sha256: str
    width: int = 0
    height: int = 0
    phash: int = 0
    pixels: tuple[tuple[int, int], ...] = ()
    kind: str = ""
    reason: str = ""


def look_at_image(
    path: Path, *, decode: DecodeImage, count_frames: Callable[[Path], int], broken: type[Exception]
) -> Seen:
    """Reads and decodes an image.

    Args:
        path: of the file.
        decode: gives the image.
        count_frames: gives the number of pictures in the file.
        broken: what both raise for a file that is no image.

    Raises:
        OSError: the file cannot be read.
    """
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if not content:
        return Seen(sha256, kind="broken", reason="the file is empty")
    try:
        image, frames = decode(path), count_frames(path)
    except broken as error:
        return Seen(sha256, kind="broken", reason=_said(error, path))
    width, height = image.size
    kind, reason = ("animated", f"the file holds {frames} pictures") if frames > 1 else ("", "")
    return Seen(sha256, width, height, int(str(imagehash.phash(image)), 16), (), kind, reason)


def look_at_mask(path: Path, *, decode: DecodeMask, broken: type[Exception]) -> Seen:
    """Reads a mask and counts its values; otherwise as `look_at_image`."""
    content = path.read_bytes()
    sha256 = hashlib.sha256(content).hexdigest()
    if not content:
        return Seen(sha256, kind="broken", reason="the file is empty")
    try:
        indices = decode(path)
    except broken as error:
        return Seen(sha256, kind="broken", reason=_said(error, path))
    values, counts = np.unique(indices, return_counts=True)
    height, width = indices.shape
    return Seen(sha256, width, height, pixels=tuple(zip(values.tolist(), counts.tolist(), strict=True)))


def _said(error: Exception, path: Path) -> str:
    """The words of an error without the path and the remedy, which stand beside them."""
    words = " ".join(str(error).split()).removeprefix(f"image {path}: ").removeprefix(f"mask {path}: ")
    # A path of a temporary folder would make two runs write different reports.
    return words.rsplit("; ", 1)[0].replace(str(path), path.name)
