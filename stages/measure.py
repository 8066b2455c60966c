"""Stage measure: accuracy and latency of every engine of a target, on its device, in one record."""

import argparse
from pathlib import Path

from deploy.device import read_fingerprint
from deploy.files import replaced_folder, write_text
from deploy.measure.plan import Plan
from deploy.measure.record import RECORD
from deploy.measure.step import check_record, measure_target
from deploy.remote.work import at_work
from pipeline.base.params import MeasureStage, read_target_params
from stages.boundary import run, say


def main() -> None:
    """Reads paths and parameters, and measures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--engines", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--device", type=Path, required=True)
    parser.add_argument("--journal", type=Path, required=True, help="answers as they come, outside the outputs")
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--record", type=Path, required=True, help="copy of the record for git and `dvc metrics`")
    args = parser.parse_args()
    params, section = read_target_params(args.params, MeasureStage, args.target)
    spec, device = section.model_dump(), read_fingerprint(args.device)
    plan = Plan(**params.measure.model_dump() | {"scenarios": tuple(params.measure.scenarios)}, seed=params.seed)
    here = {"onnx_root": args.onnx, "engines": args.engines, "data": args.data, "device": device, "plan": plan}
    with replaced_folder(args.output) as output:
        if spec["host"] is None:
            record = measure_target(
                output, target=args.target, spec=spec, journal=args.journal, on_progress=say, **here
            )
        else:
            with at_work(args.target, spec, say=say) as work:
                record = work.measure(output, **here)
    write_text(args.record, (args.output / RECORD).read_text(encoding="utf-8"))
    check_record(record)


if __name__ == "__main__":
    run(main)
