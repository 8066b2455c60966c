"""The report for programs: `summary.json` for DVC metrics, `summary.csv` for DVC plots."""

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict
from typing import Any

from pipeline.steps.report.chain import Chain
from pipeline.steps.report.documents import SCHEMA
from pipeline.steps.report.evidence import Evidence
from pipeline.steps.report.records import Target
from pipeline.steps.report.table import FIGURES, SummaryRow
from pipeline.steps.report.verdict import Verdict

COLUMNS = ("target", "variant", "accuracy_percent", "latency_p50_ms", "latency_p90_ms", "size_mb")


def summarize(evidence: Evidence) -> dict[str, Any]:
    """The content of `summary.json`; null is not measured."""
    return {
        "schema": SCHEMA,
        "git_revision": evidence.git_revision,
        "params_sha256": evidence.params_sha256,
        "metric": evidence.metric,
        "reference": evidence.reference,
        "max_drop_points": evidence.max_drop_points,
        "targets": {
            target.name: {
                "valid": target.valid,
                "invalid_reasons": list(target.invalid_reasons),
                "chosen": evidence.verdicts[target.name].chosen,
                "words": evidence.verdicts[target.name].words,
                "variants": _variants(target, evidence.verdicts[target.name]),
                "parity": {chain.variant: _chain(chain) for chain in evidence.chains[target.name]},
            }
            for target in evidence.targets
        },
        "training": None
        if evidence.training is None
        else {k: v for k, v in evidence.training.items() if k != "schema"},
    }


def _variants(target: Target, verdict: Verdict) -> dict[str, dict[str, Any]]:
    variants = {}
    for judged in verdict.variants:
        found = target.variant(judged.name)
        figures: dict[str, Any] = dict.fromkeys(FIGURES)
        if found is not None:
            figures = {
                "accuracy_percent": found.accuracy.percent,
                "accuracy_low_percent": found.accuracy.low,
                "accuracy_high_percent": found.accuracy.high,
                "latency_p50_ms": found.latency.p50,
                "latency_p90_ms": found.latency.p90,
                "latency_p99_ms": found.latency.p99,
                "size_bytes": found.engine_bytes,
            }
            if found.accuracy.per_class:
                figures["accuracy_per_class_percent"] = dict(found.accuracy.per_class)
        compared = {"accuracy_points": judged.points, "speedup": judged.speedup}
        variants[judged.name] = {"status": judged.status, "verdict": judged.word, **figures, **compared}
    return variants


def _chain(chain: Chain) -> dict[str, Any]:
    return {"worst": chain.worst, "hops": [asdict(hop) | {"accuracy_points": hop.points} for hop in chain.hops]}


def to_csv(rows: Iterable[SummaryRow]) -> str:
    """The measured variants as `summary.csv`; sizes in units of 1,000,000 bytes."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    for row in rows:
        if row.size_bytes is not None:
            figures = row.accuracy_percent, row.latency_p50_ms, row.latency_p90_ms, row.size_bytes / 1e6
            writer.writerow([row.target, row.variant, *figures])
    return text.getvalue()
