"""Stage merge: folds the adapters into teacher and student."""

import argparse
from pathlib import Path

from deploy.bundle import Preprocess
from deploy.files import replaced_folder
from deploy.preprocess import load_image, load_mask
from pipeline.base.params import MergeStage, read_params
from pipeline.parts.index import Load
from pipeline.parts.models import ModelSpec
from pipeline.steps.merge import merge_models
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and merges."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--distilled", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, MergeStage)
    recipe = Preprocess(**params.preprocess.model_dump())
    with replaced_folder(args.output) as output:
        merge_models(
            output,
            distilled=args.distilled,
            data=args.data,
            teacher=ModelSpec(**params.teacher.model_dump(), decoder=params.task.decoder),
            student=ModelSpec(**params.student.model_dump(), decoder=params.task.decoder),
            tolerance=params.merge.tolerance,
            load=Load.by(load_image, load_mask, preprocess=recipe),
        )


if __name__ == "__main__":
    run(main)
