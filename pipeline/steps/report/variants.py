"""One compiled model as a measurement record describes it: accuracy, latency, what a scenario found, energy."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

from pipeline.base.errors import DataError
from pipeline.steps.report.documents import REMEDY, Json, field

PERCENTILES = ("p50", "p90", "p99")
STEPS = ("decode", "preprocess", "copy", "inference", "postprocess", "total")  # of one image, end to end


@dataclass(frozen=True, kw_only=True)
class Interval:
    """A value with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Samples per second with a 95 % interval, whose ends are None where there were too few samples for one."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How good the answers to `count` images are, in percent with a 95 % interval.

    `metric` is "accuracy", top-1 with Wilson's interval, or "mIoU", the mean of `per_class` with a bootstrap interval.
    `confusion` counts images: a row for each true class, a column for each class they were taken for.
    """

    metric: str
    percent: float
    low: float
    high: float
    count: int
    correct: int | None = None
    per_class: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    confusion: tuple[tuple[int, ...], ...] = ()

    @property
    def exact(self) -> Fraction:
        """Percent as an exact fraction, so that a budget met to the image, or to 0.01 points of mIoU, is met."""
        return Fraction(str(self.percent)) if self.correct is None else Fraction(100 * self.correct, self.count)


@dataclass(frozen=True, kw_only=True)
class Latency:
    """Percentiles in milliseconds with their order-statistic 95 % intervals."""

    p50: float
    p50_low: float
    p50_high: float
    p90: float
    p90_low: float
    p90_high: float
    p99: float
    p99_low: float
    p99_high: float


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What one of MLPerf's scenarios found: a percentile of latency in milliseconds, or samples per second (Offline).

    `estimates_ms` are the early-stopping estimates by percentile, upper bounds with 99 % confidence; None where there
    are too few queries for one.
    """

    name: str
    percentile: int | None
    result: Interval | Rate
    estimates_ms: Mapping[str, float | None]
    queries: int
    samples_per_query: int
    seconds: float
    valid: bool
    reasons: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class Energy:
    """Millijoules of an inference above idle power, and what they were read from."""

    per_inference: Interval
    counter: str
    idle_w: float
    seconds: float


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compiled model as measured on one target; None is not measured."""

    name: str
    precision: str
    onnx_sha256: str
    engine_bytes: int
    accuracy: Accuracy
    latency: Latency
    golden_tolerance: float | None
    bundle_bytes: int | None = None
    scenarios: tuple[Scenario, ...] = ()
    steps: Mapping[str, Interval | None] = dataclasses.field(default_factory=dict)
    memory_mb: float | None = None
    load_seconds: float | None = None
    cold_start_seconds: float | None = None
    energy: Energy | None = None
    energy_reason: str | None = None
    over_budget: tuple[str, ...] = ()
    placement: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def read_variant(name: str, record: Json, *, source: Path) -> Variant:
    """Reads a variant's part of a record.

    Raises:
        DataError: something is missing, of another kind, or cannot be.
    """
    latency = {key: field(record, f"latency_ms.{key}", float, source=source) for key in _latency_keys()}
    if min(latency.values()) <= 0:
        msg = f"Record {str(source)!r}: `variants.{name}.latency_ms` holds a latency that is not positive: {REMEDY}"
        raise DataError(msg)
    return Variant(
        name=name,
        precision=field(record, "precision", str, source=source),
        onnx_sha256=field(record, "onnx_sha256", str, source=source),
        engine_bytes=field(record, "engine_bytes", int, source=source),
        bundle_bytes=_optional(record, "bundle_bytes", int, source=source),
        accuracy=_accuracy(record, source=source),
        latency=Latency(**latency),
        scenarios=tuple(_scenario(each, record, source=source) for each in record.get("scenarios") or {}),
        steps=_steps(record, source=source),
        memory_mb=_optional(record, "memory_mb", float, source=source),
        load_seconds=_optional(record, "load_seconds", float, source=source),
        cold_start_seconds=_optional(record, "cold_start_seconds", float, source=source),
        energy=_energy(record, source=source) if record.get("energy") else None,
        energy_reason=record.get("energy_reason"),
        golden_tolerance=field(record, "golden.tolerance", float, source=source) if record.get("golden") else None,
        over_budget=tuple(map(str, record.get("over_budget") or ())),
        placement=record.get("placement") or {},
    )


def read_interval(record: Json, key: str, *, source: Path, value: str = "value") -> Interval:
    """Reads the object at a dotted key, `value`, `low` and `high`, or whatever its value is called."""
    names = (value, "low", "high") if value == "value" else (value, f"{value}_low", f"{value}_high")
    found = (field(record, f"{key}.{name}", float, source=source) for name in names)
    return Interval(**dict(zip(("value", "low", "high"), found, strict=True)))


def _latency_keys() -> list[str]:
    return [f"{percentile}{end}" for percentile in PERCENTILES for end in ("", "_low", "_high")]


def _optional(record: Json, key: str, kind: type[Any], *, source: Path) -> Any:
    return None if record.get(key) is None else field(record, key, kind, source=source)


def _accuracy(record: Json, *, source: Path) -> Accuracy:
    metric = field(record, "accuracy.metric", str, source=source)
    whole = {
        key: field(record, f"accuracy.{key}", int, source=source)
        for key in ("count", *(("correct",) if metric == "accuracy" else ()))
    }
    if not 0 <= whole.get("correct", 0) <= whole["count"] or whole["count"] == 0:
        msg = f"Record {str(source)!r}: {whole.get('correct')} of {whole['count']} images correct cannot be: {REMEDY}"
        raise DataError(msg)
    return Accuracy(
        metric=metric,
        per_class=record["accuracy"].get("per_class_percent") or {},
        confusion=_confusion(record["accuracy"], source=source),
        percent=field(record, "accuracy.percent", float, source=source),
        low=field(record, "accuracy.low_percent", float, source=source),
        high=field(record, "accuracy.high_percent", float, source=source),
        **whole,
    )


def _confusion(accuracy: Json, *, source: Path) -> tuple[tuple[int, ...], ...]:
    """The counts, whose rows and columns must be the classes of `per_class_percent`."""
    rows, classes = accuracy.get("confusion"), len(accuracy.get("per_class_percent") or {})
    if rows is None:
        return ()
    if len(rows) != classes or any(len(row) != classes for row in rows):
        msg = f"Record {str(source)!r}: `accuracy.confusion` is not of {classes} x {classes} counts: {REMEDY}"
        raise DataError(msg)
    return tuple(map(tuple, rows))


def _scenario(name: str, record: Json, *, source: Path) -> Scenario:
    own: Json = field(record, f"scenarios.{name}", dict, source=source)
    offline = own.get("percentile") is None
    estimates = own.get("early_stopping_ms") or {}
    return Scenario(
        name=name,
        percentile=None if offline else field(own, "percentile", int, source=source),
        result=_rate(own, source=source) if offline else read_interval(own, "latency_ms", source=source),
        estimates_ms={each: _optional(estimates, each, float, source=source) for each in estimates},
        queries=field(own, "queries", int, source=source),
        samples_per_query=field(own, "samples_per_query", int, source=source),
        seconds=field(own, "seconds", float, source=source),
        valid=field(own, "valid", bool, source=source),
        reasons=tuple(map(str, own.get("invalid_reasons") or ())),
    )


def _rate(record: Json, *, source: Path) -> Rate:
    value = field(record, "samples_per_second.value", float, source=source)
    own: Json = record["samples_per_second"]
    return Rate(
        value=value, low=_optional(own, "low", float, source=source), high=_optional(own, "high", float, source=source)
    )


def _steps(record: Json, *, source: Path) -> dict[str, Interval | None]:
    steps = record.get("end_to_end_ms") or {}
    return {
        step: read_interval(steps, step, source=source, value="p50") if steps.get(step) else None
        for step in STEPS
        if step in steps
    }


def _energy(record: Json, *, source: Path) -> Energy:
    return Energy(
        per_inference=Interval(
            value=field(record, "energy.mj_per_inference", float, source=source),
            low=field(record, "energy.low", float, source=source),
            high=field(record, "energy.high", float, source=source),
        ),
        counter=field(record, "energy.counter", str, source=source),
        idle_w=field(record, "energy.idle_w", float, source=source),
        seconds=field(record, "energy.seconds", float, source=source),
    )
