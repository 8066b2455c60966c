import random
import signal
import subprocess
import sys

import pytest
import torch

from pipeline.parts.training import Run
from tests import tiny
from tests.unit.pipeline.steps.distill.runs import EPOCHS, train

STEPS = 3 * EPOCHS  # 18 training images, 6 a step
KILLS = random.Random(0)
RESULT = (
    "teacher.safetensors",
    "student.safetensors",
    "metrics.json",
    "curves.csv",
    "cka.csv",
    "validation_logits.npz",
)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    index = tiny.prepared(root / "index", tiny.write_images(root / "images"))
    assert len(index.parts["train"]) == 18
    return root / "index"


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    """What each method writes when nothing interrupts it."""
    root = tmp_path_factory.mktemp("whole")
    for name in ("slad", "finetune_kd"):
        train(root / name, data, name=name)
    return {name: read(root / name) for name in ("slad", "finetune_kd")}


def read(folder):
    return {name: (folder / name).read_bytes() for name in RESULT}


def killed(tmp_path, data, name, step, where):
    """Runs the training in a process of its own until it is killed."""
    places = {"output": tmp_path / "killed", "checkpoints": tmp_path / "checkpoints", "data": data, "name": name}
    options = [f"--{key}={value}" for key, value in places.items()]
    command = [sys.executable, "-m", "tests.unit.pipeline.steps.distill.runs", *options]
    done = subprocess.run(
        [*command, f"--kill-step={step}", f"--kill-where={where}"], capture_output=True, text=True, check=False
    )
    assert done.returncode == -signal.SIGKILL, done.stderr


CASES = [
    pytest.param("slad", KILLS.randrange(1, STEPS), "step", id="slad, within a step"),
    pytest.param("slad", KILLS.randrange(1, STEPS), "save", id="slad, while saving", marks=pytest.mark.slow),
    pytest.param("slad", 3, "step", id="slad, at the start of an epoch", marks=pytest.mark.slow),
    pytest.param(
        "finetune_kd",
        KILLS.randrange(STEPS + 1, 2 * STEPS),
        "step",
        id="finetune_kd, in its second phase",
        marks=pytest.mark.slow,
    ),
    pytest.param("finetune_kd", STEPS, "step", id="finetune_kd, between its phases", marks=pytest.mark.slow),
    pytest.param("finetune_kd", KILLS.randrange(1, STEPS), "save", id="finetune_kd, saving", marks=pytest.mark.slow),
]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "step", "where"), CASES)
def test_a_killed_run_ends_with_the_same_bytes(tmp_path, data, whole, capfd, name, step, where):
    killed(tmp_path, data, name, step, where)
    capfd.readouterr()
    train(tmp_path / "again", data, name=name, checkpoints=tmp_path / "checkpoints")
    assert read(tmp_path / "again") == whole[name]
    # It did go on, from the last step that was saved, rather than from the beginning.
    phase_step = step if step <= STEPS else step - STEPS
    assert f"goes on from step {phase_step} of {STEPS}" in capfd.readouterr().err
    assert [file.name for file in (tmp_path / "checkpoints").iterdir()] == [
        "last.pt"
    ]  # one, for as long as it is needed


def interrupted(tmp_path, data, name, monkeypatch):
    """Leaves the checkpoint of step 4 behind, within this process."""

    def stop(run, batches):
        if run.step == 4:
            raise KeyboardInterrupt
        advance(run, batches)

    advance = Run._advance
    with monkeypatch.context() as patch:
        patch.setattr(Run, "_advance", stop)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "interrupted", data, name=name, checkpoints=tmp_path / "checkpoints")


def test_a_checkpoint_of_other_parameters_is_refused_with_its_reason(tmp_path, data, whole, capfd, monkeypatch):
    interrupted(tmp_path, data, "finetune_kd", monkeypatch)
    train(tmp_path / "again", data, name="slad", checkpoints=tmp_path / "checkpoints")
    said = capfd.readouterr().err
    assert (
        "belongs to other parameters (method was 'finetune_kd', is 'slad'); training starts from the beginning" in said
    )
    assert read(tmp_path / "again") == whole["slad"]


def test_a_run_with_other_data_does_not_go_on(tmp_path, data, capfd, monkeypatch):
    interrupted(tmp_path, data, "slad", monkeypatch)
    tiny.prepared(tmp_path / "other", tiny.write_images(tmp_path / "images", seed=1))
    train(tmp_path / "again", tmp_path / "other", checkpoints=tmp_path / "checkpoints")
    assert "data sha256 was " in capfd.readouterr().err


def test_a_damaged_checkpoint_costs_the_run_but_not_the_result(tmp_path, data, whole, capfd, monkeypatch):
    interrupted(tmp_path, data, "slad", monkeypatch)
    file = tmp_path / "checkpoints/last.pt"
    assert torch.load(file, weights_only=True)["state"]["run"]["step"] == 4
    file.write_bytes(file.read_bytes()[:-100])
    train(tmp_path / "again", data, checkpoints=tmp_path / "checkpoints")
    assert "cannot be read" in capfd.readouterr().err
    assert read(tmp_path / "again") == whole["slad"]
