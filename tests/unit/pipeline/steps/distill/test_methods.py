"""One matrix over all methods: each learns, leaves the same record, and trains only what it says."""

import csv
import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from pipeline.parts.index import Loaded, read_index
from pipeline.parts.models import build_model, load_merged
from pipeline.parts.predict import torch_logits
from pipeline.steps.merge import merge_models
from tests import tiny
from tests.unit.pipeline.steps.distill.methods import (
    EPOCHS,
    METHODS,
    curve_of,
    differences,
    logits_of,
    specs,
    train,
    weights,
)

RECORD = {
    "student.safetensors",
    "teacher.safetensors",
    "validation_logits.npz",
    "metrics.json",
    "curves.csv",
    "cka.csv",
    "cost.json",
    "cost.csv",
}
COST = {"cost.json", "cost.csv"}
JOINT = {"loss", "ce_teacher", "ce_student"}
# Loss columns of each stage.
STAGES = {
    "slad": {"joint": JOINT | {"kl"}},
    "joint_lora": {"joint": JOINT | {"kl"}},
    **{
        name: {"teacher": {"loss", "ce_teacher"}, "student": {"loss", "ce_student", "kl"}}
        for name in ("lora_kd", "probe_kd", "finetune_kd", "kd_lora")
    },
    "idat": {"joint": JOINT | {"mse"}},
    "student_only": {"student": {"loss", "ce_student"}},
}
# Which parts of teacher and student each method changes.
CHANGES = {
    "slad": ("qkv", "qkv"),
    "joint_lora": ("qkv", "qkv"),
    "lora_kd": ("qkv", "qkv"),
    "probe_kd": ("head", "all"),
    "finetune_kd": ("all", "all"),
    "kd_lora": ("all", "qv"),
    "idat": ("bottlenecks", "bottlenecks"),
    "student_only": (None, "all"),
}
LARGE, SMALL = (
    sum(p.numel() for p in build_model(spec, num_classes=3, role="student").parameters())
    for spec in (tiny.TEACHER, tiny.STUDENT)
)
HEADS = {"large": 3 * 24 + 3, "small": 3 * 16 + 3}
TRAINED = {
    "slad": 4 * 3 * 2 * 2 * 24
    + sum(HEADS.values()),  # blocks, projections, A and B, rank, width: the student adds none
    "joint_lora": 4 * 3 * 2 * 2 * 24 + 2 * 3 * 2 * 2 * 16 + sum(HEADS.values()),
    "lora_kd": 4 * 3 * 2 * 2 * 24 + 2 * 3 * 2 * 2 * 16 + sum(HEADS.values()),
    "probe_kd": HEADS["large"] + SMALL,
    "finetune_kd": LARGE + SMALL,
    "kd_lora": LARGE + 2 * 2 * 2 * 2 * 16 + HEADS["small"],
    "idat": 4 * (2 * 24 * 4 + 24 + 4) + 2 * (2 * 16 * 4 + 16 + 4) + sum(HEADS.values()),
    "student_only": SMALL,
}


@dataclass(frozen=True)
class Trained:
    """A finished training, merged."""

    name: str
    output: Path
    merged: Path
    accuracies: dict[str, float]

    @property
    def roles(self) -> set[str]:
        return {"student"} if self.name == "student_only" else {"teacher", "student"}

    def metrics(self) -> dict:
        return json.loads((self.output / "metrics.json").read_text())


@pytest.fixture(scope="module", params=METHODS)
def trained(request, tmp_path_factory, tested, untested, pretrained) -> Trained:
    name = request.param
    root = tmp_path_factory.mktemp(name)
    pair = specs(pretrained, name)
    if name == "student_only":
        pair["teacher"] = tiny.spec(width=5, depth=1, heads=2, weights="/nowhere/teacher.safetensors")
    accuracies = train(root / "distilled", untested, METHODS[name], pair)
    (root / "merged").mkdir()
    parity = merge_models(
        root / "merged", distilled=root / "distilled", data=tested, tolerance=1e-5, load=tiny.LOAD, **pair
    )
    assert parity.passed
    return Trained(name, root / "distilled", root / "merged", accuracies)


def test_the_student_learns(trained):
    assert trained.accuracies.keys() == trained.roles
    assert trained.accuracies["student"] > 60  # brightness tells the three classes apart; chance is 33
    curve = curve_of(trained.output)
    last = [row for row in curve if row["phase"] == curve[-1]["phase"]]
    assert float(last[-1]["loss"]) < float(last[0]["loss"])


