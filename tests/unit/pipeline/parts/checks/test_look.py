import hashlib
import struct
import zlib

import imagehash
import numpy as np
import pytest
from PIL import Image

from deploy.errors import ImageError
from deploy.preprocess import count_frames, decode_image, decode_mask
from pipeline.parts.checks.look import Seen, look_at_image, look_at_mask

NOISE = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)


def image(path):
    return look_at_image(path, decode=decode_image, count_frames=count_frames, broken=ImageError)


def mask(path):
    return look_at_mask(path, decode=decode_mask, broken=ImageError)


def test_an_image_is_described(tmp_path):
    Image.fromarray(NOISE).save(tmp_path / "a.png")
    seen = image(tmp_path / "a.png")
    assert seen.sha256 == hashlib.sha256((tmp_path / "a.png").read_bytes()).hexdigest()
    assert (seen.width, seen.height, seen.kind) == (60, 40, "")
    assert seen.phash == int(str(imagehash.phash(Image.fromarray(NOISE))), 16) != 0


def test_a_rotated_photograph_is_seen_upright(tmp_path):
    picture = Image.fromarray(NOISE)
    exif = picture.getexif()
    exif[0x0112] = 6
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    picture.rotate(-90, expand=True).save(tmp_path / "b.jpg", quality=95)
    rotated, plain = image(tmp_path / "a.jpg"), image(tmp_path / "b.jpg")
    assert (rotated.width, rotated.height) == (40, 60)
    assert (rotated.phash ^ plain.phash).bit_count() <= 4


def no_bytes(path):
    path.write_bytes(b"")


def no_image(path):
    path.write_bytes(b"<html>")


def truncated(path):
    Image.fromarray(NOISE).save(path, "JPEG")
    path.write_bytes(path.read_bytes()[:700])


def bomb(path):
    """A PNG of a few kilobytes that says it has 40000 x 40000 pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", 40000, 40000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(1 << 20))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


def floating(path):
    Image.fromarray(NOISE[..., 0].astype(np.float32)).save(path, "TIFF")


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_bytes, "the file is empty"),
        (no_image, "cannot be decoded (cannot identify image file"),
        (truncated, "cannot be decoded ("),
        (bomb, "cannot be decoded (Image size (1600000000 pixels) exceeds limit"),
        (floating, "floating-point pixels"),
    ],
)
def test_what_cannot_be_decoded_is_broken(tmp_path, spoil, reason):
    path = tmp_path / "a.png"
    spoil(path)
    seen = image(path)
    assert (seen.kind, seen.width, seen.phash) == ("broken", 0, 0)
    assert seen.reason.startswith(reason)
    assert "\n" not in seen.reason
    assert seen.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize(("suffix", "options"), [("gif", {}), ("png", {}), ("webp", {}), ("tif", {})])
def test_several_pictures_in_a_file_are_animated(tmp_path, suffix, options):
    first, second = Image.fromarray(NOISE), Image.fromarray(NOISE[::-1].copy())
    path = tmp_path / f"a.{suffix}"
    first.save(path, save_all=True, append_images=[second], **options)
    assert (image(path).kind, image(path).reason) == ("animated", "the file holds 2 pictures")
    first.save(path)
    assert image(path).kind == ""


def test_a_phones_second_view_is_no_animation(tmp_path):
    path = tmp_path / "a.jpg"
    Image.fromarray(NOISE).save(path, "MPO", save_all=True, append_images=[Image.fromarray(NOISE[::-1].copy())])
    assert image(path).kind == ""


def test_a_mask_is_counted(tmp_path):
    indices = np.array([[0, 0, 1], [2, 2, 255]], np.uint8)
    for mode in ("L", "P"):
        picture = Image.fromarray(indices)
        if mode == "P":
            picture = picture.copy()
            picture.putpalette([9, 9, 9] * 256)
        picture.save(tmp_path / f"{mode}.png")
        seen = mask(tmp_path / f"{mode}.png")
        assert (seen.width, seen.height, seen.kind) == (3, 2, "")
        assert seen.pixels == ((0, 2), (1, 1), (2, 2), (255, 1))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (no_bytes, "the file is empty"),
        (no_image, "cannot be decoded ("),
        (lambda path: Image.fromarray(NOISE).save(path), "mode 'RGB', one index of 8 bits per pixel expected"),
        (lambda path: Image.fromarray(np.zeros((2, 2), np.uint16)).save(path), "mode 'I;16', one index of 8 bits"),
    ],
    ids=["empty", "no image", "colours", "16 bits"],
)
def test_a_mask_that_holds_no_indices_is_broken(tmp_path, spoil, reason):
    spoil(tmp_path / "a.png")
    seen = mask(tmp_path / "a.png")
    assert seen.kind == "broken"
    assert seen.reason.startswith(reason)


def test_a_file_that_is_not_there_raises(tmp_path):
    with pytest.raises(FileNotFoundError):
        image(tmp_path / "none.png")
    assert Seen("ab") == Seen("ab")


@pytest.mark.parametrize("kept", [0.3, 0.5, 0.7, 0.9])
def test_a_truncated_animation_is_broken_or_animated(tmp_path, kept):
    path = tmp_path / "a.gif"
    frames = [Image.fromarray(np.roll(NOISE, shift, 0)) for shift in range(6)]
    frames[0].save(path, save_all=True, append_images=frames[1:])
    path.write_bytes(path.read_bytes()[: int(kept * path.stat().st_size)])
    assert image(path).kind in {"broken", "animated"}


def test_what_pillow_would_hand_to_another_program_is_broken(tmp_path):
    path = tmp_path / "a.jpg"
    path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
    assert image(path).reason == "cannot be decoded (cannot identify image file 'a.jpg')"
