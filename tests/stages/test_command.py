"""The command `slad`, as far as it runs no stage."""

import json
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


def test_doctor_and_spec_of_a_target_that_is_only_a_file(slad, tmp_path):
    printed = slad("spec", "cpu-onnxruntime")
    assert printed.exit_code == 0
    section = json.loads(printed.stdout)
    assert section == yaml.safe_load((tmp_path / "configs/target/cpu-onnxruntime.yaml").read_text())
    section["options"] = {"provider": "openvino"}
    (tmp_path / "configs/target/mine.yaml").write_text(yaml.safe_dump(section))
    examined = slad("doctor", "--target", "mine", "--target", "cpu-onnxruntime", "--json")
    assert examined.exit_code == 7
    verdicts = {name: each["verdict"] for name, each in json.loads(examined.stdout)["here"]["targets"].items()}
    assert verdicts == {"mine": "will not work", "cpu-onnxruntime": "will work"}
    for refused in (("doctor", "--target", "yours"), ("spec", "yours")):
        assert slad(*refused).exit_code == 2


def test_the_section_of_params_yaml_comes_first(slad, tmp_path):
    assert slad("sync", "targets.cpu-onnxruntime.threads=3").exit_code == 0
    assert json.loads(slad("spec", "cpu-onnxruntime").stdout)["threads"] == 3
    examined = slad("doctor")
    assert (examined.exit_code, examined.stdout.count("will work")) == (0, 2)
    assert "Target cpu-onnxruntime" in examined.stdout


def test_every_target_has_a_section_to_copy(slad):
    for file in (ROOT / "configs/target").glob("*.yaml"):
        done = slad("spec", file.stem)
        assert json.loads(done.stdout)["variants"], file


def test_a_target_that_cannot_run_here_is_refused_and_not_remembered(slad, tmp_path, monkeypatch):
    monkeypatch.setattr("stages.__main__.subprocess.run", lambda *_, **__: pytest.fail("DVC was reached"))
    assert slad("sync").exit_code == 0
    before = (tmp_path / "params.yaml").read_text()
    done = slad("repro", "+target@targets.far=cpu-openvino", "+targets.far.options={device: GPU.9}")
    assert done.exit_code == 7
    assert "nothing was run: target 'far': OpenVINO's device GPU.9 does not run here" in done.output
    assert (tmp_path / "params.yaml").read_text() == before
