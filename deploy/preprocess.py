"""From an image file to a model's input, by the recipe that travels with the model.

Host and device share these pixels: the host hands this very code to training's evaluation, calibration and parity.
"""

import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from deploy.bundle import Preprocess
from deploy.errors import ImageError

ORIENTATION = 0x0112  # the EXIF tag
OUTSIDE = 255  # in a mask: not seen by the model
# Pillow would try all it knows, whatever a file's name; its EPS starts another program.
FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF", "WEBP")  # JPEG reads MPO, as phones write it, too
ANIMATED = {"GIF", "PNG", "TIFF", "WEBP"}

# What Pillow's decoders raise for files that are cut short or are not images; there is no common base class.
DECODE_ERRORS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    IndexError,
    KeyError,
    TypeError,
    OverflowError,
    RuntimeError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def load_image(path: Path, preprocess: Preprocess) -> NDArray[np.float32]:
    """Decode and prepare one image file.

    Returns:
        float32 of shape (3, H, W).

    Raises:
        ImageError: the file is missing, is no image, is truncated, or has a mode without a defined conversion.
    """
    return normalised(fit_image(path, preprocess), preprocess)


def fit_image(path: Path, preprocess: Preprocess) -> NDArray[np.uint8]:
    """Decode one image file, resize and crop it: `load_image` without its last step.

    Returns:
        uint8 of shape (H, W, 3).

    Raises:
        ImageError: as `load_image`.
    """
    return np.asarray(_fit(decode_image(path), preprocess))


def decode_image(path: Path) -> Image.Image:
    """Decode one image file, upright and in RGB.

    Raises:
        ImageError: as `load_image`.
    """
    with _opened(path, "image") as image:
        image.load()
        return upright(image)


def count_frames(path: Path) -> int:
    """Return how many pictures follow one another in an image file.

    An MPO's, as phones write them, are other views of one picture, and count as one.

    Raises:
        ImageError: as `load_image`.
    """
    with _opened(path, "image") as image:
        return getattr(image, "n_frames", 1) if image.format in ANIMATED else 1


@contextmanager
def _opened(path: Path, what: str) -> Iterator[Image.Image]:
    """Open a file, and say what is wrong with it in one way."""
    try:
        with warnings.catch_warnings():
            # Pillow warns of damaged metadata; what matters here is whether there are pixels, and that raises.
            warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\.")
            with Image.open(path, formats=FORMATS) as image:
                yield image
    except ImageError as error:
        msg = f"{what} {path}: {error}"
        raise ImageError(msg) from error
    except FileNotFoundError:
        msg = f"{what} {path}: no such file; restore it, or run `dvc repro prepare` to index the folder again"
        raise ImageError(msg) from None
    except DECODE_ERRORS as cause:
        reason = (str(cause).splitlines() or [""])[0] or type(cause).__name__
        msg = f"{what} {path}: cannot be decoded ({reason}); replace or remove it, then run `dvc repro prepare`"
        raise ImageError(msg) from cause


def load_mask(path: Path, preprocess: Preprocess) -> NDArray[np.int64]:
    """Decode a mask and give it the shape of its image's input, without new values.

    Returns:
        int64 of shape (H, W): a class per pixel, or the value that is ignored.

    Raises:
        ImageError: as `decode_mask`.
    """
    mask = _fit(Image.fromarray(decode_mask(path)), replace(preprocess, interpolation="nearest"))
    return np.asarray(mask).astype(np.int64)


def unfit_mask(mask: NDArray[np.uint8], size: tuple[int, int], preprocess: Preprocess) -> NDArray[np.uint8]:
    """Undo what `fit_image` did to an image's shape, for a mask that a model made of it.

    Args:
        mask: of shape (H, W).
        size: width and height of the upright image in pixels.
        preprocess: as the image was fitted.

    Returns:
        uint8 of shape (height, width), `OUTSIDE` where the crop left the image out.
    """
    whole = Image.fromarray(mask)
    if preprocess.resize_mode == "shortest":
        scaled, corner = _scaled(size, preprocess)
        whole = Image.new("L", scaled, OUTSIDE)
        whole.paste(Image.fromarray(mask), corner)
    return np.asarray(whole.resize(size, Image.Resampling.NEAREST))


