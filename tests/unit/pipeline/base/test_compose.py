import os
import shutil
from pathlib import Path

import pytest
import yaml
from dvc.utils.hydra import compose_and_dump

from pipeline.base.compose import (
    check_fresh,
    compose_params,
    joined_overrides,
    recorded_overrides,
    to_yaml,
)
from pipeline.base.errors import ParamsError

ROOT = Path(__file__).parents[4]
CONFIGS = ROOT / "configs"
# Those with an underscore are what others build on.
FILES = sorted(file for file in CONFIGS.rglob("*.yaml") if not file.name.startswith("_"))
GROUPS = [(file.parent.name, file.stem) for file in FILES if file.parent != CONFIGS]
FILES_OF_TARGETS = ["experiment=tensorrt", "export.program=true"]
MASKS = ["data=folder_seg", "prepare.path=/images"]
NEEDED = {"named": ("prepare.name=hfds/user/name",), "segmentation": MASKS} | dict.fromkeys(
    ("folder", "split_folders", "list", "folder_seg"), ("prepare.path=/images",)
)


def test_the_committed_params_are_the_composition():
    assert (ROOT / "params.yaml").read_text() == to_yaml(compose_params(CONFIGS, []))


def test_dvc_writes_the_same_bytes(tmp_path):
    compose_and_dump(tmp_path / "params.yaml", str(CONFIGS), None, "config", "hydra_plugins", [])
    assert (tmp_path / "params.yaml").read_text() == to_yaml(compose_params(CONFIGS, []))


@pytest.mark.parametrize(("group", "name"), GROUPS, ids=lambda value: value)
def test_every_config_composes_to_valid_parameters(group, name):
    choice = {
        "target": f"+target@targets.extra={name}",
        "variant": f"+variant@quantize.variants.extra={name}",
        "experiment": f"experiment={name}",
        "foundation": f"foundation@foundations.grey32={name}",
    }
    needed = FILES_OF_TARGETS if group == "target" else NEEDED.get(name, ())
    composed = compose_params(CONFIGS, [choice.get(group, f"{group}={name}"), *needed])
    assert composed.seed == 0


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_config_opens_with_a_note_that_names_the_command(file):
    note = " ".join(line for line in file.read_text().splitlines() if line.startswith("#"))
    commands = {"foundation": f"make foundation PAIR={file.stem}", "target": "Run on:"}
    assert commands.get(file.parent.name, "slad repro") in note
    assert len(note) > 100


def test_overrides_are_applied_and_recorded():
    composed = compose_params(CONFIGS, ["distill.rank=4", "student=vit_small"])
    assert composed.distill.rank == 4
    assert composed.student.model == "vit_small_patch16_224"
    assert composed.preprocess.crop == [224, 224]
    assert composed.overrides == ["distill.rank=4", "student=vit_small"]


