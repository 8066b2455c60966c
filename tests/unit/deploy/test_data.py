import pytest

from deploy.data import load_split
from deploy.errors import BundleError
from tests.unit.deploy.conftest import write_split


def test_split_has_absolute_paths_in_order(plant):
    split = load_split(plant.data, "test")
    assert split.labels == ("circle", "cross", "line", "square")
    assert len(split.items) == 12
    first = split.items[1]
    assert (first.name, first.label) == ("test/cross/0001.png", 1)
    assert first.path == plant.data / "images" / "test/cross/0001.png"
    assert first.path.is_file()


def test_relative_data_folder_gives_absolute_paths(plant, monkeypatch):
    monkeypatch.chdir(plant.data.parent)
    assert load_split(type(plant.data)("data"), "test").items[0].path.is_absolute()


def test_absolute_root_is_a_users_own_folder(plant, edit, tmp_path):
    edit(plant.data / "index.json", root=str(tmp_path / "photos"))
    assert load_split(plant.data, "test").items[0].path == tmp_path / "photos" / "test/circle/0000.png"


def test_linked_images_are_followed(plant, tmp_path):
    (plant.data / "images").rename(tmp_path / "elsewhere")
    (plant.data / "images").symlink_to(tmp_path / "elsewhere")
    assert load_split(plant.data, "test").items[0].path.is_file()


def entry(**changes):
    return {"path": "a.png", "label": 0, "sha256": "ab"} | changes


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (entry(path="../x.png"), r"test\.csv, line 3: `path` '../x.png' leaves the root"),
        (entry(path="/etc/passwd"), "`path` '/etc/passwd' leaves the root"),
        (entry(path="a/../../x.png"), "leaves the root"),
        (entry(label=4), r"line 3: `label` should be 0\.\.3, got '4'"),
        (entry(label=-1), "got '-1'"),
        (entry(label="cross"), "got 'cross'"),
        (entry(path=""), "should hold `path`, `label` and `sha256`"),
        (entry(sha256=""), "should hold"),
    ],
    ids=str,
)
def test_a_faulty_line_is_named(plant, faulty, message):
    write_split(plant.data, "test", [entry(), faulty])
    with pytest.raises(BundleError, match=message):
        load_split(plant.data, "test")


def test_a_list_without_its_columns_is_refused(plant):
    write_split(plant.data, "test", [{"file": "a.png", "class": 0}])
    with pytest.raises(BundleError, match="line 2: should hold `path`"):
        load_split(plant.data, "test")


def test_a_changed_list_is_refused(plant):
    with (plant.data / "test.csv").open("a") as stream:
        stream.write("b.png,0,ab\n")
    with pytest.raises(BundleError, match=r"test\.csv: missing or changed .*dvc repro prepare"):
        load_split(plant.data, "test")


def test_a_missing_list_is_refused(plant):
    (plant.data / "test.csv").unlink()
    with pytest.raises(BundleError, match=r"test\.csv: missing or changed"):
        load_split(plant.data, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "../other"}, "`root` '../other' leaves the data folder"),
        ({"parts": {}}, "key `parts.test.sha256` is missing"),
        ({"schema": 2}, "has schema 2"),
        ({"ignore": "rust"}, "`ignore` should be an integer"),
    ],
)
def test_faulty_index(plant, edit, changes, message):
    edit(plant.data / "index.json", **changes)
    with pytest.raises(BundleError, match=message):
        load_split(plant.data, "test")


def test_missing_index_names_the_remedy(tmp_path):
    with pytest.raises(BundleError, match=r"index\.json: no such file; .*dvc repro prepare"):
        load_split(tmp_path, "test")
