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


def test_few_images_of_each_class_are_kept_to_train_on(images, output, tmp_path):
    whole, few = tiny.prepared(tmp_path / "whole", images), tiny.prepared(output, images, per_class=2)
    assert few.counts()["train"] == {"class_0": 2, "class_1": 2, "class_2": 2}
    assert set(few.splits["train"]) < set(whole.splits["train"])
    assert set(few.calibration) <= set(few.splits["train"])
    assert few.splits["test"] == whole.splits["test"]
    assert few.splits["validation"] == whole.splits["validation"]
    assert tiny.prepared(tmp_path / "more", images, per_class=99).splits == whole.splits


def test_the_seed_draws_the_few_images_and_leaves_the_splits(images, output, tmp_path):
    one, other = (
        tiny.prepared(tmp_path / "one", images, per_class=2),
        tiny.prepared(output, images, per_class=2, seed=1),
    )
    assert one.splits["train"] != other.splits["train"]
    assert one.splits["test"] == other.splits["test"]
    assert one.splits["validation"] == other.splits["validation"]


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
        per_class=None,
        copies="refuse",
        split_seed=0,
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
        (broken_image, "1 broken image.*broken.png"),
        (truncated_image, "1 broken image.*3.png"),
        (empty_image, "1 broken image.*empty.jpg"),
        (one_class, r"holds 1 class folder\(s\) \('class_0'\); a classifier needs at least two"),
        (no_class, "holds 0 class folder"),
        (few_images, r"class 'class_2' holds 2 different image\(s\) to draw splits from"),
        (five_copies, r"class 'class_2' holds 1 different image\(s\) to draw splits from"),
        (lost_link, "class_1/lost.png' cannot be read"),
        (two_labels, "same image has two labels or lies in two splits: 'class_0/0.png', 'class_1/0.png'; keep one"),
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
    with pytest.raises(DataError, match=words) as caught:
        tiny.prepared(output, images)
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


