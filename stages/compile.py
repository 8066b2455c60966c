"""Stage compile: builds every variant of a target on the device that it names."""

import argparse
import sys
from pathlib import Path

from deploy.build import build_target
from deploy.device import read_fingerprint
from deploy.files import replaced_folder
from pipeline.base.params import TargetStage, read_target_params
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--device", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    spec = read_target_params(args.params, TargetStage, args.target)[1]
    with replaced_folder(args.output) as output:
        build_target(
            output,
            target=args.target,
            spec=spec.model_dump(),
            onnx_root=args.onnx,
            device=read_fingerprint(args.device),
            on_progress=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
        )


if __name__ == "__main__":
    run(main)
