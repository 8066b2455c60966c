"""Stage prepare: indexes, checks and splits the images."""

import argparse
from functools import partial
from pathlib import Path

from deploy.bundle import Preprocess
from deploy.errors import ImageError
from deploy.files import replaced_folder
from deploy.preprocess import load_image
from pipeline.base.params import PrepareStage, read_params
from pipeline.steps.prepare import prepare
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and prepares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, PrepareStage)
    with replaced_folder(args.output) as output:
        prepare(
            output,
            source=params.prepare.source,
            path=Path(params.prepare.path) if params.prepare.path is not None else None,
            load=partial(load_image, preprocess=Preprocess(**params.preprocess.model_dump())),
            broken=ImageError,
            validation_fraction=params.prepare.validation_fraction,
            test_fraction=params.prepare.test_fraction,
            calibration_size=params.prepare.calibration_size,
            per_class=params.prepare.per_class,
            copies=params.prepare.copies,
            split_seed=params.prepare.split_seed,
            seed=params.seed,
        )


if __name__ == "__main__":
    run(main)
