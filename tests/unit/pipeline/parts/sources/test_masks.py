import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.parts.sources.listing import ALL, Finding
from pipeline.parts.sources.masks import list_masks


@pytest.fixture
def folder(tmp_path):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for number in range(6):
        Image.new("RGB", (8, 6)).save(tmp_path / f"images/{number}.jpg")
        Image.fromarray(np.zeros((6, 8), np.uint8)).save(tmp_path / f"masks/{number}.png")
    (tmp_path / "classes.txt").write_text("sky\n\nground\n")
    return tmp_path


def listed(folder, *, classes=None, images="images"):
    return list_masks(folder, images=images, masks="masks", classes=classes)


def test_images_and_masks_are_paired_by_name(folder):
    listing = listed(folder)
    assert listing.labels == ("sky", "ground")
    assert [(i.path, i.mask) for i in listing.parts[ALL]] == [(f"images/{n}.jpg", f"masks/{n}.png") for n in range(6)]
    assert listing.findings == []


def test_classes_may_be_given(folder):
    (folder / "classes.txt").unlink()
    assert listed(folder, classes=["a", "b", "c"]).labels == ("a", "b", "c")


@pytest.mark.parametrize(
    ("names", "words"),
    [
        (["sky"], r"classes.txt' holds 1 class\(es\) \('sky'\); at least two are needed"),
        (list(map(str, range(256))), "names 256 classes; masks of 8 bits can tell 255 apart"),
        (["sky", "ground", "sky"], r"classes.txt' names 'sky' twice; give every class a name of its own"),
    ],
    ids=["one", "more than masks can tell", "twice"],
)
def test_classes_that_masks_cannot_tell_apart_are_refused(folder, names, words):
    (folder / "classes.txt").write_text("\n".join(names))
    with pytest.raises(DataError, match=words):
        listed(folder)
    with pytest.raises(DataError, match=words.replace("classes.txt'", "`prepare.classes`")):
        listed(folder, classes=names)


def test_lists_of_names_are_the_splits(folder):
    (folder / "train.txt").write_text("0\n1\n2\n")
    (folder / "val.txt").write_text("3\n")
    (folder / "test.txt").write_text("4\n")
    listing = listed(folder)
    assert {name: [item.path[7] for item in items] for name, items in listing.parts.items()} == {
        "test": ["4"],
        "train": ["0", "1", "2"],
        "validation": ["3"],
    }
    assert listing.findings == [Finding("ignored", ("images/5.jpg",), "an image in none of the lists")]


def test_what_has_no_partner_is_found(folder):
    (folder / "masks/1.png").unlink()
    (folder / "images/2.jpg").unlink()
    listing = listed(folder)
    assert listing.findings == [
        Finding("unpaired", ("images/1.jpg",), "an image without a mask"),
        Finding("unpaired", ("masks/2.png",), "a mask without an image"),
    ]
    assert len(listing.parts[ALL]) == 4


def spoil_two_names(folder):
    Image.new("RGB", (8, 6)).save(folder / "images/3.png")


def spoil_no_classes(folder):
    (folder / "classes.txt").unlink()


def spoil_no_train(folder):
    (folder / "val.txt").write_text("1\n")


def spoil_twice(folder):
    (folder / "train.txt").write_text("0\n1\n")
    (folder / "val.txt").write_text("1\n")


def spoil_empty(folder):
    (folder / "train.txt").write_text("1\n")
    (folder / "val.txt").write_text("\n")


def spoil_two(folder):
    for name in ("train", "val", "valid"):
        (folder / f"{name}.txt").write_text(f"{len(name)}\n")


def spoil_unknown(folder):
    (folder / "train.txt").write_text("0\n9\n")


def spoil_folder(folder):
    (folder / "masks").rename(folder / "labels")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (spoil_two_names, "holds '3.jpg' and '3.png'; names must differ before the suffix"),
        (spoil_no_classes, "no '.*classes.txt'; write the names of the classes there, .* or set `prepare.classes`"),
        (spoil_no_train, "holds val.txt but no train.txt; add it, or remove the lists"),
        (spoil_twice, "val.txt' names '1', which stands in train.txt already; keep one"),
        (spoil_empty, "val.txt' names no image; fill it, or remove it"),
        (spoil_two, "holds two lists for one split: 'val.txt', 'valid.txt'; keep one"),
        (spoil_unknown, "train.txt' names '9', but '.*images' holds no such image; mend the list"),
        (spoil_folder, "holds no folder 'masks'; set `prepare.images` and `prepare.masks`"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_folders_that_cannot_be_used_are_refused(folder, spoil, words):
    spoil(folder)
    with pytest.raises(DataError, match=words) as caught:
        listed(folder)
    assert "\n" not in str(caught.value)
