"""Accuracy of a loaded engine; knows neither the timer nor how an image becomes an input."""

import math
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, MeasureError
from deploy.runtime import Engine

Z_95 = 1.959963984540054  # two-sided 95 % quantile of the normal distribution

T = TypeVar("T")


def evaluate(
    engine: Engine,
    items: Sequence[T],
    load: Callable[[T], NDArray[np.float32]],
    *,
    on_progress: Callable[[str], None],
) -> NDArray[np.float32]:
    """Run every item through an engine, one at a time as on the device.

    Args:
        engine: takes (1, 3, H, W).
        items: at least one.
        load: gives an item's input of shape (3, H, W).
        on_progress: called with one line about every two seconds.

    Returns:
        Logits of shape (items, classes), float32.

    Raises:
        MeasureError: there are no items.
        EngineError: the engine gives values that are not finite.
    """
    if not items:
        msg = "there is no item to evaluate; the split is empty"
        raise MeasureError(msg)
    logits = []
    last = time.monotonic()
    for index, item in enumerate(items):
        logits.append(engine(load(item)[None])[0])
        if time.monotonic() - last >= 2:
            last = time.monotonic()
            on_progress(f"accuracy: {index + 1} of {len(items)} images")
    stacked = np.stack(logits).astype(np.float32, copy=False)
    broken = np.flatnonzero(~np.isfinite(stacked).all(axis=1))
    if broken.size:
        msg = f"the engine gives logits that are not finite for {broken.size} of {len(items)} items; build it again"
        raise EngineError(msg)
    return stacked


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Return the 95 % score interval of a share (Wilson 1927), each end in 0..1.

    Unlike the normal interval it stays within 0..1 and does not collapse at 0 or 100 %.
    """
    share, z2 = correct / count, Z_95**2
    centre = (share + z2 / (2 * count)) / (1 + z2 / count)
    half = Z_95 / (1 + z2 / count) * math.sqrt(share * (1 - share) / count + z2 / (4 * count**2))
    return max(centre - half, 0.0), min(centre + half, 1.0)


def accuracy_summary(logits: NDArray[np.float32], labels: Sequence[int]) -> dict[str, Any]:
    """Describe top-1 accuracy.

    Args:
        logits: of shape (items, classes).
        labels: the right class of each item.

    Returns:
        `percent`, `correct`, `count`, and the 95 % interval `low_percent`, `high_percent`; percents to 0.01.
    """
    correct = int((logits.argmax(axis=1) == np.asarray(labels)).sum())
    low, high = wilson(correct, len(labels))
    return {
        "percent": round(100 * correct / len(labels), 2),
        "correct": correct,
        "count": len(labels),
        "low_percent": round(100 * low, 2),
        "high_percent": round(100 * high, 2),
    }
