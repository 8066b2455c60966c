"""Which variant to deploy on a target, and why, in plain English.

The rule: of the variants that lose at most `max_drop_points` of accuracy against the reference, and keep the target's
own budget, take the fastest by p90; where none keeps that budget, the fastest of the others is named, and why it will
not do. Both budgets count the figures as measured, not their intervals: a budget met to the image is met. Variants
between which no difference of speed can be measured (`pairs.Pair`) are equal; of these the most accurate wins as far
as that can be measured, then the smallest.

"No measurable difference" is not transitive: a can equal b and b equal c while c is clearly slower than a. So a variant
takes part in the tie only where no variant within the budget is measurably faster. All members of the tie are then
equal pairwise, and a clearly slower variant is never chosen. The tie has a member, whatever the intervals of the pairs:
who is measurably faster also has the smaller p90, so nothing beats the variant with the smallest. The same holds for
accuracy within the tie.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pipeline.base.errors import DataError, ParamsError
from pipeline.steps.report import figures
from pipeline.steps.report.pairs import Pair
from pipeline.steps.report.records import Target
from pipeline.steps.report.variants import Variant

Status = Literal["chosen", "equal", "slower", "over budget", "failed", "skipped"]
HALF_PRECISIONS = ("bf16", "fp16")


@dataclass(frozen=True, kw_only=True)
class VariantVerdict:
    """What became of one variant.

    `word` is what the tables print; `points` and `speedup` compare accuracy and p90 with the reference and are None
    where the variant was not measured.
    """

    name: str
    status: Status
    word: str
    points: float | None = None
    speedup: float | None = None


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """The choice for one target; in an invalid run it stands for nothing but the figures at hand."""

    target: str
    chosen: str
    reference: str
    words: str
    valid: bool
    variants: tuple[VariantVerdict, ...]

    def of(self, name: str) -> VariantVerdict:
        """The verdict on one variant."""
        return next(variant for variant in self.variants if variant.name == name)


def judge(target: Target, *, max_drop_points: float, reference: str = "fp32") -> Verdict:
    """Chooses a variant of `target` by the rule above.

    Args:
        target: the measurement record.
        max_drop_points: accuracy budget in percentage points against `reference`.
        reference: name of the variant that the budget counts from.

    Raises:
        DataError: the reference was not measured.
        ParamsError: the budget is negative.
    """
    if not max_drop_points >= 0:
        msg = f"`max_drop_points` is {max_drop_points!r}: give the accuracy budget as zero or more points"
        raise ParamsError(msg)
    base = target.variant(reference)
    if base is None:
        raise DataError(_no_reference(target, reference))
    budget = Fraction(str(max_drop_points))  # the decimal as it was written, not its nearest double
    accurate = [variant for variant in target.variants if base.accuracy.exact - variant.accuracy.exact <= budget]
    within = [variant for variant in accurate if not variant.over_budget] or accurate
    tied = [one for one in within if not any(Pair.of(target, other, one).faster for other in within)]
    top = [one for one in tied if not any(Pair.of(target, other, one).more_accurate for other in tied)]
    best = min(top, key=lambda v: (v.engine_bytes, -v.accuracy.exact, v.latency.p90, v.name))
    words = _words(target, base, best, within=within, tied=tied, max_drop_points=max_drop_points)
    return Verdict(
        target=target.name,
        chosen=best.name,
        reference=reference,
        words=words,
        valid=target.valid,
        variants=_variant_verdicts(target, base, best, within=within, tied=tied),
    )


def _no_reference(target: Target, reference: str) -> str:
    why = next(
        (f" ({word}: {names[reference]})" for word, names in _unmeasured(target).items() if reference in names), ""
    )
    others = ", ".join(variant.name for variant in target.variants) or "none"
    return (
        f"Target {target.name!r} has no measurement of {reference!r}, from which the budget counts{why}; "
        f"measured: {others}. Mend it and run `dvc repro`, or name another reference"
    )


def _unmeasured(target: Target) -> dict[Status, dict[str, str]]:
    return {"failed": dict(target.failed), "skipped": dict(target.skipped)}


def _variant_verdicts(
    target: Target, base: Variant, best: Variant, *, within: Sequence[Variant], tied: Sequence[Variant]
) -> tuple[VariantVerdict, ...]:
    verdicts = []
    for variant in target.variants:
        gain = Pair.of(target, variant, base).gain
        status: Status
        if variant.over_budget or variant not in within:
            status = "over budget"
        elif variant is best:
            status = "chosen"
        else:
            status = "equal" if variant in tied else "slower"
        over = "; ".join(variant.over_budget) or figures.signed_points(gain)
        word = f"over budget ({over})" if status == "over budget" else status
        speedup = base.latency.p90 / variant.latency.p90
        verdicts.append(VariantVerdict(name=variant.name, status=status, word=word, points=gain, speedup=speedup))
    for status, names in _unmeasured(target).items():
        verdicts += [VariantVerdict(name=name, status=status, word=f"{status}: {names[name]}") for name in names]
    return tuple(verdicts)


def _words(
    target: Target,
    base: Variant,
    best: Variant,
    *,
    within: Sequence[Variant],
    tied: Sequence[Variant],
    max_drop_points: float,
) -> str:
    rival = base  # the one that the reason compares `best` with
    if best is base:
        rival = min((v for v in within if v is not base), key=lambda v: v.latency.p90, default=base)
        budget = f"the {base.accuracy.metric} budget of {figures.points(max_drop_points)}"
        reason = _why_reference(target, base, rival, tied=tied, budget=budget)
    else:
        reason = _why_other(target, base, best, within=within, tied=tied)
    advice = f"{best.name}: {reason}."
    if target.valid and best.over_budget:
        advice = (
            f"No variant keeps the budget of this target; the nearest is {best.name}, {'; '.join(best.over_budget)}."
        )
    elif target.valid:
        advice = f"Use {advice}"
    else:
        reasons = "; ".join(target.invalid_reasons) or "the record gives no reason"
        advice = f"Invalid run: {reasons.rstrip('.')}. Its figures, which decide nothing, speak for {advice}"
    return " ".join([advice, *_noise_words(target), *_int8_words(target, base, told={best.name, rival.name})])


def _noise_words(target: Target) -> list[str]:
    """Warns where the machine was busy with other work even in the quietest attempt."""
    found = target.run.get("noise")
    return (
        [f"The run was noisy ({'; '.join(found)}): measure again before relying on small differences."] if found else []
    )


def _why_reference(target: Target, base: Variant, rival: Variant, *, tied: Sequence[Variant], budget: str) -> str:
    """Why the reference itself: `rival` is the fastest other variant within the budget, or the reference if none is."""
    pair = Pair.of(target, rival, base)
    if len(target.variants) == 1:
        found = f"{figures.percent(base.accuracy.percent)} on {figures.count(base.accuracy.count)} images"
        p90 = figures.milliseconds(base.latency.p90)
        return f"it is the only variant measured (p90 {p90}, {base.accuracy.metric} {found})"
    if rival is base:
        others = [v for v in target.variants if v is not base]
        lost = [f"{v.name} {'; '.join(v.over_budget) or _loss(target, v, base)}" for v in others]
        limits = "the budgets" if any(v.over_budget for v in others) else budget
        return f"no other variant is within {limits} ({figures.enumerate_words(lost)})"
    if rival in tied:
        edge = _edge(target, base, rival, tied=tied)
        return f"{rival.name} is not measurably faster ({pair.noise()}), and {base.name} is {edge}"
    ratio = figures.times(base.latency.p90 / rival.latency.p90)
    return f"it is the fastest within {budget}; {rival.name} is not faster ({pair.p90s()}, {ratio})"


def _loss(target: Target, variant: Variant, base: Variant) -> str:
    return f"loses {figures.points(Pair.of(target, variant, base).gain)}"


def _why_other(
    target: Target, base: Variant, best: Variant, *, within: Sequence[Variant], tied: Sequence[Variant]
) -> str:
    """Why another than the reference."""
    pair = Pair.of(target, best, base)
    if base in tied:
        edge = _edge(target, best, base, tied=tied)
        return f"it is not measurably faster than {base.name} ({pair.noise()}) but {edge}"
    if not pair.as_fast:
        ratio = figures.times(base.latency.p90 / best.latency.p90)
        return f"{ratio} as {base.name} ({pair.p90s()}) {pair.accuracy_words()}"
    words = f"it is not measurably faster than {base.name} ({pair.noise()}) {pair.accuracy_words()}"
    ahead = next((v for v in within if Pair.of(target, v, base).faster), None)
    if ahead is None:
        return words
    return f"{words}, and {base.name} is measurably slower than {ahead.name} ({Pair.of(target, base, ahead).p90s()})"


def _edge(target: Target, winner: Variant, loser: Variant, *, tied: Sequence[Variant]) -> str:
    """What decides between two variants of equal speed, or a third one, where the smaller of the two is out by it."""
    pair = Pair.of(target, winner, loser)
    if pair.more_accurate or winner.engine_bytes <= loser.engine_bytes:
        return pair.edge()
    ahead = next(each for each in (Pair.of(target, v, loser) for v in tied) if each.more_accurate)
    return f"not measurably less accurate than {ahead.one.name}, as {loser.name} is ({ahead.percents()})"


def _int8_words(target: Target, base: Variant, *, told: set[str]) -> list[str]:
    """Says with the numbers where INT8, expected to be faster, is not; the pair `told` has been compared already.

    Of several INT8 variants the fastest speaks for all.
    """
    fastest = min((v for v in target.variants if _is_int8(v)), key=lambda v: v.latency.p90, default=None)
    if fastest is None:
        return []
    ahead = []
    for rival in (v for v in target.variants if v is base or v.precision in HALF_PRECISIONS):
        pair = Pair.of(target, fastest, rival)
        if rival is fastest or {rival.name, fastest.name} == told or pair.faster:
            continue
        same = "intervals overlap" if pair.ratio is None else "no measurable difference"
        note = f", {same}" if pair.as_fast else ""
        ahead.append(f"{rival.name} ({figures.milliseconds(rival.latency.p90)}{note})")
    if not ahead:
        return []
    several = sum(_is_int8(variant) for variant in target.variants) > 1
    own = f"{fastest.name} (p90 {figures.milliseconds(fastest.latency.p90)})"
    subject = f"The fastest INT8 variant, {own}," if several else own
    return [f"{subject} is not faster than {figures.enumerate_words(ahead, 'or')}."]


def _is_int8(variant: Variant) -> bool:
    return variant.precision.startswith("int8")
