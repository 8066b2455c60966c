"""Stage compile: builds every variant of a target on the device that it names."""

import argparse
from pathlib import Path

from deploy.build import build_target
from deploy.device import read_fingerprint
from deploy.files import replaced_folder
from deploy.remote.work import at_work
from pipeline.base.params import TargetStage, read_target_params
from stages.boundary import run, say


def main() -> None:
    """Reads paths and parameters, and builds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--device", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    spec = read_target_params(args.params, TargetStage, args.target)[1].model_dump()
    device = read_fingerprint(args.device)
    with replaced_folder(args.output) as output:
        if spec["host"] is None:
            build_target(output, target=args.target, spec=spec, onnx_root=args.onnx, device=device, on_progress=say)
        else:
            with at_work(args.target, spec, say=say) as work:
                work.build(output, onnx_root=args.onnx, device=device)


if __name__ == "__main__":
    run(main)
