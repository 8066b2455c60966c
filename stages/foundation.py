"""Stage foundation: pretrains the small teacher and student that need no download."""

import argparse
from pathlib import Path

from deploy.files import replaced_folder
from pipeline.base.params import FoundationStage, ScheduleParams, read_params
from pipeline.parts.models import ModelSpec
from pipeline.parts.training import Schedule
from pipeline.steps.foundation import foundation
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and pretrains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, FoundationStage)
    with replaced_folder(args.output) as output:
        foundation(
            output,
            teacher=ModelSpec(params.teacher.model, overrides=params.teacher.overrides),
            student=ModelSpec(params.student.model, overrides=params.student.overrides),
            image_size=params.foundation.image_size,
            classes=params.foundation.classes,
            instances=params.foundation.instances,
            batch_size=params.foundation.batch_size,
            teacher_schedule=_schedule(params.foundation.teacher),
            student_schedule=_schedule(params.foundation.student),
            student_init=params.foundation.student_init,
            seed=params.seed,
        )


def _schedule(params: ScheduleParams) -> Schedule:
    return Schedule(**params.model_dump())


if __name__ == "__main__":
    run(main)
