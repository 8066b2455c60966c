import json
import shutil

import pytest
from PIL import Image

from deploy.data import load_split
from deploy.errors import ImageError
from pipeline.base.errors import DataError
from pipeline.parts.index import read_index
from pipeline.steps.prepare import prepare
from tests import tiny


@pytest.fixture
def images(tmp_path):
    return tiny.write_images(tmp_path / "images")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "data"


def test_every_image_is_in_one_split_and_every_class_in_each(images, output):
    index = tiny.prepared(output, images)
    paths = [item.path for items in index.splits.values() for item in items]
    assert sorted(paths) == sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))
    assert index.counts() == {
        "train": {"class_0": 6, "class_1": 6, "class_2": 6},
        "validation": {"class_0": 3, "class_1": 3, "class_2": 3},
        "test": {"class_0": 3, "class_1": 3, "class_2": 3},
    }


def test_calibration_is_a_stratified_part_of_train(images, output):
    index = tiny.prepared(output, images)
    assert len(index.calibration) == 6
    assert set(index.calibration) < set(index.splits["train"])
    assert [item.label for item in index.calibration] == [0, 1, 2, 0, 1, 2]  # any first few see every class


def test_the_device_reads_the_same_index(images, output):
    index = tiny.prepared(output, images)
    split = load_split(output, "test")
    assert split.labels == index.labels
    assert [(i.path.relative_to(images).as_posix(), i.label, i.sha256) for i in split.items] == [
        (i.path, i.label, i.sha256) for i in index.splits["test"]
    ]


def test_two_runs_write_the_same_bytes(images, tmp_path):
    for name in "ab":
        tiny.prepared(tmp_path / name, images)
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()


def test_copies_of_an_image_stay_in_one_split(images, output):
    for number in range(8):
        shutil.copy(images / "class_0/0.png", images / f"class_0/copy_{number}.png")
    index = tiny.prepared(output, images)
    twin = next(i.sha256 for items in index.splits.values() for i in items if i.path == "class_0/0.png")
    homes = {name for name, items in index.splits.items() if any(i.sha256 == twin for i in items)}
    assert len(homes) == 1


def test_files_that_are_no_images_are_listed(images, output):
    (images / "class_0/notes.txt").write_text("x")
    tiny.prepared(output, images)
    report = json.loads((output / "report.json").read_text())
    assert report["refused"] == [{"path": "class_0/notes.txt", "reason": "not an image file"}]


def test_the_digits_need_no_folder(output):
    output.mkdir()
    index = prepare(
        output,
        source="digits",
        path=None,
        load=tiny.LOAD,
        broken=ImageError,
        validation_fraction=0.15,
        test_fraction=0.25,
        calibration_size=128,
        seed=0,
    )
    assert {name: len(items) for name, items in index.splits.items()} == {
        "train": 1077,
        "validation": 270,
        "test": 450,
    }
    assert read_index(output) == (index, output / "images")


def broken_image(images):
    (images / "class_1/broken.png").write_bytes(b"no image")


def truncated_image(images):
    whole = (images / "class_1/3.png").read_bytes()
    (images / "class_1/3.png").write_bytes(whole[: len(whole) // 2])


def empty_image(images):
    (images / "class_1/empty.jpg").write_bytes(b"")


def one_class(images):
    for name in ("class_1", "class_2"):
        shutil.rmtree(images / name)


def no_class(images):
    shutil.rmtree(images)
    images.mkdir()


def few_images(images):
    for number in range(2, 12):
        (images / f"class_2/{number}.png").unlink()


def two_labels(images):
    shutil.copy(images / "class_0/0.png", images / "class_1/0.png")


def split_already(images):
    for split in ("train", "val"):
        shutil.copytree(images, images.parent / "parts" / split)
    shutil.rmtree(images)
    (images.parent / "parts").rename(images)


def no_folder(images):
    shutil.rmtree(images)


def a_file(images):
    no_folder(images)
    Image.new("RGB", (4, 4)).save(images, "PNG")


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (broken_image, "1 broken image.*broken.png"),
        (truncated_image, "1 broken image.*3.png"),
        (empty_image, "1 broken image.*empty.jpg"),
        (one_class, r"holds 1 class folder\(s\) \('class_0'\); a classifier needs at least two"),
        (no_class, "holds 0 class folder"),
        (few_images, "class 'class_2' .* holds 2 image"),
        (two_labels, "same image has two labels: 'class_0/0.png', 'class_1/0.png'"),
        (split_already, "class folder 'train' .* holds a folder, 'class_0'; give the folder whose subfolders"),
        (no_folder, "`prepare.path` .* is no folder"),
        (a_file, "`prepare.path` .* is no folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_data_that_cannot_be_used_is_refused(images, output, spoil, words):
    spoil(images)
    with pytest.raises(DataError, match=words) as caught:
        tiny.prepared(output, images)
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []
