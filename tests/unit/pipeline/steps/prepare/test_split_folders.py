import shutil
from pathlib import Path

import pytest

from deploy.data import load_split
from pipeline.base.errors import DataError
from pipeline.parts.sources.folders import list_splits
from tests import tiny
from tests.unit.pipeline.steps.prepare.reading import findings, leak, paths, refused, splits_of


def test_split_folders_are_taken_as_they_are(parted, output):
    index = tiny.prepared(output, parted, listing=list_splits)
    for split, folder in (("train", "train"), ("validation", "val"), ("test", "test")):
        expected = {file.relative_to(parted).as_posix() for file in (parted / folder).rglob("*.png")}
        assert paths(index, split) == expected
    assert index.labels == ("class_0", "class_1", "class_2")
    assert all(index.labels[i.label] == i.path.split("/")[1] for items in splits_of(index).values() for i in items)
    assert load_split(output, "test").items[0].path.is_file()


@pytest.mark.parametrize("name", ["valid", "validation", "Val"])
def test_the_validation_folder_may_have_another_name(parted, output, name):
    (parted / "val").rename(parted / name)
    assert {path.split("/")[0] for path in paths(tiny.prepared(output, parted, listing=list_splits), "validation")} == {
        name
    }


@pytest.mark.parametrize("missing", [("val",), ("test",), ("val", "test")])
def test_a_split_without_a_folder_is_drawn_from_train(parted, output, missing):
    for name in missing:
        shutil.rmtree(parted / name)
    index = tiny.prepared(output, parted, listing=list_splits)
    everything = {file.relative_to(parted).as_posix() for file in parted.rglob("*.png")}
    assert set().union(*(paths(index, split) for split in splits_of(index))) == everything
    assert sum(len(items) for items in splits_of(index).values()) == len(everything)
    for name in ("validation", "test"):
        drawn = {"validation": "val"}.get(name, name) in missing
        assert {path.split("/")[0] for path in paths(index, name)} == {"train"} if drawn else {"val", "test"}
        assert {item.label for item in index.parts[name]} == {0, 1, 2}


def test_a_class_that_only_another_split_lacks_keeps_its_label(parted, output):
    shutil.rmtree(parted / "test/class_1")
    index = tiny.prepared(output, parted, listing=list_splits)
    assert {item.label for item in index.parts["test"]} == {0, 2}


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
        (leak, "'train/class_0/copy.png', 'test/class_0/0.png' .one image, in test and train.; keep one of each"),
        (empty_class, "class 'class_1' of .*val' holds no image"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_split_folders_that_cannot_be_used_are_refused(parted, output, spoil, words):
    spoil(parted)
    refused(output, parted, words, listing=list_splits)


def test_images_in_no_class_folder_are_listed(parted, output):
    shutil.copy(parted / "test/class_0/0.png", parted / "train/loose.png")
    tiny.prepared(output, parted, listing=list_splits, unpaired="drop")
    assert findings(output) == [("unpaired", "dropped", ["train/loose.png"], "an image in no class folder")]


def test_the_report_of_split_folders_has_one_order(parted, tmp_path):
    for part in ("train", "val", "test"):
        (parted / part / "class_0/Thumbs.db").write_text("x")
    tiny.prepared(tmp_path / "data", parted, listing=list_splits)
    assert [shown[0].split("/")[0] for _, _, shown, _ in findings(tmp_path / "data")] == ["train", "val", "test"]


def test_images_beside_the_splits_and_hidden_folders_are_listed(parted, output):
    shutil.copy(parted / "train/class_0/4.png", parted / "stray.png")
    (parted / "train/class_0/.ipynb_checkpoints").mkdir()
    (parted / ".thumbnails").mkdir()
    with pytest.raises(DataError, match=r"1 image\(s\) or label\(s\) without the other: 'stray.png'"):
        tiny.prepared(output, parted, listing=list_splits)
    output.rmdir()
    tiny.prepared(output, parted, listing=list_splits, unpaired="drop")
    assert ("ignored", "ignored", [".thumbnails"], "a hidden folder") in findings(output)
    assert ("ignored", "ignored", ["train/class_0/.ipynb_checkpoints"], "a hidden folder") in findings(output)


def test_a_folder_that_may_not_be_read_is_named(parted, output, monkeypatch):
    original = Path.iterdir

    def iterdir(folder):
        if folder.name == "class_1":
            raise PermissionError(13, "Permission denied", str(folder))
        return original(folder)

    monkeypatch.setattr(Path, "iterdir", iterdir)
    with pytest.raises(DataError, match=r"class_1' cannot be read \(Permission denied\); change its permissions"):
        tiny.prepared(output, parted, listing=list_splits)
