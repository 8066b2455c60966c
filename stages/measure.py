"""Stage measure: accuracy and latency of every engine of a target, on its device, in one record."""

import argparse
import sys
from pathlib import Path

from deploy.device import read_fingerprint
from deploy.files import replaced_folder, write_text
from deploy.measure import Timing, check_record, measure_target
from pipeline.base.params import MeasureStage, read_target_params
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True, help="copy of the record for git and `dvc metrics`")
    args = parser.parse_args()
    params, spec = read_target_params(args.params, MeasureStage, args.target)
    with replaced_folder(args.output) as output:
        record = measure_target(
            output,
            target=args.target,
            spec=spec.model_dump(),
            engines=args.engines,
            onnx_root=args.onnx,
            data=args.data,
            device=read_fingerprint(args.device),
            timing=Timing(**params.measure.model_dump(), seed=params.seed),
            on_progress=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
        )
    write_text(args.record, (args.output / "record.json").read_text(encoding="utf-8"))
    check_record(record)


if __name__ == "__main__":
    run(main)
