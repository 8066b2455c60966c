"""What the report shows of how a target was measured: scenarios, steps of an image, resources, pairs of variants."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations

from pipeline.steps.report import figures
from pipeline.steps.report.pairs import Pair
from pipeline.steps.report.records import Target
from pipeline.steps.report.variants import STEPS, Interval, Rate, Scenario, Variant

Row = tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class View:
    """Tables of one target, as rows of cells; a table without rows was not measured.

    `percentiles` has p50, p90 and p99; `scenarios` scenario, result, early-stopping estimate, queries, seconds and
    validity; `steps` the milliseconds of each step of an image; `resources` memory, times of loading, sizes and energy;
    `pairs` the difference of accuracy, the ratio of latency and what is made of them.
    """

    words: str
    percentiles: tuple[Row, ...]
    scenarios: tuple[Row, ...]
    steps: tuple[Row, ...]
    resources: tuple[Row, ...]
    energy: tuple[str, ...]
    pairs: tuple[Row, ...]
    method: str | None


def view(target: Target) -> View:
    """Lays a target's measurement out."""
    variants = target.variants
    methods = dict.fromkeys(each.accuracy_method for each in target.differences.values() if each.accuracy_method)
    return View(
        words=_words(target),
        percentiles=tuple(_percentiles(variant) for variant in variants),
        scenarios=tuple((v.name, *_scenario(each)) for v in variants for each in v.scenarios),
        steps=tuple((v.name, *_steps(v)) for v in variants if v.steps),
        resources=tuple(_resources(variant) for variant in variants),
        energy=tuple(dict.fromkeys(_energy_note(variant) for variant in variants)),
        pairs=tuple(_pairs(target)),
        method="; ".join(methods) or None,
    )


def _words(target: Target) -> str:
    """Profile, minimum, engine of statistics and attempts, in one line."""
    run, parts = target.run, [f"{target.runtime} {target.runtime_version}"]
    if "profile" in run:
        parts.append(f"profile {run['profile']}")
    if "minimum" in run:
        minimum = run["minimum"]
        queries, seconds = figures.count(minimum["queries"]), figures.plain(minimum["seconds"])
        parts.append(f"at least {queries} queries and {seconds} s per variant")
    if "statistics_engine" in run:
        parts.append(f"statistics by {run['statistics_engine']['name']} {run['statistics_engine']['version']}")
    if run.get("attempts", 1) > 1:
        parts.append(f"{run['attempts']} attempts, of which the quietest one stands here")
    return ", ".join(parts)


def spread(found: Interval | Rate | None) -> str:
    """A value and its interval in brackets, with the digits of the value."""
    if found is None:
        return "-"
    places = len(figures.decimal(found.value).partition(".")[2])
    value = f"{found.value:,.{places}f}"
    if found.low is None or found.high is None:
        return value
    return f"{value} ({found.low:,.{places}f} to {found.high:,.{places}f})"


def _percentiles(variant: Variant) -> Row:
    each = variant.latency
    ends = (
        Interval(value=each.p50, low=each.p50_low, high=each.p50_high),
        Interval(value=each.p90, low=each.p90_low, high=each.p90_high),
        Interval(value=each.p99, low=each.p99_low, high=each.p99_high),
    )
    return (variant.name, *map(spread, ends))


def _scenario(found: Scenario) -> Row:
    if found.percentile is None:
        result = f"{spread(found.result)} samples/s"
    else:
        result = f"p{found.percentile} {spread(found.result)} ms"
    estimate = ", ".join(f"{name} {_estimate(value)}" for name, value in found.estimates_ms.items()) or "-"
    valid = "valid" if found.valid else f"not valid: {'; '.join(found.reasons) or 'no reason recorded'}"
    queries, samples = figures.count(found.queries), figures.count(found.samples_per_query)
    if found.samples_per_query > 1:
        queries = f"{queries} of {samples} samples"
    return found.name, result, estimate, queries, f"{found.seconds:.1f} s", valid


def _estimate(value: float | None) -> str:
    return "too few queries" if value is None else figures.milliseconds(value)


def _steps(variant: Variant) -> Row:
    """Milliseconds of each step; the whole alone with its interval, as the steps' own are narrower still."""
    *parts, whole = (variant.steps.get(step) for step in STEPS)
    return (*("-" if part is None else figures.decimal(part.value) for part in parts), spread(whole))


def _resources(variant: Variant) -> Row:
    energy = None if variant.energy is None else variant.energy.per_inference
    return (
        variant.name,
        "-" if variant.memory_mb is None else f"{figures.decimal(variant.memory_mb)} MB",
        _seconds(variant.load_seconds),
        _seconds(variant.cold_start_seconds),
        figures.megabytes(variant.engine_bytes),
        "-" if variant.bundle_bytes is None else figures.megabytes(variant.bundle_bytes),
        "-" if energy is None else f"{spread(energy)} mJ",
    )


def _seconds(value: float | None) -> str:
    if value is None:
        return "-"
    return figures.milliseconds(1000 * value) if value < 1 else f"{figures.decimal(value)} s"


def _energy_note(variant: Variant) -> str:
    energy = variant.energy
    if energy is None:
        return f"Energy was not measured: {(variant.energy_reason or 'the record gives no reason').rstrip('.')}."
    return (
        f"Energy of {variant.name} is what {energy.counter} counted in {figures.decimal(energy.seconds)} s, less the "
        f"{figures.decimal(energy.idle_w)} W of the idle device."
    )


def _pairs(target: Target) -> Iterator[Row]:
    """Each pair that was compared, the later variant against the earlier one."""
    for reference, variant in combinations(target.variants, 2):
        pair = Pair.of(target, variant, reference)
        if pair.difference is None:
            continue
        points, ratio = pair.points, pair.ratio
        yield (
            f"{variant.name} against {reference.name}",
            "-" if points is None else f"{_signed(points.value)} ({_signed(points.low)} to {_signed(points.high)})",
            "equal" if pair.as_accurate else "better" if pair.more_accurate else "worse",
            "-" if ratio is None else figures.ratio(ratio.value, ratio.low, ratio.high),
            "equal" if pair.as_fast else "faster" if pair.faster else "slower",
        )


def _signed(points: float) -> str:
    return figures.signed_points(points).removesuffix(" points")
