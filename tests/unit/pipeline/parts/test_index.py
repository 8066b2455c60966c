import os
from dataclasses import replace

import numpy as np
import pytest

from deploy.data import load_split
from pipeline.base.errors import DataError
from pipeline.parts.index import (
    IGNORED,
    PARTS,
    Index,
    Item,
    Items,
    Loaded,
    Targets,
    evenly,
    read_index,
    write_index,
)
from tests import tiny


def small_index():
    parts = {name: Items.of([Item(f"{name}.png", 0, 64 * "a")]) for name in PARTS}
    return Index(("cat", "dog"), "images", parts)


def test_an_index_comes_back_equal(tmp_path):
    written = write_index(small_index(), tmp_path)
    assert replace(written, sha256="") == small_index()
    assert read_index(tmp_path) == (written, tmp_path / "images")


def test_the_value_that_is_ignored_comes_back_and_is_a_part_of_the_data(tmp_path):
    hashes = set()
    for ignore in (None, 0, 255):
        written = write_index(replace(small_index(), ignore=ignore), tmp_path)
        assert read_index(tmp_path)[0].ignore == ignore
        assert load_split(tmp_path, "test").ignore == ignore
        hashes.add(written.sha256)
    assert len(hashes) == 3


def test_targets_are_labels_or_masks_with_one_value_for_no_class(tmp_path):
    index = tiny.prepared(tmp_path / "index", tiny.write_images(tmp_path / "images"))
    items = index.parts["train"]
    labels = list(Targets(tmp_path / "images", items, load=tiny.LOAD.mask, ignore=None))
    assert [int(label) for label in labels] == items.labels.tolist()
    index = tiny.prepared_masks(tmp_path / "masked", tiny.write_masked(tmp_path / "pairs"))
    items = index.parts["train"]
    for mask, item in zip(
        Targets(tmp_path / "pairs", items, load=tiny.LOAD_WIDE.mask, ignore=index.ignore), items, strict=True
    ):
        plain = tiny.LOAD_WIDE.mask(tmp_path / "pairs" / item.mask)
        assert mask.shape == tiny.WIDE.crop
        assert (mask[plain == tiny.NO_CLASS] == IGNORED).all()
        assert (mask[plain != tiny.NO_CLASS] == plain[plain != tiny.NO_CLASS]).all()
        assert (plain == tiny.NO_CLASS).any()


@pytest.mark.parametrize(
    ("count", "most", "places"), [(5, 9, [0, 1, 2, 3, 4]), (9, 3, [0, 4, 8]), (9, 1, [0]), (1, 4, [0])]
)
def test_places_are_spread_over_all(count, most, places):
    assert evenly(count, most).tolist() == places


@pytest.mark.parametrize(("name", "old", "new"), [("test.csv", ',"0",', ',"1",'), ("index.json", "dog", "fox")])
def test_an_edited_index_is_refused(tmp_path, name, old, new):
    write_index(small_index(), tmp_path)
    file = tmp_path / name
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))
    with pytest.raises(DataError, match="changed after it was written.*dvc repro -f prepare"):
        read_index(tmp_path)


def test_an_absent_index_is_named(tmp_path):
    with pytest.raises(DataError, match="run `dvc repro prepare`"):
        read_index(tmp_path)


def test_images_are_loaded_in_their_order_when_they_are_asked_for(tmp_path):
    root = tiny.write_images(tmp_path / "images")
    items = tiny.prepared(tmp_path / "data", root).parts["validation"]
    asked = []

    def load(path):
        asked.append(path)
        return tiny.LOAD.image(path)

    images = Loaded(root, items, load=load)
    assert len(images) == len(items)
    assert asked == []
    some = images[1:3]
    assert some.shape == (2, 3, tiny.SIZE, tiny.SIZE)
    assert np.array_equal(some[1], tiny.LOAD.image(root / items[2].path))
    assert asked == [root / items[1].path, root / items[2].path]


@pytest.mark.parametrize("name", ["a\rb.png", "a\nb.png", 'a,"b".png', " a.png", "caf\u00e9.png"])
def test_any_name_comes_back(tmp_path, name):
    items = Items.of([Item(f"c/{name}", 0, "ab" * 32), Item("c/z.png", 1, "cd" * 32)])
    written = write_index(Index(("x", "y"), "images", dict.fromkeys(PARTS, items)), tmp_path)
    assert read_index(tmp_path)[0] == written
    (tmp_path / "images/c").mkdir(parents=True)
    assert [item.name for item in load_split(tmp_path, "test").items] == [f"c/{name}", "c/z.png"]


def test_a_name_that_is_not_utf8_is_refused():
    with pytest.raises(DataError, match="the file name 'c/caf.*' is not UTF-8; rename it"):
        Items.of([Item(os.fsdecode(b"c/caf\xe9.png"), 0, "")])