@pytest.fixture
def parted(tmp_path):
    """Folders train, val and test, each with the three classes; no image is in two of them."""
    root = tmp_path / "parted"
    whole = tiny.write_images(tmp_path / "whole")
    for file in sorted(whole.rglob("*.png")):
        part = {"0": "test", "1": "test", "2": "val", "3": "val"}.get(file.stem, "train")
        (root / part / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.move(file, root / part / file.parent.name / file.name)
    return root


def paths(index, split):
    return {item.path for item in index.splits[split]}


def test_split_folders_are_taken_as_they_are(parted, output):
    index = tiny.prepared(output, parted, source="split_folders")
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        expected = {file.relative_to(parted).as_posix() for file in (parted / folder).rglob("*.png")}
        assert paths(index, split) == expected
    assert index.labels == ("class_0", "class_1", "class_2")
    assert all(index.labels[i.label] == i.path.split("/")[1] for items in index.splits.values() for i in items)
    assert load_split(output, "test").items[0].path.is_file()


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_the_validation_folder_may_have_another_name(parted, output, name):
    (parted / "val").rename(parted / name)
    assert {
        path.split("/")[0] for path in paths(tiny.prepared(output, parted, source="split_folders"), "validation")
    } == {name}


@pytest.mark.parametrize("missing", [("val",), ("test",), ("val", "test")])
def test_a_split_without_a_folder_is_drawn_from_train(parted, output, missing):
    for name in missing:
        shutil.rmtree(parted / name)
    index = tiny.prepared(output, parted, source="split_folders")
    everything = {file.relative_to(parted).as_posix() for file in parted.rglob("*.png")}
    assert set().union(*(paths(index, split) for split in index.splits)) == everything
    assert sum(len(items) for items in index.splits.values()) == len(everything)
    for name in ("validation", "test"):
        drawn = {"validation": "val"}.get(name, name) in missing
        assert {path.split("/")[0] for path in paths(index, name)} == {"train"} if drawn else {"val", "test"}
        assert {item.label for item in index.splits[name]} == {0, 1, 2}


def test_a_class_that_only_another_split_lacks_keeps_its_label(parted, output):
    shutil.rmtree(parted / "test/class_1")
    index = tiny.prepared(output, parted, source="split_folders")
    assert {item.label for item in index.splits["test"]} == {0, 2}


def other_class(parted):
    (parted / "test/class_2").rename(parted / "test/class_9")


def no_train(parted):
    shutil.rmtree(parted / "train")


def two_validations(parted):
    shutil.copytree(parted / "val", parted / "valid")


def no_split(parted):
    (parted / "extra").mkdir()


def no_classes(parted):
    shutil.rmtree(parted / "val")
    (parted / "val").mkdir()


def leak(parted):
    shutil.copy(parted / "test/class_0/0.png", parted / "train/class_0/copy.png")


def empty_class(parted):
    for file in (parted / "val/class_1").iterdir():
        file.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (other_class, "class 'class_9' of .*test' is not in .*train'"),
        (no_train, "holds no folder 'train'; give the folder that holds train, val and test"),
        (two_validations, "holds two folders for one split: 'val', 'valid'; keep one"),
        (no_split, "holds a folder 'extra', which is no split; name splits train, val and test"),
        (no_classes, "val' holds no class folder; remove it, and a split is drawn from train"),
        (leak, "two splits: 'train/class_0/copy.png', 'test/class_0/0.png'; keep one of them, or set `prepare.copies`"),
        (empty_class, "class 'class_1' of .*val' holds no image"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_split_folders_that_cannot_be_used_are_refused(parted, output, spoil, words):
    spoil(parted)
    with pytest.raises(DataError, match=words) as caught:
        tiny.prepared(output, parted, source="split_folders")
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


def test_copies_are_dropped_from_the_split_that_may_change(parted, output):
    leak(parted)
    shutil.copy(parted / "test/class_1/1.png", parted / "val/class_2/copy.png")
    shutil.copy(parted / "train/class_0/5.png", parted / "train/class_1/copy.png")
    index = tiny.prepared(output, parted, source="split_folders", copies="drop")
    assert paths(index, "test") == {file.relative_to(parted).as_posix() for file in (parted / "test").rglob("*.png")}
    dropped = {entry["path"]: entry["reason"] for entry in json.loads((output / "report.json").read_text())["refused"]}
    assert dropped == {
        "train/class_0/copy.png": "the same image as test/class_0/0.png",
        "val/class_2/copy.png": "the same image as test/class_1/1.png",
        "train/class_0/5.png": "the same image has another label in train/class_1/copy.png",
        "train/class_1/copy.png": "the same image has another label in train/class_0/5.png",
    }
    assert not dropped.keys() & (paths(index, "train") | paths(index, "validation"))


def test_kept_copies_are_not_calibrated_on(parted, output):
    leak(parted)
    index = tiny.prepared(output, parted, source="split_folders", copies="keep")
    assert "train/class_0/copy.png" in paths(index, "train")
    tested = {item.sha256 for item in index.splits["test"]}
    assert index.calibration
    assert not tested & {item.sha256 for item in index.calibration}


def test_where_one_split_has_two_labels_no_copy_is_trusted(parted, output):
    leak(parted)
    shutil.copy(parted / "test/class_0/0.png", parted / "test/class_1/copy.png")
    index = tiny.prepared(output, parted, source="split_folders", copies="drop")
    dropped = {entry["path"]: entry["reason"] for entry in json.loads((output / "report.json").read_text())["refused"]}
    assert dropped.keys() == {"train/class_0/copy.png", "test/class_0/0.png", "test/class_1/copy.png"}
    assert all("has another label in test/" in reason for reason in dropped.values())
    assert not dropped.keys() & {item.path for items in index.splits.values() for item in items}


def whole_validation(parted):
    shutil.rmtree(parted / "val")
    shutil.copytree(parted / "test", parted / "val")


def whole_class(parted):
    for number, file in enumerate(sorted((parted / "train/class_1").iterdir())):
        shutil.copy(file, parted / f"test/class_1/copy_{number}.png")


def whole_train(parted):
    shutil.rmtree(parted / "test")
    shutil.copytree(parted / "train", parted / "test")


@pytest.mark.parametrize(
    ("spoil", "copies", "words"),
    [
        (whole_validation, "drop", "no image is left for validation: the rest are copies .* `prepare.copies` is drop"),
        (whole_class, "drop", "no image of class 'class_1' is left to train on: the rest are copies"),
        (whole_train, "drop", "no image of class 'class_0' is left to train on"),
        (whole_train, "keep", "no image is left for calibration: .* `prepare.copies` is keep"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_copies_leave_empty_is_said(parted, output, spoil, copies, words):
    spoil(parted)
    with pytest.raises(DataError, match=words) as caught:
        tiny.prepared(output, parted, source="split_folders", copies=copies)
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


def test_images_in_no_class_folder_are_listed(parted, output):
    shutil.copy(parted / "test/class_0/0.png", parted / "train/loose.png")
    tiny.prepared(output, parted, source="split_folders")
    report = json.loads((output / "report.json").read_text())
    assert report["refused"] == [{"path": "train/loose.png", "reason": "in no class folder"}]


def test_the_report_of_split_folders_has_one_order(parted, tmp_path):
    for part in ("train", "val", "test"):
        (parted / part / "class_0/Thumbs.db").write_text("x")
    tiny.prepared(tmp_path / "data", parted, source="split_folders")
    report = json.loads((tmp_path / "data/report.json").read_text())
    assert [entry["path"].split("/")[0] for entry in report["refused"]] == ["train", "val", "test"]
