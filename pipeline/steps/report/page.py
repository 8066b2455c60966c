"""The page: what the evidence says, laid out by `report.html.jinja`; everything from a record is escaped there."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from pipeline.steps.report import charts, confusion, dataset, figures, measurement, overlays, quantised, states
from pipeline.steps.report.evidence import Evidence
from pipeline.steps.report.records import Target
from pipeline.steps.report.svg import Canvas
from pipeline.steps.report.table import SummaryRow

FOLDER = Path(__file__).parent
WIDE, NARROW = 960.0, 326.0  # pixels inside a figure on a desk and on a phone
LOSSES = {
    "loss": "total",
    "ce_teacher": "teacher cross-entropy",
    "ce_student": "student cross-entropy",
    "kl": "KL",
    "mse": "difference of logits",
}
ACCURACIES = {"teacher_accuracy_percent": "teacher", "student_accuracy_percent": "student"}
FILTERS = (
    figures.milliseconds,
    figures.percent,
    figures.megabytes,
    figures.points,
    figures.signed_points,
    figures.duration,
    figures.error,
    figures.cosine,
    figures.share,
    figures.count,
    figures.plain,
    figures.keep_units,
    figures.capital,
    overlays.colour,
)

Figure = tuple[Markup, Markup]


def render(evidence: Evidence, *, rows: Sequence[SummaryRow]) -> str:
    """The whole page as one file that asks nothing of a network."""
    environment = Environment(
        loader=FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update({tool.__name__: tool for tool in FILTERS})
    sheets = [(FOLDER / name).read_text(encoding="utf-8") for name in ("chart.css", "report.css")]
    return environment.get_template("report.html.jinja").render(
        style=Markup("".join(sheets)),  # noqa: S704  # our own files
        evidence=evidence,
        rows=rows,
        interval="Wilson" if evidence.metric == "accuracy" else "bootstrap",
        per_class=_per_class(evidence),
        sections=_sections(evidence),
        chart=_accuracy_latency(evidence),
        histograms={target.name: _histogram(evidence, target, index=i) for i, target in enumerate(evidence.targets)},
        measurements={target.name: measurement.view(target) for target in evidence.targets},
        confusions={target.name: _confusion(evidence, target) for target in evidence.targets},
        losses=_curves(evidence, LOSSES, titles=("Training losses", "loss"), name="losses"),
        accuracies=_curves(
            evidence, ACCURACIES, titles=(f"Validation {evidence.metric}", f"{evidence.metric}, %"), name="accuracies"
        ),
        data=dataset.view(evidence.data),
        quantised=quantised.view(evidence.quantised),
        states={target.name: states.rows(target.state) for target in evidence.targets},
        fingerprints={target.name: list(states.flatten(target.device)) for target in evidence.targets},
    )


def _sections(evidence: Evidence) -> list[tuple[str, str]]:
    return [
        ("verdict", "Verdicts" if len(evidence.targets) > 1 else "Verdict"),
        ("chart", f"{figures.capital(evidence.metric)} against latency"),
        ("variants", "Variants"),
        ("measurement", "Measurement"),
        ("parity", "Parity chain"),
        ("quantised", "INT8 and FP16"),
        ("training", "Training"),
        ("data", "Data"),
        ("device", "Devices" if len(evidence.targets) > 1 else "Device"),
        ("reproduce", "Reproduce"),
    ]


def _pair(wide: Canvas | None, narrow: Canvas | None) -> Figure | None:
    if wide is None or narrow is None:
        return None
    return Markup(wide.markup()), Markup(narrow.markup())  # noqa: S704  # ElementTree has escaped all text


def _accuracy_latency(evidence: Evidence) -> Figure | None:
    points = evidence.points()
    drawn = [
        charts.accuracy_latency(points, width=width, height=height, name=f"trade-off-{name}", metric=evidence.metric)
        for name, width, height in (("wide", WIDE, 480), ("narrow", NARROW, 380))
    ]
    return _pair(*drawn)


def _confusion(evidence: Evidence, target: Target) -> confusion.Confusion | None:
    """Of the chosen variant alone: the others rarely differ from it by more than a few images."""
    chosen = target.variant(evidence.verdicts[target.name].chosen)
    return None if chosen is None else confusion.view(chosen.accuracy)


def _per_class(evidence: Evidence) -> dict[str, dict[str, float | None]]:
    """What each class reaches, by class and place: the merged networks on the host, then every engine."""
    training = evidence.training or {}
    columns: dict[str, Mapping[str, float | None]] = {
        f"{role}, host": training[role]["test_per_class_percent"]
        for role in ("teacher", "student")
        if "test_per_class_percent" in (training.get(role) or {})
    }
    for target in evidence.targets:
        columns |= {f"{target.name}, {v.name}": v.accuracy.per_class for v in target.variants if v.accuracy.per_class}
    labels = dict.fromkeys(label for column in columns.values() for label in column)
    return {label: {name: column.get(label) for name, column in columns.items()} for label in labels}


def _histogram(evidence: Evidence, target: Target, *, index: int) -> Figure | None:
    samples = evidence.samples[target.name]
    drawn = [
        charts.histograms(samples, target=target.name, width=width, name=f"latency-{index}-{name}")
        for name, width in (("wide", WIDE), ("narrow", NARROW))
    ]
    return _pair(*drawn)


def _curves(evidence: Evidence, columns: Mapping[str, str], *, titles: tuple[str, str], name: str) -> Figure | None:
    drawn = [
        charts.curves(
            evidence.curves, columns=columns, titles=titles, width=width, height=300, name=f"{name}-{variant}"
        )
        for variant, width in (("wide", WIDE / 2 - 10), ("narrow", NARROW))
    ]
    return _pair(*drawn)