def test_every_method_leaves_the_same_record(trained):
    absent = {"teacher.safetensors"} if trained.name == "student_only" else set()
    assert {file.name for file in trained.output.iterdir()} == RECORD - absent
    metrics = trained.metrics()
    keys = {"schema", "method", "metric", "trained_parameters", "cka"} | trained.roles
    assert metrics.keys() == (keys - {"cka"} if trained.name == "student_only" else keys)
    assert metrics["schema"] == 2
    assert metrics["method"] == trained.name
    for role in trained.roles:
        found = metrics[role]["validation_accuracy_percent"]
        assert found == pytest.approx(trained.accuracies[role], abs=1e-3)
    cost = json.loads((trained.output / "cost.json").read_text())
    assert cost["training_seconds"] > 0
    assert cost["memory_peak_mb"] > 1
    assert len((trained.output / "cost.csv").read_text().splitlines()) == 1 + len(curve_of(trained.output))


def test_the_curve_tells_each_stage_its_epochs_and_its_losses(trained):
    curve = curve_of(trained.output)
    stages = STAGES[trained.name]
    assert [row["phase"] for row in curve] == [stage for stage in stages for _ in range(EPOCHS)]
    assert [int(row["epoch"]) for row in curve] == list(range(1, EPOCHS * len(stages) + 1))
    for row in curve:
        filled = {name for name, cell in row.items() if cell}
        scores = {f"{role}_accuracy_percent" for role in trained.roles}
        assert filled == stages[row["phase"]] | scores | {"epoch", "phase", "learning_rate"}
    for role in trained.roles:
        assert float(curve[-1][f"{role}_accuracy_percent"]) == pytest.approx(trained.accuracies[role], abs=1e-3)


def test_as_many_numbers_are_trained_as_the_method_says(trained):
    assert trained.metrics()["trained_parameters"] == TRAINED[trained.name]


def test_every_method_says_what_it_did_to_int8(trained):
    with (trained.merged / "friendliness.csv").open(newline="") as file:
        rows = {row["layer"]: row for row in csv.DictReader(file)}
    blocks = 4 if trained.name == "idat" else 2
    new = (
        {f"blocks.{i}.{layer}" for i in range(blocks) for layer in ("down", "up")} if trained.name == "idat" else set()
    )
    assert len(rows) == 1 + 4 * blocks + len(new) + 1
    assert {name for name, row in rows.items() if not row["sqnr_db_before"]} == {"head"} | new
    assert all(float(row["sqnr_db_after"]) > 10 for row in rows.values())
    first = rows["patch_embed.proj"]
    assert (first["sqnr_db_before"] != first["sqnr_db_after"]) == (CHANGES[trained.name][1] == "all")


def expected_changes(part: str, names: set[str]) -> set[str]:
    return {
        "all": names,
        "head": set(),
        "bottlenecks": set(),
        "qkv": {name for name in names if name.endswith("qkv.weight")},
        "qv": {name for name in names if name.endswith("qkv.weight")},
    }[part]


def test_nothing_else_is_trained(trained, pretrained):
    sizes = {"teacher": "large", "student": "small"}
    if trained.name == "idat":
        sizes = {"teacher": "small", "student": "large"}
    for role, part in zip(("teacher", "student"), CHANGES[trained.name], strict=True):
        if part is None:
            assert not (trained.merged / f"{role}.safetensors").exists()
            continue
        before, after = weights(pretrained, sizes[role]), trained.merged / f"{role}.safetensors"
        changed, added = differences(before, after)
        assert changed == expected_changes(part, set(load_file(before)))
        new = {
            f"blocks.{i}.{layer}.{kind}" for i in range(4) for layer in ("down", "up") for kind in ("weight", "bias")
        }
        blocks = {name for name in new if part == "bottlenecks" and (sizes[role] == "large" or int(name[7]) < 2)}
        assert added == {"head.weight", "head.bias"} | blocks
        if part == "qv":
            key = "blocks.0.attn.qkv.weight"
            one, two = load_file(before)[key], load_file(after)[key]
            assert (one[16:32] == two[16:32]).all()
            assert (one[:16] != two[:16]).any()
            assert (one[32:] != two[32:]).any()


def test_the_merged_student_answers_like_the_trained_one(trained, untested, pretrained):
    index, root = read_index(untested)
    images = Loaded(root, index.parts["validation"], load=tiny.LOAD.image)
    for role in trained.roles:
        model, labels = load_merged(trained.merged, role, specs(pretrained, trained.name)[role])
        assert labels == list(index.labels)
        np.testing.assert_allclose(
            tiny.stacked(torch_logits(model, images)), logits_of(trained.output)[role], atol=1e-4
        )


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes_and_another_seed_does_not(trained, tmp_path, untested, pretrained):
    pair, method = specs(pretrained, trained.name), METHODS[trained.name]
    for name, seed in (("again", 0), ("other", 1)):
        train(tmp_path / name, untested, method, pair, seed=seed)
    for file in trained.output.iterdir():
        again, other = (tmp_path / name / file.name for name in ("again", "other"))
        assert file.name in COST or file.read_bytes() == again.read_bytes(), file.name
        if file.suffix == ".safetensors":
            assert file.read_bytes() != other.read_bytes()
