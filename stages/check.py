"""Stage check: ends the chain with an error where a target's budget is kept by no variant, or a variant failed.

It comes last, so that by then every target has been measured and the report written.
"""

import argparse
from pathlib import Path

from deploy.document import read_document
from deploy.errors import MeasureError, OverBudgetError
from deploy.files import write_text
from deploy.measure.budget import check_budget, outcome
from deploy.measure.record import RECORD, SCHEMA
from pipeline.base.params import CheckStage, read_params
from stages.boundary import run, say


def main() -> None:
    """Reads paths and parameters, and checks the records of all targets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    records = [
        read_document(
            args.measured / name / RECORD, error=MeasureError, remedy="run `slad repro`", schema=SCHEMA
        ).content
        for name in read_params(args.params, CheckStage).targets
    ]
    lines = [f"{record['target']}: {outcome(record)}" for record in records]
    write_text(args.output, "".join(f"{line}\n" for line in lines))
    for line in lines:
        say(line)
    failed = [f"{record['target']}/{name}" for record in records for name in record["failed"]]
    if failed:
        msg = f"{len(failed)} variants were not measured: {', '.join(failed)}; see {args.output} for the reasons"
        raise MeasureError(msg)
    missed = []
    for record in records:
        try:
            check_budget(record)
        except OverBudgetError as error:
            missed.append(str(error))
    if missed:
        raise OverBudgetError("; ".join(missed))


if __name__ == "__main__":
    run(main)
