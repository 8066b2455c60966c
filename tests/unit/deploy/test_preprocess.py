import io

import numpy as np
import pytest
from PIL import Image

from deploy.bundle import Preprocess
from deploy.errors import ImageError
from deploy.preprocess import load_image, prepare_image

MEAN, STD = (0.5, 0.4, 0.3), (0.25, 0.2, 0.3)
RNG = np.random.default_rng(0)
COLOURS = RNG.integers(0, 256, (12, 10, 3), dtype=np.uint8)


def recipe(**changes: object) -> Preprocess:
    values = {"resize": 10, "resize_mode": "squash", "crop": (12, 10), "interpolation": "bilinear"}
    return Preprocess(**{**values, "mean": MEAN, "std": STD, "color": "RGB", **changes})


def expected(rgb: np.ndarray) -> np.ndarray:
    return ((rgb.astype(np.float64) / 255 - MEAN) / STD).transpose(2, 0, 1)


def close(actual: np.ndarray, rgb: np.ndarray) -> None:
    assert actual.dtype == np.float32
    assert actual.flags.c_contiguous
    np.testing.assert_allclose(actual, expected(rgb), atol=2e-6)


def test_rgb_is_normalised_per_channel():
    close(prepare_image(Image.fromarray(COLOURS), recipe()), COLOURS)


@pytest.mark.parametrize("mode", ["L", "LA", "1", "RGBA", "CMYK", "YCbCr", "P", "HSV", "RGBX"])
def test_mode_is_converted_as_pillow_does(mode):
    image = Image.fromarray(COLOURS).convert(mode)
    close(prepare_image(image, recipe()), np.asarray(image.convert("RGB")))


def test_grey_has_three_equal_channels():
    grey = COLOURS[..., 0]
    close(prepare_image(Image.fromarray(grey), recipe()), np.repeat(grey[..., None], 3, axis=2))


def test_transparency_keeps_the_colours_below():
    image = Image.fromarray(np.dstack([COLOURS, np.zeros((12, 10), np.uint8)]))
    assert image.mode == "RGBA"
    close(prepare_image(image, recipe()), COLOURS)


@pytest.mark.parametrize("transparency", [0, bytes(range(256))])
def test_palette_with_transparency_from_a_file_does_not_warn(tmp_path, transparency):
    image = Image.fromarray(COLOURS).quantize(256)
    image.save(tmp_path / "p.png", transparency=transparency)
    with Image.open(tmp_path / "p.png") as opened:
        assert opened.mode == "P"
        assert "transparency" in opened.info
    close(load_image(tmp_path / "p.png", recipe()), np.asarray(image.convert("RGB")))


GREY16 = np.linspace(0, 65535, 120).astype(np.uint16).reshape(12, 10)


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_16_bit_file_is_scaled_not_clipped(tmp_path, suffix):
    path = tmp_path / f"grey.{suffix}"
    Image.fromarray(GREY16).save(path)
    scaled = np.round(GREY16 / 257).astype(np.uint8)
    assert scaled.min() == 0
    assert scaled.max() == 255
    close(load_image(path, recipe()), np.repeat(scaled[..., None], 3, axis=2))


@pytest.mark.parametrize("mode", ["I;16", "I;16B", "I"])
def test_16_bit_modes_in_memory(mode):
    kinds = {"I;16": "<u2", "I;16B": ">u2", "I": "<i4"}
    image = Image.frombytes(mode, (10, 12), GREY16.astype(kinds[mode]).tobytes())
    scaled = np.round(GREY16 / 257).astype(np.uint8)
    close(prepare_image(image, recipe()), np.repeat(scaled[..., None], 3, axis=2))


@pytest.mark.parametrize("value", [-1, 65536])
def test_32_bit_values_beyond_16_bits_are_refused(value):
    image = Image.fromarray(np.full((12, 10), value, np.int32))
    with pytest.raises(ImageError, match=r"0\.\.65535 expected"):
        prepare_image(image, recipe())


def test_floating_point_is_refused_with_its_file(tmp_path):
    Image.fromarray(np.zeros((12, 10), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(ImageError, match=r"f\.tif: floating-point pixels"):
        load_image(tmp_path / "f.tif", recipe())


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(tmp_path, orientation):
    undo = {
        1: lambda a: a,
        2: np.fliplr,
        3: lambda a: np.rot90(a, 2),
        4: np.flipud,
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: np.rot90(a, 2).transpose(1, 0, 2),
        8: np.rot90,
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(tmp_path / "o.png", exif=exif)
    upright = undo(COLOURS)
    close(load_image(tmp_path / "o.png", recipe(crop=upright.shape[:2])), upright)


def test_crop_is_height_then_width():
    assert prepare_image(Image.new("RGB", (40, 40)), recipe(crop=(6, 9))).shape == (3, 6, 9)


@pytest.mark.parametrize("size", [(40, 20), (20, 40), (20, 20), (33, 21), (7, 5)])
def test_shortest_keeps_ratio_and_crops_the_centre(size):
    image = Image.fromarray(RNG.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))
    result = prepare_image(image, recipe(resize=10, resize_mode="shortest", crop=(8, 10)))
    scale = 10 / min(size)
    whole = image.resize((max(int(size[0] * scale), 10), max(int(size[1] * scale), 10)), Image.Resampling.BILINEAR)
    left, top = round((whole.width - 10) / 2), round((whole.height - 8) / 2)
    close(result, np.asarray(whole)[top : top + 8, left : left + 10])


@pytest.mark.parametrize("name", ["nearest", "bilinear", "bicubic"])
def test_interpolation_is_pillows(name):
    image = Image.fromarray(COLOURS)
    resized = image.resize((5, 6), Image.Resampling[name.upper()])
    close(prepare_image(image, recipe(crop=(6, 5), interpolation=name)), np.asarray(resized))


def test_the_callers_image_is_not_changed():
    image = Image.fromarray(COLOURS)
    prepare_image(image, recipe(crop=(4, 4)))
    np.testing.assert_array_equal(np.asarray(image), COLOURS)


def encoded(kind: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(RNG.integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(stream, kind)
    return stream.getvalue()


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("keep", [0.5, 0.01])
def test_truncated_file_is_named_with_a_reason(tmp_path, kind, keep):
    content = encoded(kind)
    path = tmp_path / f"cut.{kind.lower()}"
    path.write_bytes(content[: int(len(content) * keep)])
    with pytest.raises(ImageError, match=rf"cut\.{kind.lower()}: cannot be decoded \(.+\)") as caught:
        load_image(path, recipe())
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("content", [b"", b"not an image", b"\x89PNG\r\n\x1a\n" + b"\0" * 64])
def test_what_is_no_image(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path / "x.png", recipe())


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(ImageError, match=r"none\.png: no such file"):
        load_image(tmp_path / "none.png", recipe())
    with pytest.raises(ImageError, match="cannot be decoded"):
        load_image(tmp_path, recipe())
