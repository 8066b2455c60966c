"""The report: reads every record, says which variant to deploy on each target, and shows the evidence."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline.steps.report import charts, page
from pipeline.steps.report.evidence import Evidence, gather
from pipeline.steps.report.summary import summarize, to_csv
from pipeline.steps.report.table import SummaryRow, print_table, summary_rows

__all__ = ["SummaryRow", "print_table", "report", "summary_rows"]


def report(
    output: Path,
    *,
    measured: Path,
    targets: Sequence[str],
    data: Path,
    distill: Path,
    merged: Path,
    onnx: Path,
    reference_logits: Path | None,
    max_drop_points: float,
    reference: str,
    git_revision: str,
    params_sha256: str,
) -> dict[str, Any]:
    """Writes report.html, summary.json, summary.csv and accuracy_latency.svg into the existing folder `output`.

    Args:
        output: receives the files; the caller swaps folders so that no half-written report is seen.
        measured: holds one folder per target with record.json and what lies beside it.
        targets: names of the targets to report on.
        data: holds report.json.
        distill: holds metrics.json and curves.csv.
        merged: holds parity.json.
        onnx: holds one bundle per variant, each with parity.json.
        reference_logits: .npz of logits by ONNX variant and `targets`, as `write_reference` writes it.
        max_drop_points: accuracy a variant may lose against `reference`, in percentage points.
        reference: the variant that the budget counts from.
        git_revision: of the code that ran.
        params_sha256: of the params.yaml that it ran with.

    Returns:
        What summary.json holds.

    Raises:
        DataError: a measurement record is missing or malformed, or a target has no measurement of `reference`.
    """
    evidence = gather(
        measured=measured,
        targets=targets,
        data=data,
        distill=distill,
        merged=merged,
        onnx=onnx,
        reference_logits=reference_logits,
        max_drop_points=max_drop_points,
        reference=reference,
        git_revision=git_revision,
        params_sha256=params_sha256,
    )
    return _write(output, evidence)


def _write(output: Path, evidence: Evidence) -> dict[str, Any]:
    summary = summarize(evidence)
    rows = summary_rows(summary)
    picture = charts.accuracy_latency(
        evidence.points(), width=860, height=460, name="chart", metric=evidence.metric, note=charts.NOTE
    )
    files = {
        "report.html": page.render(evidence, rows=rows),
        "summary.json": json.dumps(summary, indent=2, ensure_ascii=False) + "\n",
        "summary.csv": to_csv(rows),
        "accuracy_latency.svg": picture.markup(style=charts.STYLE) + "\n",
    }
    for name, text in files.items():
        (output / name).write_text(text, encoding="utf-8", newline="\n")
    return summary
