"""CNNs: trained by every method that needs no LoRA in them, refused by the others with the names of those that do."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.sharing import ALTERNATIVES, Sharing
from pipeline.parts.index import Loaded, read_index
from pipeline.parts.models import ModelSpec, load_merged
from pipeline.parts.predict import torch_logits
from pipeline.steps.distill.alone import StudentOnly
from pipeline.steps.distill.joint import JointLora
from pipeline.steps.distill.objective import Weights
from pipeline.steps.merge import merge_models
from tests import tiny
from tests.unit.pipeline.steps.distill.methods import (
    LORA,
    METHODS,
    QV,
    SCHEDULE,
    cnn,
    curve_of,
    differences,
    logits_of,
    specs,
    staged,
    train,
    weights,
)

TRAINED = {
    "finetune_kd": METHODS["finetune_kd"],
    "probe_kd": METHODS["probe_kd"],
    "lora_kd with a fully trained student": staged("lora_kd", student_training="full"),
    "student_only, full": METHODS["student_only"],
    "student_only, probe": StudentOnly(training="probe", schedule=SCHEDULE),
}
REFUSED = {
    "slad": METHODS["slad"],
    "joint_lora": METHODS["joint_lora"],
    "lora_kd": METHODS["lora_kd"],
    "kd_lora": staged("kd_lora", lora=QV),
    "student_only, lora": StudentOnly(training="lora", lora=LORA, schedule=SCHEDULE),
}


@pytest.mark.parametrize(
    "case", [case if case == "finetune_kd" else pytest.param(case, marks=pytest.mark.slow) for case in TRAINED]
)
def test_a_cnn_is_trained_and_merged(tmp_path, tested, untested, pretrained, case):
    pair = specs(pretrained, case) | {"student": cnn(pretrained)}
    train(tmp_path / "out", untested, TRAINED[case], pair)
    curve = curve_of(tmp_path / "out")
    student = [row for row in curve if row["phase"] == "student"]
    assert float(student[-1]["loss"]) < float(student[0]["loss"])
    rows = (tmp_path / "out/cka.csv").read_text().splitlines()
    assert [row.split(",")[0] for row in rows] == ["layer", "last"]
    (tmp_path / "merged").mkdir()
    merge_models(tmp_path / "merged", distilled=tmp_path / "out", data=tested, tolerance=1e-5, load=tiny.LOAD, **pair)
    model, _ = load_merged(tmp_path / "merged", "student", cnn(pretrained))
    index, root = read_index(untested)
    images = Loaded(root, index.parts["validation"], load=tiny.LOAD.image)
    np.testing.assert_allclose(
        tiny.stacked(torch_logits(model, images)), logits_of(tmp_path / "out")["student"], atol=1e-3
    )
    record = json.loads((tmp_path / "merged/friendliness.json").read_text())
    assert record["layers"] == 15  # without the new head
    assert record["layers_not_observed"] == 0
    assert record["after"]["lowest_group_sqnr_db"] > 10
    assert (record["before"] == record["after"]) == (case == "student_only, probe")


def test_a_student_from_random_weights_has_no_before(tmp_path, tested, untested):
    pair = {"teacher": tiny.TEACHER, "student": ModelSpec("test_resnet", "random", tiny.SIZE)}
    train(tmp_path / "out", untested, TRAINED["student_only, full"], pair)
    (tmp_path / "merged").mkdir()
    merge_models(tmp_path / "merged", distilled=tmp_path / "out", data=tested, tolerance=1e-5, load=tiny.LOAD, **pair)
    record = json.loads((tmp_path / "merged/friendliness.json").read_text())
    assert "before" not in record
    assert record["layers"] == 16


@pytest.mark.parametrize("case", ["student_only, probe", "student_only, full"])
def test_probing_moves_no_statistic_of_a_batch_norm(tmp_path, tested, untested, pretrained, case):
    pair = specs(pretrained, case) | {"student": cnn(pretrained)}
    train(tmp_path / "out", untested, TRAINED[case], pair)
    (tmp_path / "merged").mkdir()
    merge_models(tmp_path / "merged", distilled=tmp_path / "out", data=tested, tolerance=1e-5, load=tiny.LOAD, **pair)
    changed, added = differences(weights(pretrained, "cnn"), tmp_path / "merged/student.safetensors")
    assert added == {"fc.weight", "fc.bias"}
    everything = set(load_file(weights(pretrained, "cnn")))
    assert any("running_mean" in name for name in everything)
    assert changed == (set() if case == "student_only, probe" else everything)


@pytest.mark.parametrize("name", ["finetune_kd", "probe_kd"])
def test_a_cnn_can_teach_a_transformer(tmp_path, untested, pretrained, name):
    pair = specs(pretrained, name) | {"teacher": cnn(pretrained)}
    accuracies = train(tmp_path / "out", untested, METHODS[name], pair)
    assert accuracies["student"] > 60
    if name == "probe_kd":
        trained = load_file(tmp_path / "out/teacher.safetensors")
        before = load_file(weights(pretrained, "cnn"))
        statistics = {key for key in trained if "running_" in key}
        assert statistics
        assert all(torch.equal(trained[key], before[key]) for key in statistics)


@pytest.mark.parametrize("case", REFUSED)
def test_a_cnn_student_without_lora_is_told_which_methods_can_train_it(tmp_path, untested, pretrained, case):
    # The weights do not exist: the refusal comes before they are looked for.
    pair = specs(pretrained, case) | {"student": ModelSpec("test_resnet", "/nowhere/cnn.safetensors", tiny.SIZE)}
    with pytest.raises(ModelError, match="the student, a ResNet has none; " + re.escape(ALTERNATIVES)):
        train(tmp_path / "out", untested, REFUSED[case], pair)
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("case", ["slad", "joint_lora", "lora_kd", "idat"])
def test_a_cnn_teacher_is_refused_where_it_would_need_adapters(tmp_path, untested, pretrained, case):
    pair = specs(pretrained, case) | {"teacher": cnn(pretrained)}
    with pytest.raises(ModelError, match="the teacher, a ResNet has none"):
        train(tmp_path / "out", untested, METHODS[case], pair)


def test_sharing_nothing_does_not_make_a_cnn_adaptable(tmp_path, untested, pretrained):
    method = JointLora(lora=LORA, sharing=Sharing(share="none"), weights=Weights(), schedule=SCHEDULE)
    pair = specs(pretrained, "slad") | {"student": cnn(pretrained)}
    with pytest.raises(ModelError, match="ResNet has none"):
        train(tmp_path / "out", untested, method, pair)
