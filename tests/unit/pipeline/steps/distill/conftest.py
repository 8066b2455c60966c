"""Images and weights that no test of this folder changes."""

from pathlib import Path

import pytest

from pipeline.parts.index import read_index
from tests import tiny
from tests.unit.pipeline.steps.distill.methods import write_weights


@pytest.fixture(scope="session")
def tested(tmp_path_factory) -> Path:
    """An index with all of its images."""
    root = tmp_path_factory.mktemp("tested")
    tiny.prepared(root / "index", tiny.write_images(root / "images"))
    return root / "index"


@pytest.fixture(scope="session")
def untested(tmp_path_factory) -> Path:
    """The same, but its test images are gone: whoever reads one of them fails."""
    root = tmp_path_factory.mktemp("untested")
    tiny.prepared(root / "index", tiny.write_images(root / "images"))
    index, _ = read_index(root / "index")
    assert len(index.parts["test"])
    for item in index.parts["test"]:
        (root / "images" / item.path).unlink()
    return root / "index"


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory) -> Path:
    """Folder of the pretrained weights."""
    folder = tmp_path_factory.mktemp("pretrained") / "weights"
    write_weights(folder)
    return folder
