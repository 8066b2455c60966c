"""Stage report: says which variant to deploy on each target, and shows the evidence."""

import argparse
import hashlib
import tempfile
from functools import partial
from pathlib import Path

from deploy.bundle import load_bundle
from deploy.files import write_bytes
from deploy.preprocess import fit_image, load_image, load_mask
from pipeline.base.params import ReportStage, read_params
from pipeline.base.provenance import git_revision
from pipeline.parts.index import Load
from pipeline.steps.report import report
from pipeline.steps.report.reference import write_reference
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and reports."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--measured", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--distilled", type=Path, required=True)
    parser.add_argument("--merged", type=Path, required=True)
    parser.add_argument("--onnx", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    stage = read_params(args.params, ReportStage)
    params = stage.report
    recipe = load_bundle(args.onnx / params.reference).preprocess
    with tempfile.TemporaryDirectory() as scratch:
        written = Path(scratch, "report")
        written.mkdir()
        logits = Path(scratch, "reference_logits.npz")
        write_reference(
            logits,
            onnx=args.onnx,
            data=args.data,
            load=Load.by(load_image, load_mask, preprocess=recipe),
            picture=partial(fit_image, preprocess=recipe),
        )
        report(
            written,
            measured=args.measured,
            targets=tuple(stage.targets),
            data=args.data,
            distill=args.distilled,
            merged=args.merged,
            onnx=args.onnx,
            reference_logits=logits,
            max_drop_points=params.max_drop_points,
            reference=params.reference,
            git_revision=git_revision(Path.cwd()) or "unknown",
            params_sha256=hashlib.sha256(args.params.read_bytes()).hexdigest(),
        )
        for file in sorted(written.iterdir()):
            write_bytes(args.output / file.name, file.read_bytes())


if __name__ == "__main__":
    run(main)
