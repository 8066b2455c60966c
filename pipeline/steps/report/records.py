"""Reads the measurement records that the report is made of."""

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.base.errors import DataError
from pipeline.steps.report.documents import MEASUREMENT_SCHEMA, REMEDY, Json, field, read_json
from pipeline.steps.report.variants import Interval, Variant, read_interval, read_variant


@dataclass(frozen=True, kw_only=True)
class Difference:
    """How a variant differs from a reference measured in turns with it; None was not compared.

    `accuracy_points` is paired by image, variant less reference; `latency_ratio`, variant over reference, is of p90 and
    paired by round.
    """

    variant: str
    reference: str
    accuracy_points: Interval | None
    accuracy_method: str | None
    latency_ratio: Interval | None

    def turned(self) -> "Difference":
        """The same, with reference and variant changed for each other."""
        points, ratio = self.accuracy_points, self.latency_ratio
        return Difference(
            variant=self.reference,
            reference=self.variant,
            accuracy_points=points and Interval(value=-points.value, low=-points.high, high=-points.low),
            accuracy_method=self.accuracy_method,
            latency_ratio=ratio and Interval(value=1 / ratio.value, low=1 / ratio.high, high=1 / ratio.low),
        )


@dataclass(frozen=True, kw_only=True)
class Target:
    """One measurement record: `folder` holds what lies beside it, `differences` go by (variant, reference)."""

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
    differences: Mapping[tuple[str, str], Difference] = dataclasses.field(default_factory=dict)

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

    def difference(self, one: Variant, other: Variant) -> Difference | None:
        """How `one` differs from `other`, whichever way round it was recorded; None where it was not."""
        found = self.differences.get((one.name, other.name))
        if found is None and (turned := self.differences.get((other.name, one.name))) is not None:
            return turned.turned()
        return found


def _target(folder: Path) -> Target:
    source = folder / "record.json"
    record = read_json(source, schema=MEASUREMENT_SCHEMA)
    variants = field(record, "variants", dict, source=source)
    run_keys = ("profile", "statistics_engine", "minimum", "attempts", "partial", "noise")
    return Target(
        name=field(record, "target", str, source=source),
        folder=folder,
        runtime=field(record, "runtime", str, source=source),
        runtime_version=str(record.get("runtime_version")),
        valid=field(record, "valid", bool, source=source),
        invalid_reasons=tuple(map(str, record.get("invalid_reasons") or ())),
        variants=tuple(read_variant(name, variants[name], source=source) for name in variants),
        skipped={name: str(reason) for name, reason in (record.get("skipped") or {}).items()},
        failed={name: str(reason) for name, reason in (record.get("failed") or {}).items()},
        device=record.get("device") or {},
        state=record.get("state") or {},
        run={key: record[key] for key in run_keys if record.get(key) is not None},
        differences=_differences(record, source=source),
    )


def _differences(record: Json, *, source: Path) -> dict[tuple[str, str], Difference]:
    found = (_difference(each, source=source) for each in record.get("differences") or ())
    return {(each.variant, each.reference): each for each in found}


def _difference(record: Json, *, source: Path) -> Difference:
    points, ratio = record.get("accuracy_points"), record.get("latency_ratio")
    if ratio and not field(record, "latency_ratio.low", float, source=source) > 0:
        msg = f"Record {str(source)!r}: `latency_ratio.low` is {ratio['low']!r}, expected more than 0: {REMEDY}"
        raise DataError(msg)
    return Difference(
        variant=field(record, "variant", str, source=source),
        reference=field(record, "reference", str, source=source),
        accuracy_points=read_interval(record, "accuracy_points", source=source) if points else None,
        accuracy_method=str(points["method"]) if points and points.get("method") else None,
        latency_ratio=read_interval(record, "latency_ratio", source=source) if ratio else None,
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
