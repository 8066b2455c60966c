import shutil

import pytest
from PIL import Image

from deploy.data import load_split
from pipeline.parts.index import read_index
from pipeline.parts.sources.digits import write_digits
from tests import tiny
from tests.unit.pipeline.steps.prepare.reading import findings, refused, splits_of


def test_every_image_is_in_one_split_and_every_class_in_each(images, output):
    index = tiny.prepared(output, images)
    paths = [item.path for items in splits_of(index).values() for item in items]
    assert sorted(paths) == sorted(p.relative_to(images).as_posix() for p in images.rglob("*.png"))
    assert index.counts() == {
        "train": {"class_0": 6, "class_1": 6, "class_2": 6},
        "validation": {"class_0": 3, "class_1": 3, "class_2": 3},
        "test": {"class_0": 3, "class_1": 3, "class_2": 3},
    }


def test_calibration_is_a_stratified_part_of_train(images, output):
    index = tiny.prepared(output, images)
    assert len(index.parts["calibration"]) == 6
    assert set(index.parts["calibration"]) < set(index.parts["train"])
    assert [item.label for item in index.parts["calibration"]] == [0, 1, 2, 0, 1, 2]  # any first few see every class


def test_few_images_of_each_class_are_kept_to_train_on(images, output, tmp_path):
    whole, few = tiny.prepared(tmp_path / "whole", images), tiny.prepared(output, images, per_class=2)
    assert few.counts()["train"] == {"class_0": 2, "class_1": 2, "class_2": 2}
    assert set(few.parts["train"]) < set(whole.parts["train"])
    assert set(few.parts["calibration"]) <= set(few.parts["train"])
    assert few.parts["test"] == whole.parts["test"]
    assert few.parts["validation"] == whole.parts["validation"]
    assert splits_of(tiny.prepared(tmp_path / "more", images, per_class=99)) == splits_of(whole)


def test_the_seed_draws_the_few_images_and_leaves_the_splits(images, output, tmp_path):
    one, other = (
        tiny.prepared(tmp_path / "one", images, per_class=2),
        tiny.prepared(output, images, per_class=2, seed=1),
    )
    assert one.parts["train"] != other.parts["train"]
    assert one.parts["test"] == other.parts["test"]
    assert one.parts["validation"] == other.parts["validation"]


def test_the_device_reads_the_same_index(images, output):
    index = tiny.prepared(output, images)
    split = load_split(output, "test")
    assert split.labels == index.labels
    assert [(i.path.relative_to(images).as_posix(), i.label, i.sha256) for i in split.items] == [
        (i.path, i.label, i.sha256) for i in index.parts["test"]
    ]


def test_two_runs_write_the_same_bytes(images, tmp_path):
    for name in "ab":
        tiny.prepared(tmp_path / name, images)
    assert (tmp_path / "a/index.json").read_bytes() == (tmp_path / "b/index.json").read_bytes()


def test_copies_of_an_image_stay_in_one_split(images, output):
    for number in range(8):
        shutil.copy(images / "class_0/0.png", images / f"class_0/copy_{number}.png")
    index = tiny.prepared(output, images)
    twin = next(i.sha256 for items in splits_of(index).values() for i in items if i.path == "class_0/0.png")
    homes = {name for name, items in splits_of(index).items() if any(i.sha256 == twin for i in items)}
    assert len(homes) == 1


def test_files_that_are_no_images_are_listed(images, output):
    (images / "class_0/notes.txt").write_text("x")
    tiny.prepared(output, images)
    assert findings(output) == [("ignored", "ignored", ["class_0/notes.txt"], "not an image file")]


def test_the_digits_are_written_and_split(output, tmp_path):
    write_digits(tmp_path / "digits")
    index = tiny.prepared(output, tmp_path / "digits")
    assert sum(len(items) for items in splits_of(index).values()) == 1797
    assert len(index.labels) == 10
    assert read_index(output) == (index, tmp_path / "digits")


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


def five_copies(images):
    few_images(images)
    (images / "class_2/1.png").unlink()
    for number in range(5):
        shutil.copy(images / "class_2/0.png", images / f"class_2/copy_{number}.png")


def lost_link(images):
    (images / "class_1/lost.png").symlink_to(images / "nowhere.png")


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
        (broken_image, r"1 file\(s\) that cannot be decoded: 'class_1/broken.png'"),
        (truncated_image, r"'class_1/3.png' \(cannot be decoded"),
        (empty_image, r"'class_1/empty.jpg' \(the file is empty\)"),
        (one_class, r"holds 1 class\(es\) \('class_0'\); at least two are needed"),
        (no_class, r"holds 0 class\(es\)"),
        (few_images, r"class 'class_2' holds 2 different image\(s\) to draw splits from"),
        (
            five_copies,
            r"class 'class_2' holds 1 different image\(s\) \(of 6; near copies count once, see .*\) to draw",
        ),
        (lost_link, r"'class_1/lost.png' \(the file cannot be read \(No such file"),
        (two_labels, "'class_0/0.png', 'class_1/0.png' .one image with two labels.; keep one of each, or set"),
        (
            split_already,
            "class folder 'train' .* holds a folder, 'class_0'; give the folder whose .* use data=split_folders",
        ),
        (no_folder, "`prepare.path` .* is no folder"),
        (a_file, "`prepare.path` .* is no folder"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_data_that_cannot_be_used_is_refused(images, output, spoil, words):
    spoil(images)
    refused(output, images, words)
