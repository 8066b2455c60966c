"""Stage guard: refuses parameters that are wrong, or not what configs/ compose to; every other stage waits for it."""

import argparse
from pathlib import Path

from deploy.files import write_json
from pipeline.base.compose import check_fresh
from pipeline.base.params import Params, read_params
from stages.boundary import run
from stages.targets import check_targets


def main() -> None:
    """Reads paths, and checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--configs", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    check_fresh(args.params, args.configs)
    check_targets(read_params(args.params, Params))
    # Always the same content: what waits for this file runs again only when its own parameters have changed.
    write_json(args.output, {"schema": 1, "checked": True})


if __name__ == "__main__":
    run(main)
