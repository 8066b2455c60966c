import json

import numpy as np
import pytest

from pipeline.base.errors import DataError
from pipeline.parts.index import Index, Item, labels_of, read_index, stacked, write_index
from tests import tiny


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


def test_images_are_stacked_in_their_order(tmp_path):
    root = tiny.write_images(tmp_path / "images")
    items = tiny.prepared(tmp_path / "data", root).splits["validation"]
    images = stacked(root, items, load=tiny.LOAD)
    assert images.shape == (len(items), 3, tiny.SIZE, tiny.SIZE)
    assert np.array_equal(images[-1], tiny.LOAD(root / items[-1].path))
    assert labels_of(items).tolist() == [item.label for item in items]
