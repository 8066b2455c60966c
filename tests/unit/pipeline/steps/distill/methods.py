"""Every method at its smallest, and a pair of networks with saved weights that all of them can train."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline.parts.adapters.sharing import Sharing
from pipeline.parts.data import Augment, Mixing
from pipeline.parts.models import ModelSpec
from pipeline.parts.training import Schedule
from pipeline.steps.distill.alone import StudentOnly
from pipeline.steps.distill.idat import Idat
from pipeline.steps.distill.joint import JointLora
from pipeline.steps.distill.method import Lora, Method
from pipeline.steps.distill.objective import Weights
from pipeline.steps.distill.staged import TRAININGS, Staged
from pipeline.steps.distill.step import Feed, distill
from tests import tiny

EPOCHS = 8
SCHEDULE = Schedule(epochs=EPOCHS, learning_rate=0.01, weight_decay=0.01, warmup_epochs=0, clip_norm=1.0)
LORA = Lora(targets=("q", "k", "v"), rank=2, alpha=4.0)
QV = Lora(targets=("q", "v"), rank=2, alpha=4.0, dropout=0.1)


def staged(name: str, *, student_training: str | None = None, lora: Lora = LORA, **changes) -> Staged:
    teacher, student = TRAININGS[name]
    weights = Weights(student=0.5, distillation=0.5)
    schedules = {"teacher_schedule": SCHEDULE, "schedule": SCHEDULE} | changes
    return Staged(
        name=name,
        teacher_training=teacher,
        student_training=student_training or student,
        lora=lora,
        weights=weights,
        **schedules,
    )


METHODS: dict[str, Method] = {
    "slad": JointLora(lora=LORA, sharing=Sharing(), weights=Weights(), schedule=SCHEDULE),
    "joint_lora": JointLora(
        name="joint_lora", lora=LORA, sharing=Sharing(share="none"), weights=Weights(), schedule=SCHEDULE
    ),
    "lora_kd": staged("lora_kd"),
    "probe_kd": staged("probe_kd"),
    "finetune_kd": staged("finetune_kd"),
    "kd_lora": staged("kd_lora", lora=QV),
    "idat": Idat(
        hidden=4,
        weights=Weights(kind="mse", temperature=5.0, detach=False, squared_temperature=False),
        schedule=SCHEDULE,
    ),
    "student_only": StudentOnly(training="full", schedule=SCHEDULE),
}


def feed(**changes) -> Feed:
    values = {
        "load": tiny.LOAD,
        "augment": Augment(degrees=5, translate=0.05, scale=(0.9, 1.1), flip=False),
        "mixing": Mixing(),
        "black": (-1.0, -1.0, -1.0),
        "batch_size": 6,
    }
    return Feed(**(values | changes))


def write_weights(folder: Path) -> None:
    """Writes a large and a small transformer and a CNN, without heads."""
    folder.mkdir()
    networks = {"large": tiny.model(tiny.TEACHER), "small": tiny.model(tiny.STUDENT, seed=1)}
    torch.manual_seed(2)
    networks["cnn"] = timm.create_model("test_resnet", num_classes=3)
    for name, network in networks.items():
        head = ("head.", "fc.")
        save_file({k: v for k, v in network.state_dict().items() if not k.startswith(head)}, weights(folder, name))


def weights(folder: Path, name: str) -> Path:
    return folder / f"{name}.safetensors"


def specs(folder: Path, method: str) -> dict[str, ModelSpec]:
    """The specs of teacher and student: iDAT's student is the large one."""
    large = replace(tiny.TEACHER, weights=str(weights(folder, "large")))
    small = replace(tiny.STUDENT, weights=str(weights(folder, "small")))
    return {"teacher": small, "student": large} if method == "idat" else {"teacher": large, "student": small}


def cnn(folder: Path) -> ModelSpec:
    return ModelSpec("test_resnet", str(weights(folder, "cnn")), tiny.SIZE)


def train(output: Path, data: Path, method: Method, pair: dict[str, ModelSpec], *, seed: int = 0, **changes):
    output.mkdir()
    return distill(output, data=data, method=method, feed=feed(**changes), precision="fp32", seed=seed, **pair)


def curve_of(output: Path) -> list[dict[str, str]]:
    heading, *rows = [line.split(",") for line in (output / "curves.csv").read_text().splitlines()]
    return [dict(zip(heading, row, strict=True)) for row in rows]


def logits_of(output: Path) -> dict[str, np.ndarray]:
    with np.load(output / "validation_logits.npz") as stored:
        return dict(stored)


def differences(pretrained: Path, trained: Path) -> tuple[set[str], set[str]]:
    """Names of pretrained tensors that a merged network changed, and names that it has beyond them."""
    before: dict[str, Tensor] = load_file(pretrained)
    after = {name.replace(".block.", "."): value for name, value in load_file(trained).items()}
    return {name for name in before if not torch.equal(before[name], after[name])}, after.keys() - before.keys()
