import shutil

import pytest

from tests import tiny


@pytest.fixture
def images(tmp_path):
    return tiny.write_images(tmp_path / "images")


@pytest.fixture
def output(tmp_path):
    return tmp_path / "data"


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
