"""Small trainings that can be started in another process: `python -m tests.unit.pipeline.steps.distill.runs`."""

import argparse
import os
import signal
from pathlib import Path

from pipeline.parts.adapters.sharing import Sharing
from pipeline.parts.checkpoints import Checkpoints
from pipeline.parts.data import Augment, Mixing
from pipeline.parts.models import ModelSpec
from pipeline.parts.training import Run, Schedule
from pipeline.steps.distill.alone import StudentOnly
from pipeline.steps.distill.joint import JointLora
from pipeline.steps.distill.method import Lora, Method
from pipeline.steps.distill.objective import Weights
from pipeline.steps.distill.staged import Staged
from pipeline.steps.distill.step import Feed, distill
from tests import tiny

EPOCHS = 3


def schedule(**changes: float) -> Schedule:
    values = {"epochs": EPOCHS, "learning_rate": 0.01, "weight_decay": 0.01, "warmup_epochs": 1, "clip_norm": 1.0}
    return Schedule(**(values | changes))


def method(name: str) -> Method:
    """Two methods that between them use everything that a checkpoint must carry."""
    if name.startswith("slad"):  # dropout draws inside the model
        lora = Lora(targets=("q", "k", "v"), rank=2, alpha=4.0, dropout=0.2 if name == "slad" else 0.0)
        return JointLora(lora=lora, sharing=Sharing(), weights=Weights(), schedule=schedule(ema=0.9))
    if name == "cnn":  # batch norms see a share of the images in each process
        return StudentOnly(training="full", schedule=schedule())
    return Staged(  # two phases, and a best epoch that is kept aside
        name="finetune_kd",
        teacher_training="full",
        student_training="full",
        weights=Weights(),
        teacher_schedule=schedule(),
        schedule=schedule(patience=2),
    )


def train(
    output: Path,
    data: Path,
    *,
    name: str = "slad",
    checkpoints: Path | None = None,
    precision: str = "fp32",
    **feed: int,
) -> dict[str, float]:
    """Trains the tiny pair; a checkpoint is saved after every step."""
    output.mkdir(exist_ok=True)
    return distill(
        output,
        data=data,
        teacher=tiny.TEACHER,
        student=ModelSpec("test_resnet") if name == "cnn" else tiny.STUDENT,
        method=method(name),
        feed=Feed(
            load=tiny.LOAD,
            augment=Augment(degrees=5, translate=0.05, scale=(0.9, 1.1), flip=True),
            mixing=Mixing(mixup=0.2, label_smoothing=0.1) if name == "slad" else Mixing(),
            black=(-1.0, -1.0, -1.0),
            batch_size=6,
            **feed,
        ),
        precision=precision,
        seed=0,
        checkpoints=checkpoints,
        checkpoint_s=0.0,
        settings={"method": name},
    )


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--output", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--checkpoints", type=Path)
    parser.add_argument("--name")
    parser.add_argument("--kill-step", type=int, help="die at this step, counted over all phases")
    parser.add_argument("--kill-where", choices=("step", "save"))
    args = parser.parse_args()
    left = args.kill_step
    advance, save = Run._advance, Checkpoints.save

    def counted(run: Run, batches: object) -> None:
        nonlocal left
        if left == 0:
            if args.kill_where == "step":
                die()
            os.fsync = lambda _file: die()  # the file is written, but not yet in its place
        left -= 1
        advance(run, batches)

    Run._advance, Checkpoints.save = counted, save
    train(args.output, args.data, name=args.name, checkpoints=args.checkpoints)


if __name__ == "__main__":
    main()
