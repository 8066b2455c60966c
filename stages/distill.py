"""Stage distill: trains teacher and student with the chosen method."""

import argparse
from functools import partial
from pathlib import Path

from deploy.bundle import Preprocess
from deploy.files import replaced_folder
from deploy.preprocess import load_image
from pipeline.base.params import DistillStage, read_params
from pipeline.parts.data import Augment
from pipeline.parts.models import ModelSpec
from pipeline.parts.training import Schedule
from pipeline.steps.distill.slad import SladOptions
from pipeline.steps.distill.step import distill
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and trains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--foundation", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, DistillStage)
    settings, preprocess = params.distill, params.preprocess
    with replaced_folder(args.output) as output:
        distill(
            output,
            data=args.data,
            foundation=args.foundation,
            teacher=ModelSpec(**params.teacher.model_dump()),
            student=ModelSpec(**params.student.model_dump()),
            options=SladOptions(
                rank=settings.rank,
                alpha=settings.alpha,
                layer_map=settings.layer_map,
                temperature=settings.temperature,
                detach=settings.detach,
                weight_student=settings.weight_student,
                weight_teacher=settings.weight_teacher,
                weight_kl=settings.weight_kl,
            ),
            schedule=Schedule(**settings.schedule.model_dump()),
            batch_size=settings.batch_size,
            workers=settings.workers,
            precision=settings.precision,
            augment=Augment(**params.augment.model_dump()),
            black=tuple(-mean / std for mean, std in zip(preprocess.mean, preprocess.std, strict=True)),
            load=partial(load_image, preprocess=Preprocess(**preprocess.model_dump())),
            seed=params.seed,
        )


if __name__ == "__main__":
    run(main)
