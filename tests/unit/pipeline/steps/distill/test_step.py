"""What a training refuses, and what decides about its result."""

import json
from dataclasses import replace

import pytest
import torch

from pipeline.base.errors import ModelError, ParamsError, WeightsError
from pipeline.parts.data import Mixing
from pipeline.parts.index import Index, read_index, write_index
from pipeline.steps.distill import step
from pipeline.steps.distill.idat import Idat
from pipeline.steps.distill.joint import JointLora
from pipeline.steps.distill.method import Lora, trained_by
from pipeline.steps.merge import merge_models
from tests import tiny
from tests.alone import alone
from tests.unit.pipeline.steps.distill.methods import (
    LORA,
    METHODS,
    SCHEDULE,
    curve_of,
    differences,
    logits_of,
    specs,
    staged,
    train,
    weights,
)

SHORT = replace(SCHEDULE, epochs=2)
QUICK: JointLora = replace(METHODS["slad"], schedule=SHORT)


def test_images_with_masks_are_refused(tmp_path, untested, pretrained):
    index, root = read_index(untested)
    parts = {
        name: items.replaced(mask=items.columns["path"], mask_sha256=items.columns["sha256"])
        for name, items in index.parts.items()
    }
    (tmp_path / "masked").mkdir()
    write_index(Index(index.labels, str(root), parts), tmp_path / "masked")
    with pytest.raises(
        ParamsError, match="`task` is for a class per image, but the data has masks; .* data=folder_seg"
    ):
        train(tmp_path / "out", tmp_path / "masked", QUICK, specs(pretrained, "slad"))


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if method.has_teacher])
def test_a_method_with_a_teacher_refuses_to_go_without(name):
    with pytest.raises(ModelError, match=f"{name} needs a teacher"):
        METHODS[name].phases(None, tiny.model(tiny.STUDENT))


def test_idat_refuses_a_teacher_larger_than_its_student(tmp_path, untested, pretrained):
    with pytest.raises(ModelError, match="idat trains a large student.*exchange them: teacher=vit_96x3"):
        train(tmp_path / "out", untested, METHODS["idat"], specs(pretrained, "slad"))


def test_idat_takes_equal_models(tmp_path, untested, pretrained):
    pair = specs(pretrained, "slad")
    method: Idat = replace(METHODS["idat"], schedule=SHORT)
    accuracies = train(tmp_path / "out", untested, method, {"teacher": pair["student"], "student": pair["student"]})
    assert set(accuracies) == {"teacher", "student"}
    assert len(curve_of(tmp_path / "out")) == SHORT.epochs


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_images_of_another_size_are_refused_before_weights_are_looked_for(tmp_path, untested, pretrained, role):
    pair = specs(pretrained, "slad")
    pair[role] = replace(pair[role], image_size=32, weights="/nowhere/weights.safetensors")
    with pytest.raises(ModelError, match=rf"`preprocess.crop` is \[16, 16\], but `{role}.image_size` is 32"):
        train(tmp_path / "out", untested, QUICK, pair)


def test_missing_weights_are_told_by_role(tmp_path, untested, pretrained):
    pair = specs(pretrained, "slad")
    pair["teacher"] = replace(pair["teacher"], weights="/nowhere/teacher.safetensors")
    with pytest.raises(WeightsError, match="`teacher.weights`: no file '/nowhere/teacher.safetensors'"):
        train(tmp_path / "out", untested, QUICK, pair)


def test_a_micro_batch_that_does_not_divide_is_refused(tmp_path, untested, pretrained):
    with pytest.raises(ParamsError, match="do not divide evenly"):
        train(tmp_path / "out", untested, QUICK, specs(pretrained, "slad"), micro_batch=4)


@pytest.mark.parametrize("name", ["slad", "finetune_kd"])
def test_micro_batches_leave_the_result_as_it_is(tmp_path, untested, pretrained, name):
    method = QUICK if name == "slad" else staged(name, teacher_schedule=SHORT, schedule=SHORT)
    for folder, micro_batch in (("whole", None), ("parts", 2)):
        train(tmp_path / folder, untested, method, specs(pretrained, name), micro_batch=micro_batch)
    whole, parts = logits_of(tmp_path / "whole"), logits_of(tmp_path / "parts")
    for role, logits in whole.items():
        torch.testing.assert_close(torch.tensor(parts[role]), torch.tensor(logits), atol=1e-3, rtol=1e-3)


