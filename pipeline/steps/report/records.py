"""Reads the records that the report is made of; what is missing or malformed is refused in words."""

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, TypeVar

from pipeline.base.errors import DataError

SCHEMA = 1
TRAINING_SCHEMA = 2  # of the training record
REMEDY = "run `dvc repro`"
Json = Mapping[str, Any]
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Accuracy:
    """How good the answers to `count` images are, in percent with a 95 % interval.

    `metric` is "accuracy", top-1 with Wilson's interval, or "mIoU", the mean of `per_class` with a bootstrap interval.
    """

    metric: str
    percent: float
    low: float
    high: float
    count: int
    correct: int | None = None
    per_class: Mapping[str, float | None] = dataclasses.field(default_factory=dict)

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


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One compiled model as measured on one target."""

    name: str
    precision: str
    onnx_sha256: str
    engine_bytes: int
    accuracy: Accuracy
    latency: Latency
    golden_tolerance: float | None
    over_budget: tuple[str, ...] = ()
    placement: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Target:
    """One measurement record: `folder` holds what lies beside it."""

    name: str
    folder: Path
    runtime: str
    runtime_version: str
    valid: bool
    invalid_reasons: tuple[str, ...]
    variants: tuple[Variant, ...]
    skipped: Mapping[str, str]
    failed: Mapping[str, str]
    device: Json
    state: Json
    run: Json

    @property
    def hardware(self) -> str | None:
        """What the engines ran on, never its name in a network; None where the fingerprint does not say."""
        place, cpu = self.device.get("place") or {}, self.device.get("cpu") or {}
        model, cores = cpu.get("model"), cpu.get("cores")
        found = place.get("board") or (place.get("gpu") or {}).get("name") or place.get("name") or model
        return f"{model}, {cores} cores" if found is not None and found == model and cores else found

    def variant(self, name: str) -> Variant | None:
        """The measured variant of this name, if there is one."""
        return next((variant for variant in self.variants if variant.name == name), None)


def read_json(path: Path, *, schema: int = SCHEMA) -> dict[str, Any]:
    """Reads a record of one schema.

    Raises:
        DataError: the file is missing, not JSON, or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"No record at {str(path)!r}: {REMEDY}"
        raise DataError(msg) from None
    except ValueError as error:
        msg = f"Record {str(path)!r} is not JSON ({error}): delete it and {REMEDY}"
        raise DataError(msg) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != schema:
        msg = f"Record {str(path)!r} has schema {found!r}, this version reads {schema}: {REMEDY}"
        raise DataError(msg)
    return content


def read_optional(path: Path, *, schema: int = SCHEMA) -> dict[str, Any] | None:
    """As `read_json`, but None where there is no such file."""
    return read_json(path, schema=schema) if path.is_file() else None


def field(record: Json, key: str, kind: type[T], *, source: Path) -> T:
    """Takes the value at a dotted key; whole numbers pass as float, but nothing that is not finite.

    Raises:
        DataError: the key is missing or holds another kind of value.
    """
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (isinstance(value, float) and not math.isfinite(value)):
        msg = f"Record {str(source)!r}: `{key}` is {value!r}, expected {kind.__name__}: {REMEDY}"
        raise DataError(msg)
    return value  # type: ignore[no-any-return]  # checked just above


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
        percent=field(record, "accuracy.percent", float, source=source),
        low=field(record, "accuracy.low_percent", float, source=source),
        high=field(record, "accuracy.high_percent", float, source=source),
        **whole,
    )


def _variant(name: str, record: Json, *, source: Path) -> Variant:
    keys = ("p50", "p50_low", "p50_high", "p90", "p90_low", "p90_high")
    latency = {key: field(record, f"latency_ms.{key}", float, source=source) for key in keys}
    if min(latency.values()) <= 0:
        msg = f"Record {str(source)!r}: `variants.{name}.latency_ms` holds a latency that is not positive: {REMEDY}"
        raise DataError(msg)
    return Variant(
        name=name,
        precision=field(record, "precision", str, source=source),
        onnx_sha256=field(record, "onnx_sha256", str, source=source),
        engine_bytes=field(record, "engine_bytes", int, source=source),
        accuracy=_accuracy(record, source=source),
        latency=Latency(**latency),
        golden_tolerance=field(record, "golden.tolerance", float, source=source) if record.get("golden") else None,
        over_budget=tuple(map(str, record.get("over_budget") or ())),
        placement=record.get("placement") or {},
    )


def _target(folder: Path) -> Target:
    source = folder / "record.json"
    record = read_json(source)
    variants = field(record, "variants", dict, source=source)
    run_keys = ("profile", "scenario", "statistics_engine", "minimum")
    return Target(
        name=field(record, "target", str, source=source),
        folder=folder,
        runtime=field(record, "runtime", str, source=source),
        runtime_version=str(record.get("runtime_version")),
        valid=field(record, "valid", bool, source=source),
        invalid_reasons=tuple(map(str, record.get("invalid_reasons") or ())),
        variants=tuple(_variant(name, variants[name], source=source) for name in variants),
        skipped={name: str(reason) for name, reason in (record.get("skipped") or {}).items()},
        failed={name: str(reason) for name, reason in (record.get("failed") or {}).items()},
        device=record.get("device") or {},
        state=record.get("state") or {},
        run={key: record[key] for key in run_keys if key in record},
    )


def read_targets(measured: Path, names: Sequence[str]) -> tuple[Target, ...]:
    """Reads `<measured>/<target>/record.json` of the targets `names`; the folder of a target given up is left out.

    Raises:
        DataError: no target is named, or one has no good record.
    """
    folders = [measured / name for name in sorted(names)]
    if not folders or not measured.is_dir():
        msg = f"No measurement record under {str(measured)!r}: {REMEDY}"
        raise DataError(msg)
    return tuple(_target(folder) for folder in folders)
