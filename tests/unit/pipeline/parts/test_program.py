import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from pipeline.parts.predict import torch_logits
from pipeline.parts.program import load_program, program_logits, save_program
from tests import tiny

IMAGE = torch.zeros(1, 3, tiny.SIZE, tiny.SIZE)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    return save_program(tiny.model(tiny.STUDENT), IMAGE, tmp_path_factory.mktemp("program"))


@pytest.fixture
def no_pickle(monkeypatch):
    """Makes every way that torch has of reading a pickle fail."""

    def refuse(*_, **__):
        raise AssertionError("a pickle was read")

    for owner, name in ((torch, "load"), (pickle, "loads"), (pickle, "load"), (torch._C, "_pickle_load_obj")):
        monkeypatch.setattr(owner, name, refuse)


def test_the_file_answers_like_the_network_and_is_read_without_pickle(saved, no_pickle):
    images = np.random.default_rng(0).standard_normal((3, 3, tiny.SIZE, tiny.SIZE), dtype=np.float32)
    expected = tiny.stacked(torch_logits(tiny.model(tiny.STUDENT), images))
    actual = tiny.stacked(program_logits(saved, images))
    np.testing.assert_allclose(actual, expected, atol=1e-5)
    assert np.ptp(expected, axis=0).min() > 1e-3


def test_the_file_holds_no_pickle(saved):
    with zipfile.ZipFile(saved) as archive:
        contents = {name.partition("/")[2]: archive.read(name) for name in archive.namelist()}
    weights = json.loads(contents["data/weights/model_weights_config.json"])["config"]
    assert len(weights) == len(tiny.model(tiny.STUDENT).state_dict())
    assert not any(entry["use_pickle"] for entry in weights.values())
    assert json.loads(contents["data/constants/model_constants_config.json"]) == {"config": {}}
    assert contents["data/sample_inputs/model.pt"] == b""
    assert not [name for name, content in contents.items() if content.startswith((b"PK", b"\x80"))]


def test_a_pickle_would_be_seen(saved, no_pickle, tmp_path):
    program = load_program(saved)
    program.example_inputs = ((IMAGE,), {})
    torch.export.save(program, tmp_path / "program.pt2")
    with pytest.raises(AssertionError, match="a pickle was read"):
        load_program(tmp_path / "program.pt2")


def test_the_same_network_gives_the_same_bytes_without_paths_of_this_machine(saved, tmp_path):
    content = save_program(tiny.model(tiny.STUDENT), IMAGE, tmp_path).read_bytes()
    assert content == saved.read_bytes()
    assert b"site-packages" not in content
    assert b'File \\"' not in content


def test_the_batch_is_fixed_and_the_layers_keep_their_names(saved):
    program = load_program(saved)
    (value,) = [node.meta["val"] for node in program.graph.nodes if node.name == "x"]
    assert tuple(value.shape) == (1, 3, tiny.SIZE, tiny.SIZE)
    assert "blocks.1.mlp.fc1.weight" in program.state_dict
