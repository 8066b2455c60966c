import json
import shutil
from dataclasses import replace

import pytest

from pipeline.base.errors import DataError
from pipeline.parts.checks import look
from pipeline.parts.index import SPLITS
from pipeline.parts.sources.folders import list_splits
from pipeline.steps.prepare import step
from tests import tiny
from tests.unit.pipeline.steps.prepare.reading import dropped_by, leak, paths, scene, splits_of


def test_copies_are_dropped_from_the_split_that_may_change(parted, output):
    leak(parted)
    shutil.copy(parted / "test/class_1/1.png", parted / "val/class_2/copy.png")
    shutil.copy(parted / "train/class_0/5.png", parted / "train/class_1/copy.png")
    index = tiny.prepared(output, parted, listing=list_splits, copies="drop")
    assert paths(index, "test") == {file.relative_to(parted).as_posix() for file in (parted / "test").rglob("*.png")}
    dropped = dropped_by(output)
    assert dropped == {
        "train/class_0/copy.png": "one image, in test and train",
        "val/class_2/copy.png": "one image, in test and validation",
        "train/class_0/5.png": "one image with two labels",
        "train/class_1/copy.png": "one image with two labels",
    }
    assert not dropped.keys() & (paths(index, "train") | paths(index, "validation"))


def test_kept_copies_are_not_calibrated_on(parted, output):
    leak(parted)
    index = tiny.prepared(output, parted, listing=list_splits, copies="keep")
    assert "train/class_0/copy.png" in paths(index, "train")
    tested = {item.sha256 for item in index.parts["test"]}
    assert index.parts["calibration"]
    assert not tested & {item.sha256 for item in index.parts["calibration"]}


