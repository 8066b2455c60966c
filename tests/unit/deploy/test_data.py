import pytest

from deploy.data import load_split
from deploy.errors import BundleError


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


@pytest.mark.parametrize("path", ["../x.png", "/etc/passwd", "a/../../x.png"])
def test_path_outside_the_root_is_refused(plant, edit, path):
    edit(plant.data / "index.json", splits__test=[{"path": path, "label": 0, "sha256": ""}])
    with pytest.raises(BundleError, match=r"`splits\.test\.0\.path` .* leaves the root"):
        load_split(plant.data, "test")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"root": "../other"}, "`root` '../other' leaves the data folder"),
        ({"splits": {}}, "key `splits.test` is missing"),
        ({"splits__test": {}}, "`splits.test` should be a list, got dict"),
        ({"splits__test": ["x"]}, r"`splits\.test\.0` should hold `path`"),
        ({"splits__test": [{"path": 1, "label": 0, "sha256": ""}]}, "should have strings"),
        ({"splits__test": [{"path": "a", "label": 4, "sha256": ""}]}, r"label` should be 0\.\.3, got 4"),
        ({"splits__test": [{"path": "a", "label": True, "sha256": ""}]}, "got True"),
        ({"schema": 3}, "has schema 3"),
    ],
)
def test_faulty_index(plant, edit, changes, message):
    edit(plant.data / "index.json", **changes)
    with pytest.raises(BundleError, match=message):
        load_split(plant.data, "test")


def test_missing_index_names_the_remedy(tmp_path):
    with pytest.raises(BundleError, match=r"index\.json: no such file; .*dvc repro prepare"):
        load_split(tmp_path, "test")