def test_the_student_stage_knows_the_teacher_that_patience_chose(tmp_path, untested, pretrained):
    long = replace(SCHEDULE, epochs=8, learning_rate=0.05, patience=1)
    method = staged("finetune_kd", teacher_schedule=long, schedule=SHORT)
    accuracies = train(tmp_path / "out", untested, method, specs(pretrained, "finetune_kd"))
    curve = curve_of(tmp_path / "out")
    teacher = [float(row["teacher_accuracy_percent"]) for row in curve if row["phase"] == "teacher"]
    assert teacher[-1] < max(teacher)  # else this test would show nothing
    later = {float(row["teacher_accuracy_percent"]) for row in curve if row["phase"] == "student"}
    assert later == {max(teacher)}
    assert accuracies["teacher"] == pytest.approx(max(teacher))


def test_rarer_validation_changes_nothing_but_the_curve(tmp_path, untested, pretrained):
    long = replace(SCHEDULE, epochs=5)
    method = staged("finetune_kd", teacher_schedule=SHORT, schedule=long)
    for every in (1, 3):
        train(tmp_path / str(every), untested, method, specs(pretrained, "finetune_kd"), validate_every=every)
    for file in ("teacher.safetensors", "student.safetensors", "metrics.json"):
        assert (tmp_path / "1" / file).read_bytes() == (tmp_path / "3" / file).read_bytes()
    always, rarely = curve_of(tmp_path / "1"), curve_of(tmp_path / "3")
    validated = [place for place, row in enumerate(rarely) if row["student_accuracy_percent"]]
    assert validated == [SHORT.epochs - 1, SHORT.epochs + 2, SHORT.epochs + 4]  # each stage's last, and its third
    for place, (row, other) in enumerate(zip(always, rarely, strict=True)):
        blank = (
            {} if place in validated else dict.fromkeys(("teacher_accuracy_percent", "student_accuracy_percent"), "")
        )
        assert other == row | blank


def test_validation_holds_no_more_images_at_once_than_training(tmp_path, untested, pretrained, monkeypatch):
    sizes = []
    original = step.evaluation_batches

    def spied(*args, **options):
        for images, labels in original(*args, **options):
            sizes.append(len(images))
            yield images, labels

    monkeypatch.setattr(step, "evaluation_batches", spied)
    train(tmp_path / "out", untested, QUICK, specs(pretrained, "slad"), micro_batch=2)
    assert max(sizes) == 2


def with_workers(output, data, folder):
    for name, workers in (("here", 0), ("there", 2)):
        train(output / name, data, QUICK, specs(folder, "slad"), workers=workers)


@pytest.mark.slow
def test_worker_processes_leave_the_bytes_as_they_are(tmp_path, untested, pretrained):
    alone(with_workers, tmp_path, untested, pretrained)
    for file in ("teacher.safetensors", "student.safetensors", "metrics.json", "curves.csv", "cka.csv"):
        assert (tmp_path / "here" / file).read_bytes() == (tmp_path / "there" / file).read_bytes()


