"""The fewest groups to leave in high precision so that accuracy stays within its budget."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from pipeline.base.errors import BudgetError
from pipeline.base.progress import notice

T = TypeVar("T")
ROUNDING = 1e-9  # points: 5 of 1000 images are 0.5 points, in floats a little more


@dataclass(frozen=True)
class Try:
    """One network that was tried.

    Attributes:
        left_out: groups in high precision.
        drop: points of the metric that it loses.
    """

    left_out: tuple[str, ...]
    drop: float


def fewest_left_out(
    ranked: Sequence[str],
    evaluate: Callable[[tuple[str, ...]], tuple[float, T]],
    *,
    max_drop: float,
) -> tuple[T, tuple[str, ...], list[Try]]:
    """Bisects for the smallest number of groups to leave out, the most sensitive first.

    Every try starts from the FP32 network, so that no earlier one can spoil it. At most 2 + log2(groups) tries, rounded
    up.

    Args:
        ranked: all groups, the most sensitive first.
        evaluate: makes a network with some groups left out; returns the points it loses, and the network.
        max_drop: points that may be lost.

    Returns:
        The network with the fewest groups left out that meets the budget, those groups, and all tries in order.

    Raises:
        BudgetError: the budget is not met even where all groups but one are left out.
    """
    tries: list[Try] = []
    met: dict[int, T] = {}  # by the number of groups left out; no more than one: networks are large

    def attempt(count: int) -> bool:
        left_out = tuple(ranked[:count])
        drop, made = evaluate(left_out)
        tries.append(Try(left_out, drop))
        best = min(tries, key=lambda each: each.drop)
        notice(
            f"try {len(tries)}: {count} of {len(ranked)} groups left in high precision, {drop:.2f} points lost; "
            f"best {best.drop:.2f}, budget {max_drop:g}"
        )
        if drop > max_drop + ROUNDING:
            return False
        met.clear()  # every try that meets the budget leaves out fewer than the one before
        met[count] = made
        return True

    if attempt(0):
        return met[0], (), tries
    low, high = 0, len(ranked) - 1  # the budget is missed with `low` groups left out, and met with `high`
    if high < 1 or not attempt(high):
        raise _not_met(ranked, tries, max_drop=max_drop)
    while high - low > 1:
        middle = (low + high) // 2
        if attempt(middle):
            high = middle
        else:
            low = middle
    return met[high], tuple(ranked[:high]), tries


def _not_met(ranked: Sequence[str], tries: Sequence[Try], *, max_drop: float) -> BudgetError:
    best = min(tries, key=lambda each: each.drop)
    notice(f"groups by sensitivity, the most sensitive first: {', '.join(ranked)}")
    return BudgetError(
        f"no INT8 network is within `quantize.max_drop` {max_drop:g} points: the best of {len(tries)} tries loses "
        f"{best.drop:.2f}, {best.drop - max_drop:.2f} too many, with {len(best.left_out)} of {len(ranked)} groups left "
        f"in high precision; most sensitive are {', '.join(ranked[:3])}; raise the budget, or deploy fp16 or bf16"
    )
