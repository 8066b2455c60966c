"""Which variant to deploy on a target, and why, in plain English.

The rule: of the variants that lose at most `max_drop_points` of accuracy against the reference, and keep the target's
own budget, take the fastest by p90; where none keeps that budget, the fastest of the others is named, and why it will
not do. Variants whose p90 intervals overlap are equally fast; of these the most accurate wins, then the smallest.

Overlap alone is not transitive: a can overlap b and b overlap c while c is clearly slower than a. So a variant takes
part in the tie only where no variant within the budget is clearly faster: its lower bound is at most the least upper
bound of all. All members of the tie then overlap pairwise, and a clearly slower variant is never chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Literal

from pipeline.base.errors import DataError, ParamsError
from pipeline.steps.report import figures
from pipeline.steps.report.records import Target, Variant

Status = Literal["chosen", "equal", "slower", "over budget", "failed", "skipped"]
HALF_PRECISIONS = ("bf16", "fp16")
WORDS = {"accuracy": ("more accurate", "as accurate")}


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
    tied = _fastest(within)
    best = min(tied, key=lambda v: (-v.accuracy.exact, v.engine_bytes, v.latency.p90, v.name))
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


def _fastest(variants: Sequence[Variant]) -> list[Variant]:
    """Those that no other variant beats clearly."""
    bound = min(variant.latency.p90_high for variant in variants)
    return [variant for variant in variants if variant.latency.p90_low <= bound]


def _overlap(one: Variant, other: Variant) -> bool:
    return one.latency.p90_low <= other.latency.p90_high and other.latency.p90_low <= one.latency.p90_high


def _gain(variant: Variant, base: Variant) -> float:
    """Accuracy of `variant` less that of `base`, in points."""
    return float(variant.accuracy.exact - base.accuracy.exact)


def _variant_verdicts(
    target: Target, base: Variant, best: Variant, *, within: Sequence[Variant], tied: Sequence[Variant]
) -> tuple[VariantVerdict, ...]:
    verdicts = []
    for variant in target.variants:
        gain = _gain(variant, base)
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
    elif base in tied:
        reason = f"it is not measurably faster than {base.name} ({_noise(best, base)}) but {_edge(best, base)}"
    else:
        ratio = figures.times(base.latency.p90 / best.latency.p90)
        reason = f"{ratio} as {base.name} ({_p90s(best, base)}) {_accuracy_words(best, base)}"
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
    return " ".join([advice, *_int8_words(target, base, told={best.name, rival.name})])


def _why_reference(target: Target, base: Variant, rival: Variant, *, tied: Sequence[Variant], budget: str) -> str:
    """Why the reference itself: `rival` is the fastest other variant within the budget, or the reference if none is."""
    if len(target.variants) == 1:
        found = f"{figures.percent(base.accuracy.percent)} on {figures.count(base.accuracy.count)} images"
        p90 = figures.milliseconds(base.latency.p90)
        return f"it is the only variant measured (p90 {p90}, {base.accuracy.metric} {found})"
    if rival is base:
        others = [v for v in target.variants if v is not base]
        lost = [f"{v.name} {'; '.join(v.over_budget) or 'loses ' + figures.points(_gain(v, base))}" for v in others]
        limits = "the budgets" if any(v.over_budget for v in others) else budget
        return f"no other variant is within {limits} ({figures.enumerate_words(lost)})"
    if rival in tied:
        return f"{rival.name} is not measurably faster ({_noise(rival, base)}), and {base.name} is {_edge(base, rival)}"
    ratio = figures.times(base.latency.p90 / rival.latency.p90)
    return f"it is the fastest within {budget}; {rival.name} is not faster ({_p90s(rival, base)}, {ratio})"


def _noise(one: Variant, other: Variant) -> str:
    return f"{_p90s(one, other)}, intervals overlap"


def _p90s(one: Variant, other: Variant) -> str:
    return f"p90 {figures.milliseconds(one.latency.p90)} against {figures.milliseconds(other.latency.p90)}"


def _edge(winner: Variant, loser: Variant) -> str:
    """What decides between two variants of equal speed."""
    gain = _gain(winner, loser)
    better, equal = WORDS.get(winner.accuracy.metric, (f"better in {winner.accuracy.metric}", "as good"))
    if gain > 0:
        return f"{better} by {figures.points(gain)} ({_percents(winner, loser)})"
    ours, theirs = figures.megabytes(winner.engine_bytes), figures.megabytes(loser.engine_bytes)
    relation = "smaller" if winner.engine_bytes < loser.engine_bytes else "no larger"
    size = f"as small ({ours})" if ours == theirs else f"{relation} ({ours} against {theirs})"
    return f"{equal} ({figures.percent(winner.accuracy.percent)}) and {size}"


def _percents(one: Variant, other: Variant) -> str:
    images = figures.count(one.accuracy.count)
    values = one.accuracy.percent, other.accuracy.percent
    shares = [figures.percent(value) for value in values]
    if shares[0] == shares[1] and values[0] != values[1]:
        shares = [f"{value:.2f} %" for value in values]
    return f"{shares[0]} against {shares[1]} on {images} images"


def _accuracy_words(best: Variant, base: Variant) -> str:
    gain = _gain(best, base)
    if gain == 0:
        images = figures.count(best.accuracy.count)
        return f"at the same {base.accuracy.metric} ({figures.percent(best.accuracy.percent)} on {images} images)"
    return (
        f"at {figures.points(gain)} {'more' if gain > 0 else 'less'} {base.accuracy.metric} ({_percents(best, base)})"
    )


def _int8_words(target: Target, base: Variant, *, told: set[str]) -> list[str]:
    """Says with the numbers where INT8, expected to be faster, is not; the pair `told` has been compared already.

    Of several INT8 variants the fastest speaks for all.
    """
    fastest = min((v for v in target.variants if _is_int8(v)), key=lambda v: v.latency.p90, default=None)
    if fastest is None:
        return []
    ahead = []
    for rival in (v for v in target.variants if v is base or v.precision in HALF_PRECISIONS):
        if rival is fastest or {rival.name, fastest.name} == told:
            continue
        if _overlap(fastest, rival):
            ahead.append(f"{rival.name} ({figures.milliseconds(rival.latency.p90)}, intervals overlap)")
        elif fastest.latency.p90 > rival.latency.p90:
            ahead.append(f"{rival.name} ({figures.milliseconds(rival.latency.p90)})")
    if not ahead:
        return []
    several = sum(_is_int8(variant) for variant in target.variants) > 1
    own = f"{fastest.name} (p90 {figures.milliseconds(fastest.latency.p90)})"
    subject = f"The fastest INT8 variant, {own}," if several else own
    return [f"{subject} is not faster than {figures.enumerate_words(ahead, 'or')}."]


def _is_int8(variant: Variant) -> bool:
    return variant.precision.startswith("int8")
