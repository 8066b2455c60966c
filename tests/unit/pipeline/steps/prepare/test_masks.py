import json
import shutil
from functools import partial

import numpy as np
import pytest
from PIL import Image

from deploy.files import sha256_file
from pipeline.base.errors import DataError
from pipeline.parts.index import SPLITS, read_index
from pipeline.parts.sources.masks import list_masks
from tests import tiny
from tests.unit.pipeline.steps.prepare.reading import scene


@pytest.fixture
def masked(tmp_path):
    """Images with masks of three classes, of which the last fills few pixels, and pixels of no class (255)."""
    for name in ("images", "masks"):
        (tmp_path / "pairs" / name).mkdir(parents=True)
    for number in range(12):
        scene(number).save(tmp_path / f"pairs/images/{number:02d}.jpg")
        mask = np.zeros((48, 48), np.uint8)
        mask[:, 24:] = 1
        mask[:4] = 255
        if number % 2:
            mask[40:, 40:] = 2
        Image.fromarray(mask).save(tmp_path / f"pairs/masks/{number:02d}.png")
    (tmp_path / "pairs/classes.txt").write_text("earth\nleaf\nrust\n")
    return tmp_path / "pairs"


def with_masks(output, folder, **options):
    listing = partial(list_masks, images="images", masks="masks", classes=None)
    return tiny.prepared(output, folder, listing=listing, source="masks", ignore=255, **({"mask": "refuse"} | options))


def test_masks_are_paired_counted_and_split_by_their_rarest_class(masked, output):
    index = with_masks(output, masked)
    assert index.labels == ("earth", "leaf", "rust")
    items = [item for name in SPLITS for item in index.parts[name]]
    assert sorted((item.path, item.mask) for item in items) == [
        (f"images/{number:02d}.jpg", f"masks/{number:02d}.png") for number in range(12)
    ]
    assert all((item.label == 2) == (int(item.path[7:9]) % 2 == 1) for item in items)
    assert all(sha256_file(masked / item.mask) == item.mask_sha256 for item in items)
    assert all(2 in index.parts[name].labels for name in SPLITS)
    # Of 44 x 48 pixels with a class, half are earth; in every other mask rust takes 64 of the leaf's.
    shares = json.loads((output / "report.json").read_text())["pixels_percent"]
    assert shares == pytest.approx({"earth": 50, "leaf": 50 - 100 / 66, "rust": 100 / 66}, abs=1e-3)
    assert read_index(output)[0] == index


def wrong_size(folder):
    Image.new("L", (48, 40)).save(folder / "masks/03.png")


def of_no_class(folder):
    Image.new("L", (48, 48), 255).save(folder / "masks/03.png")


def wrong_value(folder):
    Image.new("L", (48, 48), 7).save(folder / "masks/03.png")


def coloured(folder):
    Image.new("RGB", (48, 48)).save(folder / "masks/03.png")


def no_mask(folder):
    (folder / "masks/03.png").unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (wrong_size, r"'images/03.jpg' .mask masks/03.png: 48 x 40 pixels, its image 48 x 48"),
        (wrong_value, r"'images/03.jpg' .mask masks/03.png: value 7 is none of the 3 classes, 0 to 2"),
        (of_no_class, r"'images/03.jpg' .mask masks/03.png: no pixel has a class"),
        (coloured, r"'images/03.jpg' .mask masks/03.png: mode 'RGB', one index of 8 bits per pixel expected"),
        (no_mask, r"'images/03.jpg' .an image without a mask"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_masks_that_do_not_fit_are_refused_or_dropped(masked, output, spoil, words):
    spoil(masked)
    with pytest.raises(DataError, match=words):
        with_masks(output, masked)
    shutil.rmtree(output)
    index = with_masks(output, masked, **dict.fromkeys(("mask", "broken", "unpaired"), "drop"))
    assert sum(len(index.parts[name]) for name in SPLITS) == 11


def test_a_broken_image_is_not_compared_with_its_mask(masked, output):
    (masked / "images/03.jpg").write_bytes(b"")
    index = with_masks(output, masked, broken="drop")
    assert sum(len(index.parts[name]) for name in SPLITS) == 11
