"""The command `slad`, as far as it runs no stage."""

import shutil

import pytest
import yaml
from typer.testing import CliRunner

from stages.__main__ import app
from tests import tiny
from tests.stages.conftest import ROOT


@pytest.fixture
def slad(tmp_path, monkeypatch):
    shutil.copytree(ROOT / "configs", tmp_path / "configs")
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return invoke


def prepared(folder):
    return yaml.safe_load((folder / "params.yaml").read_text())["prepare"]


def test_images_are_taken_as_classes_or_as_splits(slad, tmp_path):
    classes = tiny.write_images(tmp_path / "it's, mine")
    assert slad("sync", "--images", classes).exit_code == 0
    assert (prepared(tmp_path)["source"], prepared(tmp_path)["path"]) == ("folder", str(classes))
    splits = tmp_path / "splits"
    for name in ("train", "test"):
        shutil.copytree(classes, splits / name)
    assert slad("sync", "--images", splits).exit_code == 0
    assert (prepared(tmp_path)["source"], prepared(tmp_path)["path"]) == ("split_folders", str(splits))


def test_a_class_may_be_called_train(slad, tmp_path):
    classes = tiny.write_images(tmp_path / "vehicles")
    (classes / "class_0").rename(classes / "train")
    (classes / "train/.hidden").mkdir()
    assert slad("sync", "--images", classes).exit_code == 0
    assert prepared(tmp_path)["source"] == "folder"


def test_images_that_are_not_there_change_nothing(slad, tmp_path):
    assert slad("sync").exit_code == 0
    before = (tmp_path / "params.yaml").read_bytes()
    assert slad("sync", "--images", tmp_path / "nowhere").exit_code == 3
    assert (tmp_path / "params.yaml").read_bytes() == before


def test_a_list_is_a_file(slad, tmp_path):
    (tmp_path / "list.csv").write_text("path,label\n")
    assert slad("sync", "data=list", f"prepare.path={tmp_path / 'list.csv'}").exit_code == 0
    assert prepared(tmp_path)["source"] == "list"
    assert slad("sync", "data=list", f"prepare.path={tmp_path}").exit_code == 3


def test_a_named_set_need_not_be_there_yet(slad, tmp_path):
    named = ("data=named", "prepare.name=torch/cifar10", f"prepare.path={tmp_path / 'later'}", "prepare.download=true")
    assert slad("sync", *named).exit_code == 0


def test_a_recorded_override_stays_until_it_is_reset(slad, tmp_path):
    assert slad("sync", "distill.rank=4").exit_code == 0
    assert slad("sync", "seed=1").exit_code == 0
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["overrides"] == ["distill.rank=4", "seed=1"]
    refused = slad("sync", "method=finetune_kd")
    assert refused.exit_code == 2
    assert slad("sync", "--reset", "method=finetune_kd").exit_code == 0
    assert yaml.safe_load((tmp_path / "params.yaml").read_text())["overrides"] == ["method=finetune_kd"]