@pytest.mark.parametrize("kind", ["slad", "finetune_kd"])
def test_mixed_batches_can_be_trained_on(tmp_path, untested, pretrained, kind):
    method = QUICK if kind == "slad" else staged(kind, teacher_schedule=SHORT, schedule=SHORT)
    mixing = Mixing(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    for folder, options in (("plain", {}), ("mixed", {"mixing": mixing}), ("again", {"mixing": mixing})):
        train(tmp_path / folder, untested, method, specs(pretrained, kind), **options)
    one, two, plain = (curve_of(tmp_path / folder) for folder in ("mixed", "again", "plain"))
    assert one == two
    assert one != plain


@pytest.mark.parametrize(
    "mixing", [Mixing(mixup=0.2), Mixing(cutmix=1.0), Mixing(label_smoothing=0.1)], ids=["mixup", "cutmix", "smoothing"]
)
@pytest.mark.parametrize(("batch_size", "micro_batch"), [(9, None), (6, 3)])
def test_an_odd_batch_cannot_be_mixed(tmp_path, untested, pretrained, mixing, batch_size, micro_batch):
    sizes = {"batch_size": batch_size, "micro_batch": micro_batch}
    with pytest.raises(
        ParamsError, match=f"in pairs, but {micro_batch or batch_size} are in a forward pass; change `dis"
    ):
        train(tmp_path / "out", untested, QUICK, specs(pretrained, "slad"), mixing=mixing, **sizes)


@pytest.mark.parametrize("judged", ["teacher", "student"])
def test_patience_keeps_the_best_epoch_of_the_model_that_a_stage_trains(tmp_path, untested, pretrained, judged):
    patient = replace(SCHEDULE, epochs=6, learning_rate=0.05, patience=2)
    schedules = {"teacher": "teacher_schedule", "student": "schedule"}
    method = staged("finetune_kd", **dict.fromkeys(schedules.values(), SHORT) | {schedules[judged]: patient})
    accuracies = train(tmp_path / "out", untested, method, specs(pretrained, "finetune_kd"))
    curve = [row for row in curve_of(tmp_path / "out") if row["phase"] == judged]
    found = [float(row[f"{judged}_accuracy_percent"]) for row in curve]
    assert accuracies[judged] == pytest.approx(max(found), abs=1e-3)
    assert len(found) == min(6, found.index(max(found)) + 1 + 2)


def test_the_average_is_what_is_recorded(tmp_path, untested, pretrained):
    method = replace(METHODS["student_only"], schedule=replace(SCHEDULE, epochs=3, ema=0.9))
    accuracies = train(tmp_path / "out", untested, method, specs(pretrained, "student_only"))
    last = float(curve_of(tmp_path / "out")[-1]["student_accuracy_percent"])
    assert accuracies["student"] == pytest.approx(last, abs=1e-3)
    logits = torch.tensor(logits_of(tmp_path / "out")["student"])
    plain = replace(METHODS["student_only"], schedule=replace(SCHEDULE, epochs=3))
    train(tmp_path / "plain", untested, plain, specs(pretrained, "student_only"))
    assert not torch.equal(logits, torch.tensor(logits_of(tmp_path / "plain")["student"]))


@pytest.mark.parametrize("training", ["lora", "probe", "full"])
@pytest.mark.parametrize("norms", [False, True])
def test_what_each_way_of_training_trains(training, norms):
    model = tiny.model(tiny.STUDENT)
    lora = replace(LORA, norms=norms)
    names = set(trained_by(training, model, lora=lora, role="student"))
    head = {"head.weight", "head.bias"}
    factors = {f"blocks.{i}.attn.qkv.sources.{p}.{part}" for i in range(2) for p in "qkv" for part in "ab"}
    flat = {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
    expected = {"probe": head, "lora": head | factors | (flat if norms else set()), "full": set(tiny_names())}
    assert names == expected[training]


def tiny_names():
    return dict(tiny.model(tiny.STUDENT).named_parameters())


def test_norms_that_are_trained_are_recorded_and_merged(tmp_path, tested, untested, pretrained):
    method = replace(QUICK, lora=Lora(targets=("q", "v"), rank=2, alpha=4.0, norms=True))
    train(tmp_path / "out", untested, method, specs(pretrained, "slad"))
    plain = replace(QUICK, lora=Lora(targets=("q", "v"), rank=2, alpha=4.0))
    train(tmp_path / "plain", untested, plain, specs(pretrained, "slad"))
    counts = [json.loads((tmp_path / name / "metrics.json").read_text()) for name in ("out", "plain")]
    norms = sum(p.numel() for which in (tiny.TEACHER, tiny.STUDENT) for p in flat_body(which))
    assert counts[0]["trained_parameters"] - counts[1]["trained_parameters"] == norms
    (tmp_path / "merged").mkdir()
    pair = specs(pretrained, "slad")
    merge_models(tmp_path / "merged", distilled=tmp_path / "out", data=tested, tolerance=1e-5, load=tiny.LOAD, **pair)
    changed, _ = differences(weights(pretrained, "small"), tmp_path / "merged/student.safetensors")
    assert changed == {
        name for name, p in tiny.model(tiny.STUDENT).named_parameters() if p.ndim <= 1 and not name.startswith("head.")
    } | {f"blocks.{i}.attn.qkv.weight" for i in range(2)}


def flat_body(which):
    return [p for name, p in tiny.model(which).named_parameters() if p.ndim <= 1 and not name.startswith("head.")]
