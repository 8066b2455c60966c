"""Stage probe: writes the fingerprint of a target's device."""

import argparse
from pathlib import Path

from deploy.device import fingerprint
from deploy.files import write_json
from deploy.remote.work import at_work
from deploy.target import read_target
from pipeline.base.params import TargetStage, read_target_params
from stages.boundary import run, say


def main() -> None:
    """Reads paths and parameters, and probes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--target", required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    spec = read_target_params(args.params, TargetStage, args.target)[1].model_dump()
    target = read_target(args.target, spec)
    if target.host is None:
        found = fingerprint(target)
    else:
        with at_work(args.target, spec, say=say) as work:
            found = work.fingerprint()
    write_json(args.output, found)


if __name__ == "__main__":
    run(main)