def test_where_one_split_has_two_labels_no_copy_is_trusted(parted, output):
    leak(parted)
    shutil.copy(parted / "test/class_0/0.png", parted / "test/class_1/copy.png")
    index = tiny.prepared(output, parted, listing=list_splits, copies="drop")
    dropped = dropped_by(output)
    assert dropped == dict.fromkeys(
        ("train/class_0/copy.png", "test/class_0/0.png", "test/class_1/copy.png"), "one image with two labels"
    )
    assert not dropped.keys() & {item.path for items in splits_of(index).values() for item in items}


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
        (whole_validation, "drop", "no image is left for validation, 6 dropped as `copies`; add images, or drop fewer"),
        (whole_class, "drop", "no image of class 'class_1' is left to train on, 8 dropped as `copies`; add images"),
        (whole_train, "drop", "no image of class 'class_0' is left to train on"),
        (whole_train, "keep", "no image is left for calibration; add images"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_what_copies_leave_empty_is_said(parted, output, spoil, copies, words):
    spoil(parted)
    with pytest.raises(DataError, match=words) as caught:
        tiny.prepared(output, parted, listing=list_splits, copies=copies)
    assert "\n" not in str(caught.value)
    assert list(output.iterdir()) == []


@pytest.fixture
def scenes(tmp_path):
    """Two classes in three splits; of the first image of each class a near copy lies in another split."""
    numbers = iter(range(1000))
    for split, count in (("train", 10), ("val", 3), ("test", 3)):
        for label in ("a", "b"):
            folder = tmp_path / "scenes" / split / label
            folder.mkdir(parents=True)
            for place in range(count):
                scene(next(numbers)).save(folder / f"{place}.png")
    scene(0, brighter=9).save(tmp_path / "scenes/test/a/near.png")
    scene(20, brighter=9).save(tmp_path / "scenes/train/a/near.png")
    return tmp_path / "scenes"


def test_near_copies_in_two_splits_are_refused(scenes, output):
    leak_of = r"2 scene\(s\) in two splits, as near copies: 'train/a/0.png', 'test/a/near.png' .correlation 1.000"
    with pytest.raises(DataError, match=leak_of):
        tiny.prepared(output, scenes, listing=list_splits, near_similarity=0.95)


def test_copies_and_near_copies_are_told_at_once(scenes, output):
    shutil.copy(scenes / "train/b/1.png", scenes / "test/b/same.png")
    with pytest.raises(
        DataError, match=r"1 image\(s\) with two labels or in two splits: .* 2 scene\(s\) in two splits"
    ):
        tiny.prepared(output, scenes, listing=list_splits, near_similarity=0.95)


def test_dropped_near_copies_leave_the_split_that_may_change(scenes, output):
    index = tiny.prepared(output, scenes, listing=list_splits, near_similarity=0.95, near_copies="drop")
    assert set(dropped_by(output)) == {"train/a/0.png", "train/a/near.png"}
    assert {"train/a/0.png", "train/a/near.png"}.isdisjoint(paths(index, "train"))
    assert "test/a/near.png" in paths(index, "test")


def test_kept_near_copies_are_listed(scenes, output):
    index = tiny.prepared(output, scenes, listing=list_splits, near_similarity=0.95, near_copies="keep")
    assert {"train/a/0.png", "train/a/near.png"} <= paths(index, "train")
    assert dropped_by(output) == {}
    assert json.loads((output / "report.json").read_text())["found"] == {"near_copies kept": 2}


def test_who_does_not_look_finds_no_near_copies(scenes, output):
    index = tiny.prepared(output, scenes, listing=list_splits, near_similarity=None)
    assert len(index.parts["train"]) == 21


@pytest.mark.parametrize("seed", range(4))
def test_a_scene_stays_in_one_drawn_split(tmp_path, output, seed):
    for number in range(40):
        folder = tmp_path / "all" / "ab"[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        for turn in range(3):
            scene(number, brighter=6 * turn).save(folder / f"{number}_{turn}.png")
    index = tiny.prepared(output, tmp_path / "all", near_similarity=0.95, split_seed=seed)
    homes = [{path.split("_")[0] for path in paths(index, name)} for name in SPLITS]
    assert all(homes)
    assert sum(map(len, homes)) == len(set.union(*homes)) == 40
    assert sum(len(index.parts[name]) for name in SPLITS) == 120


def grey(number):
    return scene(number).convert("L").convert("RGB")


def same_hash(monkeypatch, names):
    """Gives some files one perceptual hash, as it happens to pictures that differ in little but colour."""
    original = look.look_at_image

    def spied(path, **options):
        seen = original(path, **options)
        return replace(seen, phash=1) if path.name in names else seen

    monkeypatch.setattr(step, "look_at_image", spied)


def test_every_near_copy_of_a_test_image_goes(scenes, output):
    for quality in (60, 80):
        scene(70).save(scenes / f"train/b/copy_{quality}.jpg", quality=quality)
    scene(70).save(scenes / "test/b/original.png")
    tiny.prepared(output, scenes, listing=list_splits, near_similarity=0.95, near_copies="drop")
    assert {"train/b/copy_60.jpg", "train/b/copy_80.jpg"} <= set(dropped_by(output))


def test_a_near_copy_of_a_dropped_copy_is_seen(scenes, output):
    scene(50).save(scenes / "train/a/same.png")
    scene(50).save(scenes / "test/a/same.png")
    scene(50, brighter=9).save(scenes / "train/a/brighter.png")
    options = {"listing": list_splits, "near_similarity": 0.95, "copies": "drop"}
    with pytest.raises(DataError, match="'train/a/brighter.png', 'train/a/same.png'"):
        tiny.prepared(output, scenes, **options)
    index = tiny.prepared(output.with_name("dropped"), scenes, near_copies="drop", **options)
    assert {"train/a/same.png", "train/a/brighter.png"}.isdisjoint(paths(index, "train"))


def test_scenes_of_one_hash_are_told_apart(scenes, output, monkeypatch):
    grey(60).save(scenes / "train/a/aaa.png")
    scene(61).save(scenes / "train/b/zz.png")
    scene(61, brighter=5).save(scenes / "test/b/zz_near.png")
    same_hash(monkeypatch, {"aaa.png", "zz.png", "zz_near.png"})
    with pytest.raises(DataError, match="'train/b/zz.png', 'test/b/zz_near.png' .correlation"):
        tiny.prepared(output, scenes, listing=list_splits, near_similarity=0.95)


def test_dropped_kinds_are_counted_where_nothing_is_left(scenes, output):
    for file in sorted((scenes / "train/b").iterdir()):
        file.write_bytes(b"")
    words = "no image of class 'b' is left to train on, 10 dropped as `broken`; add images, or drop fewer"
    with pytest.raises(DataError, match=words):
        tiny.prepared(output, scenes, listing=list_splits, broken="drop", per_class=3)
