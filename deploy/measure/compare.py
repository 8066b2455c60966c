"""Two measurement records of one target against each other: what became better or worse, and what is only noise."""

import base64
import binascii
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.document import Document
from deploy.measure.comparable import notes, obstacles
from deploy.measure.statistics import Interval, paired_difference, unpaired_difference

BETTER, WORSE, SAME = "better", "worse", "no measurable difference"
PERCENTILES = ("p50", "p90", "p99")
# p99 of two separate runs is as much the machine's tail as the engine's: it is told, and fails nothing.
GATED = ("accuracy", "p50", "p90")
MEMORY_NOISE = 0.05  # of a peak that is measured once: allocators and threads move it by a few percent
SEPARATE = "two separate runs: intervals of both, squared and added as logarithms"


@dataclass(frozen=True, kw_only=True)
class Tolerance:
    """Up to where a measurable difference for the worse is accepted.

    Attributes:
        accuracy_points: of accuracy or mIoU.
        latency_percent: of p50 and p90.
    """

    accuracy_points: float
    latency_percent: float


@dataclass(frozen=True, kw_only=True)
class Row:
    """One quantity of one variant before and after.

    Attributes:
        target: the target's name.
        variant: the variant's name.
        quantity: such as "p90".
        unit: of `before` and `after`.
        before: in the earlier record.
        after: in the later one.
        difference: after less before in points for accuracy, after over before for all else; None over 0.
        low: lower end of its 95 % interval, None where what was measured has none.
        high: upper end.
        method: how the interval was made, or what stands for it.
        verdict: `BETTER`, `WORSE` or `SAME`.
        regression: whether it is worse by more than is accepted.
    """

    target: str
    variant: str
    quantity: str
    unit: str
    before: float
    after: float
    difference: float | None
    low: float | None
    high: float | None
    method: str
    verdict: str
    regression: bool = False


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What two records of a target say of each other.

    Attributes:
        rows: the differences.
        obstacles: why they should not be compared at all.
        notes: what a reader should know besides.
    """

    rows: tuple[Row, ...]
    obstacles: tuple[str, ...]
    notes: tuple[str, ...]


def compare(before: Document, after: Document, *, tolerance: Tolerance) -> Comparison:
    """Compare all variants that two records of a target have in common.

    Accuracy is compared in pairs of images where both records are of the same test images, otherwise as of independent
    samples; mean IoU, whose records keep nothing by image, always so, by the same rule: the distances of the ends of
    both intervals from their values are squared and added (Zou and Donner, "Construction of confidence limits about
    effect measures", Statistics in Medicine 27, 2008). Latencies, rates and energies of two runs are not interleaved:
    their intervals are combined so on a logarithmic scale, and what differs from run to run beyond them is left to
    `tolerance`.

    Args:
        before: a record, of the schema `deploy.measure.record.SCHEMA`.
        after: the other, of the same target.
        tolerance: what is accepted.

    Raises:
        DeployError: of the documents' kind, where a record lacks something.
    """
    ours, theirs = before.mapping("variants"), after.mapping("variants")
    common = [name for name in ours if name in theirs]
    rows: list[Row] = []
    for name in common:
        pair = _of(before, ours[name], name), _of(after, theirs[name], name)
        rows += _rows(before, after, name, pair, tolerance=tolerance)
    return Comparison(
        rows=tuple(rows),
        obstacles=tuple(obstacles(before, after, common)),
        notes=tuple(notes(before, after, common)),
    )


def _of(record: Document, content: Any, name: str) -> Document:
    """Return a variant's part; its messages name it."""
    if not isinstance(content, dict):
        record.fail(f"`variants.{name}` should be an object, got {content!r}")
    return Document(record.path / name, content, error=record.error, remedy=record.remedy)


def _rows(
    before: Document, after: Document, name: str, pair: tuple[Document, Document], *, tolerance: Tolerance
) -> Iterator[Row]:
    place = {"target": before.text("target"), "variant": name}
    yield _accuracy(before, after, pair, place, most=tolerance.accuracy_points)
    for quantity in PERCENTILES:
        ends = [_interval(each, f"latency_ms.{quantity}", f"latency_ms.{quantity}_") for each in pair]
        most = tolerance.latency_percent / 100 if quantity in GATED else math.inf
        yield _ratio(ends, place, quantity=quantity, unit="ms", most=most)
    for quantity, unit, key, value, more in (
        ("throughput", "samples/s", "scenarios.Offline.samples_per_second", "value", True),
        ("energy", "mJ", "energy", "mj_per_inference", False),
    ):
        if all(_has(each, f"{key}.low") for each in pair):  # a rate of few samples has no interval
            ends = [_interval(each, f"{key}.{value}", f"{key}.") for each in pair]
            yield _ratio(ends, place, quantity=quantity, unit=unit, most=math.inf, more_is_better=more)
    if all(_has(each, "memory_mb") for each in pair):
        values = [each.number("memory_mb") for each in pair]
        method = f"one value of each run: less than {MEMORY_NOISE:.0%} is taken for noise"
        yield _plain(values, place, quantity="memory", unit="MB", noise=MEMORY_NOISE, method=method)
    sizes = [each.integer("engine_bytes") / 1e6 for each in pair]
    yield _plain(sizes, place, quantity="size", unit="MB", noise=0.0, method="exact")


def _has(variant: Document, key: str) -> bool:
    value: Any = variant.content
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value is not None


def _interval(variant: Document, key: str, ends: str) -> Interval:
    return Interval(variant.number(key), variant.number(f"{ends}low"), variant.number(f"{ends}high"))


def _accuracy(
    before: Document, after: Document, pair: tuple[Document, Document], place: Mapping[str, Any], *, most: float
) -> Row:
    metric = pair[0].text("accuracy.metric")
    if pair[1].text("accuracy.metric") != metric:
        pair[1].fail(f"`accuracy.metric` is {pair[1].text('accuracy.metric')!r}, {metric!r} in the other record")
    ends = [Interval(*(each.number(f"accuracy.{key}percent") for key in ("", "low_", "high_"))) for each in pair]
    if metric != "accuracy":
        found: Interval = _square_and_add(ends[1], ends[0])
        method = "two separate runs: intervals of both, squared and added"
    else:
        same = before.text("data_sha256") == after.text("data_sha256")
        right = [_right(each) if same else None for each in pair]
        if right[0] is not None and right[1] is not None and len(right[0]) == len(right[1]):
            difference = paired_difference(right[1], right[0])
        else:
            counts = [(each.integer("accuracy.correct", minimum=0), each.integer("accuracy.count")) for each in pair]
            difference = unpaired_difference(*counts[1], their_correct=counts[0][0], their_count=counts[0][1])
        found, method = difference, difference.method
    verdict = SAME if found.low <= 0 <= found.high else BETTER if found.value > 0 else WORSE
    return Row(
        **place, quantity=metric, unit="%", before=ends[0].value, after=ends[1].value, difference=found.value,
        low=found.low, high=found.high, method=method, verdict=verdict,
        regression=verdict == WORSE and _beyond(-found.value, most),
    )  # fmt: skip


def _right(variant: Document) -> NDArray[np.bool_] | None:
    """Unpack which images were answered rightly; None where the record does not say."""
    if not _has(variant, "accuracy.right"):
        return None
    count = variant.integer("accuracy.count")
    try:
        packed = base64.b64decode(variant.text("accuracy.right"), validate=True)
    except binascii.Error as cause:
        variant.fail(f"`accuracy.right` is not base64 ({cause})")
    bits = np.unpackbits(np.frombuffer(packed, np.uint8))
    if len(packed) != math.ceil(count / 8) or bits[:count].sum() != variant.integer("accuracy.correct", minimum=0):
        variant.fail(f"`accuracy.right` does not hold {count} answers as the record counts them")
    return bits[:count].astype(bool)


def _square_and_add(ours: Interval, theirs: Interval) -> Interval:
    """Return ours less theirs, of independent estimates."""
    value = ours.value - theirs.value
    low = value - math.hypot(ours.value - ours.low, theirs.high - theirs.value)
    return Interval(value, low, value + math.hypot(ours.high - ours.value, theirs.value - theirs.low))


def _ratio(
    ends: list[Interval],
    place: Mapping[str, Any],
    *,
    quantity: str,
    unit: str,
    most: float,
    more_is_better: bool = False,
) -> Row:
    """Compare positive values of two separate runs by their ratio; a value or an end of 0 or less has no logarithm."""
    if any(min(each.value, each.low) <= 0 for each in ends):
        values = [each.value for each in ends]
        return _plain(values, place, quantity=quantity, unit=unit, noise=math.inf, method="too close to 0 for a ratio")
    logs = [Interval(*(math.log(end) for end in (each.value, each.low, each.high))) for each in ends]
    found = _square_and_add(logs[1], logs[0])
    ratio, low, high = (math.exp(end) for end in (found.value, found.low, found.high))
    verdict = SAME if low <= 1 <= high else BETTER if (ratio > 1) == more_is_better else WORSE
    return Row(
        **place, quantity=quantity, unit=unit, before=ends[0].value, after=ends[1].value, difference=ratio, low=low,
        high=high, method=SEPARATE, verdict=verdict, regression=verdict == WORSE and _beyond(ratio - 1, most),
    )  # fmt: skip


def _beyond(loss: float, most: float) -> bool:
    """Say whether a loss is more than is accepted; 3.0000000000000027 points are three."""
    return round(loss - most, 9) > 0


def _plain(
    values: list[float], place: Mapping[str, Any], *, quantity: str, unit: str, noise: float, method: str
) -> Row:
    """Compare two values without intervals, of which less is better."""
    before, after = values
    ratio = after / before if before else None
    same = before == after or noise == math.inf or (ratio is not None and abs(ratio - 1) <= noise)
    verdict = SAME if same else BETTER if after < before else WORSE
    return Row(
        **place, quantity=quantity, unit=unit, before=before, after=after, difference=ratio, low=None, high=None,
        method=method, verdict=verdict,
    )  # fmt: skip
