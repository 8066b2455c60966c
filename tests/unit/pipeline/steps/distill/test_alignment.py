import csv
import json
import math

import pytest
import torch
from torch import nn

from pipeline.parts.cka import features, linear_cka
from pipeline.steps.distill.alignment import MOST_IMAGES, Alignment
from tests import tiny
from tests.unit.pipeline.steps.distill.methods import METHODS, cnn, specs, staged, train

X = [torch.randn(5, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(i)) for i in range(2)]
LARGE, SMALL = tiny.TEACHER, tiny.STUDENT


def moved(model):
    for parameter in model.blocks[1].parameters():
        nn.init.normal_(parameter, std=0.5)
    return model


@pytest.mark.parametrize(
    ("teacher", "student", "pairs"),
    [(LARGE, SMALL, [(0, 0), (2, 1)]), (SMALL, LARGE, [(0, 0), (1, 2)]), (SMALL, SMALL, [(0, 0), (1, 1)])],
    ids=["deep teacher", "deep student", "equal"],
)
def test_mapped_blocks_are_compared_before_and_after(teacher, student, pairs):
    models = {"teacher": tiny.model(teacher), "student": tiny.model(student, seed=1)}
    frozen = {role: features(model, X, blocks=range(len(model.blocks))) for role, model in models.items()}
    alignment = Alignment(models, X)
    moved(models["student"])
    trained = {role: features(model, X, blocks=range(len(model.blocks))) for role, model in models.items()}
    rows = alignment.rows(models, X)
    expected = [(f"{t} {kind}", f"{s} {kind}") for t, s in pairs for kind in ("class", "patches")] + [("last", "last")]
    assert [row["layer"] for row in rows] == [ours if ours == "last" else f"student {ours}" for _, ours in expected]
    for row, (theirs, ours) in zip(rows, expected, strict=True):
        found = [row[key] for key in ("before", "after", "teacher_kept", "student_kept")]
        wanted = [
            linear_cka(frozen["teacher"][theirs], frozen["student"][ours]),
            linear_cka(trained["teacher"][theirs], trained["student"][ours]),
            linear_cka(frozen["teacher"][theirs], trained["teacher"][theirs]),
            linear_cka(frozen["student"][ours], trained["student"][ours]),
        ]
        assert found == pytest.approx(wanted)
        assert row["teacher_kept"] == pytest.approx(1)  # it was left alone
    assert rows[-1]["student_kept"] < 0.99


def test_without_a_teacher_the_student_is_compared_with_itself():
    models = {"student": tiny.model(SMALL)}
    alignment = Alignment(models, X)
    (row,) = alignment.rows(models, X)
    assert row == {"layer": "last", "student_kept": pytest.approx(1)}


def test_no_more_images_are_taken_than_needed():
    taken = []

    def endless():
        while True:
            taken.append(len(X[0]))
            yield X[0]

    Alignment({"student": tiny.model(SMALL)}, endless())
    assert MOST_IMAGES <= sum(taken) < MOST_IMAGES + len(X[0])


FOUR = ["student 0 class", "student 0 patches", "student 1 class", "student 1 patches", "last"]
CASES = {
    "slad": (METHODS["slad"], {}, FOUR),
    "idat": (
        METHODS["idat"],
        {},
        ["student 0 class", "student 0 patches", "student 2 class", "student 2 patches", "last"],
    ),
    "student_only": (METHODS["student_only"], {}, ["last"]),
    "cnn": (staged("finetune_kd"), {"student": cnn}, ["last"]),
}


@pytest.mark.parametrize(
    "case", [case if case != "cnn" else pytest.param(case, marks=pytest.mark.slow) for case in CASES]
)
def test_the_record_has_a_row_for_each_layer(tmp_path, untested, pretrained, case):
    method, changes, layers = CASES[case]
    pair = specs(pretrained, case) | {role: make(pretrained) for role, make in changes.items()}
    train(tmp_path / "out", untested, method, pair)
    with (tmp_path / "out/cka.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["layer"] for row in rows] == layers
    blank = {"before", "after", "teacher_kept"} if case == "student_only" else set()
    for row in rows:
        assert {key for key, cell in row.items() if not cell} == blank
        values = [float(cell) for key, cell in row.items() if key != "layer" and cell]
        assert all(math.isfinite(value) and value <= 1 + 1e-6 for value in values)
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    if case == "student_only":
        assert "cka" not in metrics
        return
    before, after = (float(rows[-1][key]) for key in ("before", "after"))
    assert metrics["cka"]["before"] == pytest.approx(before, abs=1e-4)
    assert metrics["cka"]["after"] == pytest.approx(after, abs=1e-4)
    if before > 0:
        assert metrics["cka"]["drop_percent"] == pytest.approx(100 * (before - after) / before, abs=0.05)
