"""Gathers everything the report shows, read and judged once, before anything is drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.steps.report.chain import Chain, Hop, assemble, read_host
from pipeline.steps.report.charts import Point
from pipeline.steps.report.dataset import read_dataset
from pipeline.steps.report.documents import TRAINING_SCHEMA, Json, read_optional
from pipeline.steps.report.overlays import Row, draw_rows
from pipeline.steps.report.quantised import Quantised, read_quantised
from pipeline.steps.report.records import Target, read_targets
from pipeline.steps.report.series import Samples, Series, read_curves, read_latencies
from pipeline.steps.report.verdict import Verdict, judge


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """The content of the report; dictionaries go by target name, None stands for a file that is not there."""

    targets: tuple[Target, ...]
    verdicts: Mapping[str, Verdict]
    chains: Mapping[str, tuple[Chain, ...]]
    samples: Mapping[str, Samples]
    training: Json | None
    curves: Series
    data: Json | None
    pictures: tuple[Row, ...]
    quantised: Quantised
    max_drop_points: float
    reference: str
    git_revision: str
    params_sha256: str

    @property
    def metric(self) -> str:
        """What "accuracy" is here: "accuracy" itself, or "mIoU"."""
        return next((v.accuracy.metric for target in self.targets for v in target.variants), "accuracy")

    def points(self) -> list[Point]:
        """Every measured variant as a point of the chart."""
        return [
            Point(
                target=target.name,
                variant=variant.name,
                accuracy=variant.accuracy.percent,
                accuracy_low=variant.accuracy.low,
                accuracy_high=variant.accuracy.high,
                p50=variant.latency.p50,
                p90=variant.latency.p90,
                chosen=variant.name == self.verdicts[target.name].chosen,
            )
            for target in self.targets
            for variant in target.variants
        ]

    def host_hops(self) -> list[Hop]:
        """The hops that all chains share, each once, in order."""
        every = [hop for chains in self.chains.values() for chain in chains for hop in chain.hops[:-1]]
        return list({hop.name: hop for hop in every}.values())


def gather(
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
) -> Evidence:
    """Reads all records and judges every target; see `report` for the arguments."""
    records = read_targets(measured, targets)
    host = read_host(merged, onnx=onnx, reference_logits=reference_logits)
    return Evidence(
        targets=records,
        verdicts={t.name: judge(t, max_drop_points=max_drop_points, reference=reference) for t in records},
        chains={target.name: assemble(target, host=host) for target in records},
        samples={target.name: read_latencies(target.folder / "samples.npz") for target in records},
        training=_training(distill, merged),
        curves=read_curves(distill / "curves.csv"),
        data=read_dataset(data),
        pictures=draw_rows(host.logits, records),
        quantised=read_quantised(onnx, merged, current=host.made()),
        max_drop_points=max_drop_points,
        reference=reference,
        git_revision=git_revision,
        params_sha256=params_sha256,
    )


def _training(distill: Path, merged: Path) -> Json | None:
    """The training record, its cost, and what teacher and student reach on the test split once merged."""
    metrics = read_optional(distill / "metrics.json", schema=TRAINING_SCHEMA)
    if metrics is None:
        return None
    metrics |= read_optional(distill / "cost.json") or {}
    tested = read_optional(merged / "accuracy.json") or {}
    return metrics | {role: metrics.get(role, {}) | tested[role] for role in ("teacher", "student") if role in tested}