def decode_mask(path: Path) -> NDArray[np.uint8]:
    """Decode a mask of class indices: grey or palette, 8 bits; of a palette the indices count, not the colours.

    Returns:
        uint8 of shape (height, width).

    Raises:
        ImageError: the file cannot be decoded, or holds colours or more than 8 bits.
    """
    with _opened(path, "mask") as image:
        image.load()
        if image.mode not in {"L", "P", "1"}:
            msg = f"mode {image.mode!r}, one index of 8 bits per pixel expected (mode 'L' or 'P')"
            raise ImageError(msg)
        return np.asarray(image).astype(np.uint8)


def prepare_image(image: Image.Image, preprocess: Preprocess) -> NDArray[np.float32]:
    """Turn a decoded image into a model's input.

    EXIF orientation, conversion to RGB, resize, centre crop, then (x / 255 - mean) / std.

    Returns:
        float32 of shape (3, H, W), contiguous.

    Raises:
        ImageError: the image's mode has no defined conversion to 8 bits.
    """
    return normalised(np.asarray(_fit(upright(image), preprocess)), preprocess)


def upright(image: Image.Image) -> Image.Image:
    """Apply the EXIF orientation and convert to RGB.

    Raises:
        ImageError: as `prepare_image`.
    """
    if image.getexif().get(ORIENTATION, 1) != 1:
        image = ImageOps.exif_transpose(image)
    return _to_rgb(image)


def normalised(pixels: NDArray[np.uint8], preprocess: Preprocess) -> NDArray[np.float32]:
    """Return (x / 255 - mean) / std of pixels of shape (H, W, 3), as float32 of shape (3, H, W), contiguous."""
    scaled: NDArray[np.float32] = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    scaled /= np.float32(255)
    scaled -= np.asarray(preprocess.mean, np.float32)[:, None, None]
    scaled /= np.asarray(preprocess.std, np.float32)[:, None, None]
    return scaled


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert any mode to RGB without the silent clipping that Pillow does to 16-bit grey."""
    match image.mode:
        case "RGB":
            return image
        case "I" | "I;16" | "I;16L" | "I;16B" | "I;16N":
            return _scale_16_bit(image).convert("RGB")
        case "F":
            msg = "floating-point pixels (mode 'F') have no defined range; save it with 8 or 16 bits"
            raise ImageError(msg)
        case "P" | "PA":
            # A palette whose transparency is given in bytes makes Pillow warn unless it goes through RGBA.
            return image.convert("RGBA").convert("RGB")
        case _:
            return image.convert("RGB")


def _scale_16_bit(image: Image.Image) -> Image.Image:
    """Map grey 0..65535 to 0..255 (divided by 257, rounded); mode "I" is what some releases give a 16-bit PNG."""
    grey = np.asarray(image).astype(np.int64)
    if grey.size and (grey.min() < 0 or grey.max() > 65535):
        msg = f"mode {image.mode!r} with values {grey.min()}..{grey.max()}, 0..65535 expected; save it with 16 bits"
        raise ImageError(msg)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _fit(image: Image.Image, preprocess: Preprocess) -> Image.Image:
    """Resize and crop to (height, width) = `preprocess.crop`, rounding as torchvision does."""
    height, width = preprocess.crop
    resampling = RESAMPLING[preprocess.interpolation]
    if preprocess.resize_mode == "squash":
        return image if image.size == (width, height) else image.resize((width, height), resampling)
    size, (left, top) = _scaled(image.size, preprocess)
    if image.size != size:
        image = image.resize(size, resampling)
    return image.crop((left, top, left + width, top + height))


def _scaled(size: tuple[int, int], preprocess: Preprocess) -> tuple[tuple[int, int], tuple[int, int]]:
    """Return width and height after the resize of "shortest", and the left upper corner of the crop."""
    height, width = preprocess.crop
    shorter = min(size)
    wide, high = (preprocess.resize if side == shorter else int(preprocess.resize * side / shorter) for side in size)
    return (wide, high), (round((wide - width) / 2), round((high - height) / 2))
