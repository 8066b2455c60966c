"""Stage export: writes the merged student as a bundle with one ONNX file."""

import argparse
from pathlib import Path

from deploy.bundle import Preprocess
from deploy.files import replaced_folder
from deploy.preprocess import load_image, load_mask
from pipeline.base.params import ExportStage, read_params
from pipeline.parts.index import Load
from pipeline.parts.models import ModelSpec
from pipeline.steps.export import export
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and exports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--merged", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, ExportStage)
    preprocess = params.preprocess.model_dump()
    recipe = Preprocess(**preprocess)
    with replaced_folder(args.output) as output:
        export(
            output,
            merged=args.merged,
            data=args.data,
            student=ModelSpec(**params.student.model_dump(), decoder=params.task.decoder),
            preprocess=preprocess,
            opset=params.export.opset,
            tolerance=params.export.tolerance,
            golden_count=params.export.golden_count,
            program=params.export.program,
            params=args.params,
            load=Load.by(load_image, load_mask, preprocess=recipe),
        )


if __name__ == "__main__":
    run(main)
