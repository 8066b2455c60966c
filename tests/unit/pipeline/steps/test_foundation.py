import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from pipeline.parts.models import build_model
from pipeline.parts.training import Schedule
from pipeline.steps.foundation import Drawing, DrawnStream, foundation
from tests import tiny

SCHEDULE = Schedule(epochs=1, learning_rate=1e-3, weight_decay=0.05, warmup_epochs=0, clip_norm=1.0)
FILES = ("teacher.safetensors", "student.safetensors", "record.json")


def run(output, *, kind="fractals", student_init="slice", token_drop=0.0, seed=0):
    output.mkdir()
    record = foundation(
        output,
        teacher=tiny.TEACHER,
        student=tiny.STUDENT,
        drawing=Drawing(kind=kind, size=tiny.SIZE, classes=20, instances=2),
        batch_size=20,
        teacher_schedule=SCHEDULE,
        student_schedule=SCHEDULE,
        student_init=student_init,
        token_drop=token_drop,
        precision="fp32",
        seed=seed,
    )
    assert json.loads((output / "record.json").read_text()) == record
    return output


@pytest.mark.parametrize("kind", ["fractals", "scenes"])
@pytest.mark.parametrize("token_drop", [0.0, 0.5])
def test_the_pair_can_be_built_from_what_was_written(tmp_path, kind, token_drop):
    output = run(tmp_path / "one", kind=kind, token_drop=token_drop)
    for role, spec in (("teacher", tiny.TEACHER), ("student", tiny.STUDENT)):
        path = output / f"{role}.safetensors"
        model = build_model(replace(spec, weights=str(path)), num_classes=3, role=role)
        stored = load_file(path)
        assert all(value.dtype == torch.float16 for value in stored.values())
        assert torch.equal(model.norm.weight, stored["norm.weight"].float())
        assert not any(name.startswith("head.") for name in stored)
    record = json.loads((output / "record.json").read_text())
    assert record.keys() == {"teacher_accuracy_percent", "student_accuracy_percent"}
    assert all(0 <= value <= 100 for value in record.values())


def test_two_runs_give_the_same_bytes_and_another_seed_does_not(tmp_path):
    one, two, three = run(tmp_path / "one"), run(tmp_path / "two"), run(tmp_path / "three", seed=1)
    for file in FILES:
        assert (one / file).read_bytes() == (two / file).read_bytes()
    for file in FILES[:2]:
        assert (one / file).read_bytes() != (three / file).read_bytes()


def test_where_the_student_starts_does_not_change_the_teacher(tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two", student_init="random")
    assert (one / FILES[0]).read_bytes() == (two / FILES[0]).read_bytes()
    assert (one / FILES[1]).read_bytes() != (two / FILES[1]).read_bytes()


def test_dropping_tokens_changes_the_teacher(tmp_path):
    one, two = run(tmp_path / "one"), run(tmp_path / "two", token_drop=0.5)
    assert (one / FILES[0]).read_bytes() != (two / FILES[0]).read_bytes()


@pytest.mark.parametrize(("kind", "channels"), [("fractals", 1), ("scenes", 3)])
def test_two_more_images_of_each_class_are_drawn_last(kind, channels):
    images, labels = Drawing(kind=kind, size=16, classes=5, instances=3).draw(0)
    assert images.shape == (25, channels, 16, 16)
    assert images.dtype == torch.uint8
    assert labels[-10:].tolist() == [*range(5), *range(5)]


def stream(channels=3, *, count=11, batch_size=4, seed=0):
    images = torch.arange(count).repeat_interleave(channels * 64).reshape(count, channels, 8, 8).to(torch.uint8)
    return DrawnStream(images, torch.arange(count), batch_size=batch_size, seed=seed)


def labels_of(batches):
    return [labels.tolist() for _, labels in batches]


def test_drawn_batches_can_be_entered_at_any_step():
    whole = labels_of(stream().batches(0, 6))
    assert labels_of(stream().batches(3, 6)) == whole[3:]
    assert whole[:2] != whole[2:4]  # another epoch, another order
    assert labels_of(stream(seed=1).batches(0, 6)) != whole
    for epoch in range(3):
        seen = [*whole[2 * epoch], *whole[2 * epoch + 1]]
        assert len(set(seen)) == len(seen) == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_drawn_images_are_changed_as_the_global_generator_says(channels):
    def drawn(seed):
        torch.manual_seed(seed)
        return next(iter(stream(channels).batches(0, 1)))[0]

    assert drawn(0).shape == (4, 3, 8, 8)
    assert torch.equal(drawn(0), drawn(0))
    assert not torch.equal(drawn(0), drawn(1))
    same = torch.equal(drawn(0)[:, 0], drawn(0)[:, 1])
    assert same == (channels == 1)  # colours are changed one by one
