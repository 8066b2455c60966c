"""Stage foundation: pretrains a small pair that needs no download."""

import argparse
from pathlib import Path

from deploy.files import replaced_folder
from pipeline.base.errors import ParamsError
from pipeline.base.params import FoundationStage, read_params
from pipeline.parts.models import ModelSpec
from pipeline.parts.training import Schedule
from pipeline.steps.foundation import Drawing, foundation
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and pretrains."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--pair", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, FoundationStage)
    if args.pair not in params.foundations:
        msg = f"{args.params}: no foundation pair {args.pair!r} among {', '.join(params.foundations)}"
        raise ParamsError(msg)
    pair = params.foundations[args.pair]
    size = pair.image_size
    with replaced_folder(args.output) as output:
        foundation(
            output,
            teacher=ModelSpec(pair.teacher.model, image_size=size, overrides=pair.teacher.overrides),
            student=ModelSpec(pair.student.model, image_size=size, overrides=pair.student.overrides),
            drawing=Drawing(kind=pair.images, size=size, classes=pair.classes, instances=pair.instances),
            batch_size=pair.batch_size,
            teacher_schedule=Schedule(**pair.teacher.schedule.model_dump()),
            student_schedule=Schedule(**pair.student.schedule.model_dump()),
            student_init=pair.student_init,
            token_drop=pair.token_drop,
            precision=pair.precision,
            seed=params.seed,
        )


if __name__ == "__main__":
    run(main)
