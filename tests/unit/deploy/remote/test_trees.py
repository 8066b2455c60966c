import hashlib
import json

import numpy as np
import pytest
from PIL import Image

from deploy.data import load_split
from deploy.errors import BundleError, ImageError
from deploy.remote import trees
from deploy.remote.trees import bundle_tree, bundles_tree, hashes, text_blob


def lay_out(tree, folder):
    for name, blob in tree.items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(blob.source if isinstance(blob.source, bytes) else blob.source.read_bytes())
    return folder


def holds(tree):
    """Whether each blob says of its content what is so."""
    for blob in tree.values():
        content = blob.source if isinstance(blob.source, bytes) else blob.source.read_bytes()
        assert (blob.sha256, blob.size) == (hashlib.sha256(content).hexdigest(), len(content))
    return True


def test_a_text_is_a_blob_of_its_bytes():
    assert holds({"a": text_blob("größer")})


def test_a_bundle_is_the_files_it_names(bundle):
    (bundle / "notes.txt").write_text("not of the bundle")
    tree = bundle_tree(bundle)
    assert set(tree) == {"bundle.json", "model.onnx", "golden.npz"}
    assert holds(tree)
    assert hashes(tree) == {name: blob.sha256 for name, blob in tree.items()}


def test_bundles_lie_in_folders_of_their_names_each_once(plant):
    tree = bundles_tree(plant.onnx_root, ["int8", "fp32", "int8"])
    assert {name.split("/")[0] for name in tree} == {"fp32", "int8"}
    assert len(tree) == 6


@pytest.mark.parametrize("spoil", ["missing", "changed"])
def test_a_bundle_with_a_faulty_file_is_refused(bundle, spoil):
    if spoil == "missing":
        (bundle / "golden.npz").unlink()
    else:
        (bundle / "model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"golden\.npz|model\.onnx"):
        bundle_tree(bundle)


def test_the_test_split_is_a_data_folder_of_its_own(plant, tmp_path):
    tree = trees.test_split_tree(plant.data)
    assert holds(tree)
    there = load_split(lay_out(tree, tmp_path / "there"), "test")
    here = load_split(plant.data, "test")
    assert [item.name for item in there.items] == [item.name for item in here.items]
    assert there.root == tmp_path / "there/images"
    assert all(item.path.is_file() for item in there.items)


@pytest.fixture
def masked(plant, tmp_path, edit):
    """Images of a folder of the user's own, with masks, two images of one."""
    root = tmp_path / "mine"
    (root / "masks").mkdir(parents=True)
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(root / "masks/0.png")
    digest = hashlib.sha256((root / "masks/0.png").read_bytes()).hexdigest()
    rows = ["path,label,sha256,mask,mask_sha256"]
    for item in load_split(plant.data, "test").items[:2]:
        (root / item.path.name).write_bytes(item.path.read_bytes())
        rows.append(f"{item.path.name},0,{item.sha256},masks/0.png,{digest}")
    (plant.data / "test.csv").write_text("\n".join([*rows, ""]))
    sha256 = hashlib.sha256((plant.data / "test.csv").read_bytes()).hexdigest()
    edit(plant.data / "index.json", root=str(root), parts__test__sha256=sha256, ignore=255)
    return plant.data


def test_masks_go_with_their_images_whatever_the_root_is_here(masked, tmp_path):
    tree = trees.test_split_tree(masked)
    assert {name for name in tree if "mask" in name} == {"images/masks/0.png"}
    assert len(tree) == 5
    assert holds(tree)
    assert json.loads(tree["index.json"].source)["root"] == "images"
    there = load_split(lay_out(tree, tmp_path / "there"), "test")
    assert (there.masked, there.ignore) == (True, 255)
    assert all(item.mask.is_file() for item in there.items)


@pytest.mark.parametrize("which", ["path", "mask"])
def test_an_image_or_mask_that_is_missing_is_named(masked, which):
    gone = getattr(load_split(masked, "test").items[0], which)
    gone.unlink()
    with pytest.raises(ImageError, match=f"test file {gone}: cannot be read .No such file or directory.; restore it"):
        trees.test_split_tree(masked)
