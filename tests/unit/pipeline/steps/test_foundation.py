import json
from dataclasses import replace

import torch
from safetensors.torch import load_file

from pipeline.parts.models import build_model
from pipeline.parts.training import Schedule
from pipeline.steps.foundation import foundation
from tests import tiny

SCHEDULE = Schedule(epochs=1, learning_rate=1e-3, weight_decay=0.05, warmup_epochs=0, clip_norm=1.0)


def run(output):
    output.mkdir()
    foundation(
        output,
        teacher=tiny.TEACHER,
        student=tiny.STUDENT,
        image_size=tiny.SIZE,
        classes=50,
        instances=2,
        batch_size=50,
        teacher_schedule=SCHEDULE,
        student_schedule=SCHEDULE,
        student_init="slice",
        seed=0,
    )
    return output


def test_the_pair_can_be_built_from_what_was_written(tmp_path):
    output = run(tmp_path / "one")
    for role, spec in (("teacher", tiny.TEACHER), ("student", tiny.STUDENT)):
        model = build_model(replace(spec, weights="foundation"), num_classes=3, role=role, foundation=output)
        stored = load_file(output / f"{role}.safetensors")
        assert all(value.dtype == torch.float16 for value in stored.values())
        assert torch.equal(model.norm.weight, stored["norm.weight"].float())
        assert not any(name.startswith("head.") for name in stored)
    record = json.loads((output / "record.json").read_text())
    assert all(0 <= value <= 100 for value in record.values())


def test_two_runs_give_the_same_bytes(tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two")
    for file in ("teacher.safetensors", "student.safetensors", "record.json"):
        assert (one / file).read_bytes() == (two / file).read_bytes()
