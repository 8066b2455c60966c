import json

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.parts.data import Augment, Images, labels_of, stacked, training_batches
from pipeline.parts.digits import write_digits
from pipeline.parts.index import Index, Item, read_index, write_index
from tests import tiny

PLAIN = Augment(degrees=0, translate=0, scale=(1, 1), flip=False)
STRONG = Augment(degrees=45, translate=0.2, scale=(0.5, 1.5), flip=True)


@pytest.fixture
def index(tmp_path):
    return tiny.prepared(tmp_path / "data", tiny.write_images(tmp_path / "images")), tmp_path / "images"


def batches_of(index, root, *, transform=None, seed=0):
    images = Images(root, index.splits["train"], load=tiny.LOAD, transform=transform)
    torch.manual_seed(seed)
    return list(training_batches(images, batch_size=6, workers=0, seed=seed))


def test_images_are_what_the_device_sees(index):
    found, root = index
    items = found.splits["test"]
    images = Images(root, items, load=tiny.LOAD)
    assert len(images) == len(items)
    for (image, label), item in zip(images, items, strict=True):
        assert np.array_equal(image.numpy(), tiny.LOAD(root / item.path))
        assert label == item.label


def test_no_augmentation_changes_nothing(index):
    found, root = index
    item = found.splits["train"][0]
    plain = torch.from_numpy(tiny.LOAD(root / item.path))
    assert torch.equal(PLAIN.transform((-1, -1, -1))(plain), plain)
    assert not torch.equal(STRONG.transform((-1, -1, -1))(plain), plain)


def test_augmentation_fills_with_black():
    far = Augment(degrees=0, translate=0, scale=(0.25, 0.25), flip=False)
    moved = far.transform((-1.0, -2.0, -3.0))(torch.ones(3, 16, 16))
    assert moved[:, 0, 0].tolist() == [-1, -2, -3]


def test_order_and_changes_follow_from_the_seed(index):
    found, root = index
    transform = STRONG.transform((-1, -1, -1))
    one, again = (batches_of(found, root, transform=transform) for _ in range(2))
    other = batches_of(found, root, transform=transform, seed=1)
    assert all(torch.equal(a[0], b[0]) and torch.equal(a[1], b[1]) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[0][0], other[0][0])


def test_stacked_keeps_the_order(index):
    found, root = index
    items = found.splits["validation"]
    assert stacked(root, items, load=tiny.LOAD).shape == (len(items), 3, tiny.SIZE, tiny.SIZE)
    assert labels_of(items).tolist() == [item.label for item in items]


def test_digits_are_the_real_ones(tmp_path):
    write_digits(tmp_path / "digits")
    files = sorted((tmp_path / "digits").rglob("*.png"))
    assert len(files) == 1797
    zero = np.asarray(Image.open(tmp_path / "digits" / "0" / "0000.png"))
    assert zero[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # ink 0 0 5 13 9 1 0 0 of 16


def small_index():
    items = {name: (Item(f"{name}.png", 0, "ab"),) for name in ("train", "validation", "test")}
    return Index(("cat", "dog"), "images", items, items["train"])


def test_an_index_comes_back_equal(tmp_path):
    write_index(small_index(), tmp_path)
    assert read_index(tmp_path) == (small_index(), tmp_path / "images")


def test_an_edited_index_is_refused(tmp_path):
    write_index(small_index(), tmp_path)
    content = json.loads((tmp_path / "index.json").read_text())
    content["splits"]["test"][0]["label"] = 1
    (tmp_path / "index.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="changed after it was written.*dvc repro -f prepare"):
        read_index(tmp_path)


def test_an_absent_index_is_named(tmp_path):
    with pytest.raises(DataError, match="run `dvc repro prepare`"):
        read_index(tmp_path)
