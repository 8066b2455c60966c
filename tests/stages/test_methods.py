"""Every method by its own configuration, and through every stage up to the report."""

import json
from pathlib import Path

import pytest
import timm
import yaml
from safetensors.torch import save_file

from pipeline.base.compose import compose_params, to_yaml
from pipeline.base.methods import METHODS
from pipeline.base.params import DistillStage, read_params
from stages.distill import method_of
from tests.stages.conftest import CHAIN, ROOT, SCHEDULE

CONFIGS = ROOT / "configs"


def read(folder: Path, *overrides: str):
    path = folder / "params.yaml"
    path.write_text(to_yaml(compose_params(CONFIGS, list(overrides))))
    return read_params(path, DistillStage)


def settings(method: str) -> dict:
    """The method's section, as small as the project of these tests."""
    section = yaml.safe_load(to_yaml(compose_params(CONFIGS, [f"method={method}"])))["distill"]
    schedules = {key: SCHEDULE for key in ("schedule", "teacher_schedule") if key in section}
    ranks = {"rank": 2} if "rank" in section else {}
    return section | schedules | ranks | {"batch_size": 6}


def exchanged(content: dict) -> dict:
    return {"teacher": content["student"], "student": content["teacher"]}


def without_teacher(content: dict) -> dict:
    return {"teacher": content["teacher"] | {"weights": "/nowhere/teacher.safetensors"}}


def cnn_student(content: dict) -> dict:
    return {
        "student": content["student"] | {"model": "test_efficientnet", "weights": "cnn.safetensors", "overrides": {}}
    }


CASES = [
    pytest.param("idat", exchanged, marks=pytest.mark.slow),
    pytest.param("student_only", without_teacher, marks=pytest.mark.slow),
    pytest.param("finetune_kd", cnn_student, marks=pytest.mark.slow),
    pytest.param("lora_kd", dict, marks=pytest.mark.slow),
    pytest.param("kd_lora", dict, marks=pytest.mark.slow),
    pytest.param("joint_lora", dict, marks=pytest.mark.slow),
    pytest.param("probe_kd", dict, marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("method", "change"), CASES)
def test_a_method_goes_through_all_stages(project, capsys, monkeypatch, method, change):
    content = yaml.safe_load((project.root / "params.yaml").read_text())
    changes = change(content) if change is not dict else {}
    project.set(distill=settings(method), **changes)
    save_file(timm.create_model("test_efficientnet").state_dict(), project.root / "cnn.safetensors")
    for stage in CHAIN[1:]:
        result = project.run(stage, capsys, monkeypatch)
        assert result.code == 0, f"{stage}: {result.error}"
    metrics = json.loads((project.root / "artifacts/distill/metrics.json").read_text())
    summary = json.loads((project.root / "reports/summary.json").read_text())
    assert metrics["method"] == summary["training"]["method"] == method
    assert ("teacher" in metrics) == (method != "student_only")
    for name in ("cpu-openvino", "cpu-onnxruntime"):
        record = json.loads((project.root / f"reports/{name}.json").read_text())
        assert record["failed"] == {}


@pytest.mark.parametrize("method", METHODS)
def test_the_configured_method_is_built(tmp_path, method):
    params = read(tmp_path, f"method={method}")
    built = method_of(params)
    given = params.distill
    assert built.name == method
    assert built.has_teacher == (method != "student_only")
    assert built.schedule.epochs == given.schedule.epochs
    assert built.schedule.learning_rate == given.schedule.learning_rate
    if hasattr(given, "rank"):
        assert (built.lora.rank, built.lora.scale) == (given.rank, given.alpha / given.rank)
        assert (built.lora.targets, built.lora.dropout, built.lora.norms) == (given.targets, given.dropout, given.norms)
    if hasattr(given, "weight_kl"):
        assert built.weights.distillation == given.weight_kl
        assert built.weights.student == given.weight_student
    if hasattr(given, "temperature"):
        assert built.weights.temperature == given.temperature
    if hasattr(given, "teacher_schedule"):
        assert built.teacher_schedule.learning_rate == given.teacher_schedule.learning_rate


def test_idat_is_built_as_its_authors_say(tmp_path):
    built = method_of(read(tmp_path, "method=idat", "distill.loss=kl"))
    assert built.hidden == 4
    weights = built.weights
    assert (weights.student, weights.teacher, weights.distillation) == (1, 1, 1)
    assert (weights.kind, weights.temperature, weights.detach, weights.squared_temperature) == ("kl", 5.0, False, False)


@pytest.mark.parametrize(
    ("override", "teacher", "student"),
    [
        ("method=lora_kd", "lora", "lora"),
        ("method=lora_kd distill.student_training=full", "lora", "full"),
        ("method=kd_lora", "full", "lora"),
        ("method=probe_kd", "probe", "full"),
        ("method=finetune_kd", "full", "full"),
    ],
)
def test_each_stage_trains_what_the_method_says(tmp_path, override, teacher, student):
    built = method_of(read(tmp_path, *override.split()))
    assert (built.teacher_training, built.student_training) == (teacher, student)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("distill.share=a_only", "share", "a_only"),
        ("distill.layer_map=last", "layer_map", "last"),
        ("distill.subset=random", "subset", "random"),
        ("distill.student_scale='sqrt(D/d)'", "student_scale", None),
        ("distill.student_scale=1", "student_scale", 1.0),
        ("distill.teacher_blocks=mapped", "teacher_blocks", "mapped"),
        ("seed=3", "seed", 3),
    ],
)
def test_how_slad_shares_is_configured(tmp_path, override, key, value):
    assert getattr(method_of(read(tmp_path, override)).sharing, key) == value


def test_the_control_shares_nothing(tmp_path):
    assert method_of(read(tmp_path, "method=joint_lora")).sharing.share == "none"
