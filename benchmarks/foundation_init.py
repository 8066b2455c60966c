"""Does a student that starts as a slice of its teacher serve later tasks better than one that starts at random?

Runs a shortened foundation stage twice, alike but for `student_init`, then the default method on the digits from each
pair, and prints the student's validation accuracy. Command: `python -m benchmarks.foundation_init`, from the project's
folder, after `make repro`. About 8 minutes on 2 cores.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from deploy.bundle import Preprocess
from deploy.preprocess import load_image, load_mask
from pipeline.base.params import Params, read_params
from pipeline.base.sections import FoundationModel
from pipeline.parts.data import Augment, Mixing
from pipeline.parts.index import Load
from pipeline.parts.models import ModelSpec
from pipeline.parts.training import Schedule
from pipeline.steps.distill.step import Feed, distill
from pipeline.steps.foundation import Drawing, foundation
from stages.distill import method_of

PAIR = "grey32"
INSTANCES, TEACHER_EPOCHS, STUDENT_EPOCHS, DISTILL_EPOCHS = 20, 6, 4, 10


def pretrain(params: Params, init: str, output: Path) -> None:
    """Writes a pair to `output`, whose student starts as `init` says."""
    settings = params.foundations[PAIR]

    def spec(model: FoundationModel) -> ModelSpec:
        return ModelSpec(model.model, image_size=settings.image_size, overrides=model.overrides)

    foundation(
        output,
        teacher=spec(settings.teacher),
        student=spec(settings.student),
        drawing=Drawing(kind=settings.images, size=settings.image_size, classes=settings.classes, instances=INSTANCES),
        batch_size=settings.batch_size,
        teacher_schedule=replace(Schedule(**settings.teacher.schedule.model_dump()), epochs=TEACHER_EPOCHS),
        student_schedule=replace(Schedule(**settings.student.schedule.model_dump()), epochs=STUDENT_EPOCHS),
        student_init=init,
        token_drop=settings.token_drop,
        precision=settings.precision,
        seed=params.seed,
    )


def accuracy(init: str, folder: Path) -> dict[str, float]:
    """Pretrains a pair with `init`, adapts it to the digits, and returns validation accuracy in percent by role."""
    params = read_params(Path("params.yaml"), Params)
    weights, adapted = folder / "foundation", folder / "distill"
    weights.mkdir(parents=True)
    adapted.mkdir()
    pretrain(params, init, weights)
    specs = {
        role: replace(ModelSpec(**getattr(params, role).model_dump()), weights=str(weights / f"{role}.safetensors"))
        for role in ("teacher", "student")
    }
    method = method_of(params)
    augment = params.augment.model_dump()
    mixing = {key: augment.pop(key) for key in ("mixup", "cutmix", "label_smoothing")}
    feed = Feed(
        load=Load.by(load_image, load_mask, preprocess=Preprocess(**params.preprocess.model_dump())),
        augment=Augment(**augment),
        mixing=Mixing(**mixing),
        black=tuple(-mean / std for mean, std in zip(params.preprocess.mean, params.preprocess.std, strict=True)),
        batch_size=params.distill.batch_size,
    )
    return distill(
        adapted,
        data=Path("artifacts/data"),
        **specs,
        method=replace(method, schedule=replace(method.schedule, epochs=DISTILL_EPOCHS)),
        feed=feed,
        precision="auto",
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