def test_data_with_masks_sets_the_task_and_one_size():
    composed = compose_params(CONFIGS, [*MASKS, "preprocess.crop=[128,256]"])
    assert (composed.task.name, composed.task.decoder) == ("segmentation", "linear")
    assert composed.teacher.image_size == composed.student.image_size == (128, 256)
    assert composed.teacher.model == composed.student.model == "vit_tiny_patch16_224"
    other = compose_params(CONFIGS, [*MASKS, "student=vit_small", "task.decoder=conv"])
    assert (other.student.model, other.student.image_size) == ("vit_small_patch16_224", (256, 256))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["task=segmentation"], "`task.name` is 'segmentation', but `prepare.source` 'digits' gives one class per"),
        ([*MASKS, "task=classification"], "`task.name` is 'classification', but `prepare.source` 'masks' gives a mask"),
        (
            [*MASKS, "preprocess.resize_mode=shortest", "preprocess.crop=[256,512]"],
            "set `preprocess.resize_mode` to squ",
        ),
        ([*MASKS, "augment.mixup=0.2"], "`augment.mixup` is 0.2, but masks are not mixed; set it to 0"),
        ([*MASKS, "augment.label_smoothing=0.1"], "`augment.label_smoothing` is 0.1"),
        ([*MASKS, "task.decoder=deep"], "`task.decoder` is 'deep'"),
        ([*MASKS, "task.class_weights=[1,0]"], "`task.class_weights.1` is 0"),
        ([*MASKS, "student.image_size=[256]"], "`student.image_size"),
    ],
)
def test_what_does_not_go_with_masks_is_one_line(overrides, words):
    with pytest.raises(ParamsError) as caught:
        compose_params(CONFIGS, overrides)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "words"),
    [
        (
            "distill.rnak=4",
            "`distill.rnak` is no key of what they choose (methods, for one, differ in their keys); leave",
        ),
        ("targets.cpu-openvino.install.keep=2", "in their keys); `+targets.cpu-openvino.install.keep` adds it, or"),
        ("student=nobody", "nobody"),
        ("target=cpu-openvino", "Did you mean to override one of target@targets"),
        ("distill.rank=0", "`distill.rank` is 0"),
        ("=", "cannot be composed"),
        ("data=folder", "`prepare.path` is not set"),
        ("prepare.path=/images", "no effect on the built-in digits; add data=folder"),
    ],
)
def test_a_wrong_override_is_one_line(override, words):
    with pytest.raises(ParamsError) as caught:
        compose_params(CONFIGS, [override])
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_another_folder_than_the_projects_is_named(tmp_path):
    with pytest.raises(ParamsError, match="no .*config.yaml .*run this in the project's folder"):
        compose_params(tmp_path / "configs", [])


def test_the_later_override_of_a_key_stands():
    assert joined_overrides(["a=1", "b=2"], ["a=3"]) == ["a=3", "b=2"]


@pytest.fixture
def project(tmp_path, monkeypatch):
    monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
    shutil.copytree(CONFIGS, tmp_path / "configs")
    params = tmp_path / "params.yaml"

    def sync(*overrides):
        params.write_text(to_yaml(compose_params(tmp_path / "configs", overrides)))
        return params, tmp_path / "configs"

    return sync


def test_fresh_parameters_pass_with_and_without_overrides(project):
    check_fresh(*project())
    check_fresh(*project("distill.rank=4"))
    assert recorded_overrides(project("distill.rank=4")[0]) == ["distill.rank=4"]


def test_an_edited_config_is_told_with_both_values(project):
    params, configs = project()
    method = configs / "method" / "slad.yaml"
    method.write_text(method.read_text().replace("rank: 32", "rank: 64"))
    with pytest.raises(ParamsError) as caught:
        check_fresh(params, configs)
    assert "`distill.rank` is 32 in params.yaml, 64 in configs/" in str(caught.value)
    assert "slad repro" in str(caught.value)


def test_a_hand_edit_is_told(project):
    params, configs = project()
    content = yaml.safe_load(params.read_text())
    content["distill"]["rank"] = 4
    del content["targets"]["cpu-openvino"]
    params.write_text(yaml.safe_dump(content))
    with pytest.raises(ParamsError) as caught:
        check_fresh(params, configs)
    assert "`distill.rank` is 4 in params.yaml, 32 in configs/" in str(caught.value)
    assert "`targets.cpu-openvino` is 'absent' in params.yaml" in str(caught.value)


def test_a_hand_edit_is_an_override_inside_a_dvc_experiment(project, monkeypatch):
    params, configs = project()
    content = yaml.safe_load(params.read_text())
    content["distill"]["rank"] = 4
    params.write_text(yaml.safe_dump(content))
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    check_fresh(params, configs)
    assert os.environ["DVC_EXP_BASELINE_REV"] == "abc"


def test_an_experiment_still_refuses_unknown_keys(project, monkeypatch):
    params, configs = project()
    params.write_text(params.read_text() + "nonsense: 1\n")
    monkeypatch.setenv("DVC_EXP_BASELINE_REV", "abc")
    with pytest.raises(ParamsError, match="`nonsense` is no known key"):
        check_fresh(params, configs)
