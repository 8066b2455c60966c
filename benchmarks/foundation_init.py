"""Does a student that starts as a slice of its teacher serve later tasks better than one that starts at random?

Runs a shortened foundation stage twice, alike but for `student_init`, then SLAD on the digits from each pair, and
prints the student's validation accuracy. Command: `python -m benchmarks.foundation_init`, from the project's folder,
after `make repro`. About 6 minutes on 2 cores.
"""

import tempfile
from dataclasses import replace
from functools import partial
from pathlib import Path

from deploy.bundle import Preprocess
from deploy.preprocess import load_image
from pipeline.base.params import Params, read_params
from pipeline.parts.data import Augment
from pipeline.parts.models import ModelSpec
from pipeline.parts.training import Schedule
from pipeline.steps.distill.slad import SladOptions
from pipeline.steps.distill.step import distill
from pipeline.steps.foundation import foundation

INSTANCES, TEACHER_EPOCHS, STUDENT_EPOCHS, DISTILL_EPOCHS = 20, 6, 4, 10
METHOD = {"rank", "alpha", "layer_map", "temperature", "detach", "weight_student", "weight_teacher", "weight_kl"}


def accuracy(init: str, folder: Path) -> dict[str, float]:
    """Pretrains a pair with `init`, adapts it to the digits, and returns validation accuracy in percent by role."""
    params = read_params(Path("params.yaml"), Params)
    teacher, student = (ModelSpec(**part.model_dump()) for part in (params.teacher, params.student))
    settings = params.foundation
    weights, adapted = folder / "foundation", folder / "distill"
    weights.mkdir(parents=True)
    adapted.mkdir()
    foundation(
        weights,
        teacher=teacher,
        student=student,
        image_size=settings.image_size,
        classes=settings.classes,
        instances=INSTANCES,
        batch_size=settings.batch_size,
        teacher_schedule=replace(Schedule(**settings.teacher.model_dump()), epochs=TEACHER_EPOCHS),
        student_schedule=replace(Schedule(**settings.student.model_dump()), epochs=STUDENT_EPOCHS),
        student_init=init,
        seed=params.seed,
    )
    return distill(
        adapted,
        data=Path("artifacts/data"),
        foundation=weights,
        teacher=teacher,
        student=student,
        options=SladOptions(**params.distill.model_dump(include=METHOD)),
        schedule=replace(Schedule(**params.distill.schedule.model_dump()), epochs=DISTILL_EPOCHS),
        batch_size=params.distill.batch_size,
        workers=0,
        precision="auto",
        augment=Augment(**params.augment.model_dump()),
        black=tuple(-mean / std for mean, std in zip(params.preprocess.mean, params.preprocess.std, strict=True)),
        load=partial(load_image, preprocess=Preprocess(**params.preprocess.model_dump())),
        seed=params.seed,
    )


def main() -> None:
    """Prints one line per start."""
    with tempfile.TemporaryDirectory() as scratch:
        for init in ("slice", "random"):
            found = accuracy(init, Path(scratch, init))
            print(f"{init:<7} student {found['student']:.1f} %  teacher {found['teacher']:.1f} %", flush=True)


if __name__ == "__main__":
    main()
