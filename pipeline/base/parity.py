"""Parity: how much a transformation of the network changed its answers, on the same samples."""

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ParityError

Logits = NDArray[np.float32]


class Score(Protocol):
    """Gathers answers, and says how well they fit what is true.

    Attributes:
        metric: its name, "accuracy" or "mIoU".
        counts: what was gathered; the sum of two is what both gathered.
    """

    metric: str
    counts: NDArray[np.int64]

    def add(self, answers: NDArray[np.int64], targets: NDArray[np.int64]) -> None:
        """Takes answers and targets of some images, both of shape (images, ...)."""

    def percent(self) -> float:
        """Returns the score of everything that was added."""

    def per_class_percent(self) -> dict[str, float | None]:
        """Returns the score of each class by its name, where there is such a thing."""


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One hop of the chain from the trained network to the engine.

    An answer is the class of an image or, where masks are learnt, of a pixel.

    Attributes:
        origin: what the answers are compared with, such as "torch".
        result: what was made of it, such as "merged".
        samples: number of images compared.
        max_abs_error: largest difference of any logit.
        mean_abs_error: mean difference of the logits.
        relative_error: largest difference over the largest logit of the origin.
        cosine: mean cosine similarity of the logit vectors.
        argmax_agreement: share of equal answers.
        accuracy_from_percent: accuracy, or mean IoU, of the origin on these images.
        accuracy_to_percent: that of the result.
        tolerance: largest error allowed, absolute for logits up to 1 and relative to the largest logit beyond: rounding
            grows with the values. None where the hop may change answers, as quantisation does.
        largest: largest logit of the origin.
    """

    origin: str
    result: str
    samples: int
    max_abs_error: float
    mean_abs_error: float
    relative_error: float
    cosine: float
    argmax_agreement: float
    accuracy_from_percent: float
    accuracy_to_percent: float
    tolerance: float | None
    largest: float

    @property
    def allowed(self) -> float | None:
        """Largest `max_abs_error` that passes."""
        return None if self.tolerance is None else self.tolerance * max(1.0, self.largest)

    @property
    def passed(self) -> bool:
        """Whether the hop stayed within its tolerance."""
        return self.allowed is None or self.max_abs_error <= self.allowed

    def write(self, path: Path) -> None:
        """Writes the record as JSON."""
        fields = asdict(self)
        content = {"schema": 1, "from": fields.pop("origin"), "to": fields.pop("result"), **fields}
        path.write_text(json.dumps(content | {"passed": self.passed}, indent=2) + "\n", encoding="utf-8")


def compare(
    origin: tuple[str, Iterable[Logits]],
    result: tuple[str, Iterable[Logits]],
    *,
    targets: Iterable[NDArray[np.int64]],
    score: Callable[[], Score],
    tolerance: float | None,
) -> Parity:
    """Compares two networks' logits on the same images, one image at a time: those of all masks need not fit in memory.

    Args:
        origin: name of the network before the hop, and its logits of each image, of shape (classes, ...).
        result: the same of the network after the hop.
        targets: true class of each image, of shape (), or of its pixels.
        score: begins an empty score.
        tolerance: largest error allowed, see `Parity`; None for a hop that may change answers.

    Raises:
        ParityError: the result holds values that are not finite, or differs by more than `tolerance`.
    """
    (before_name, befores), (after_name, afters) = origin, result
    scores = score(), score()
    largest = highest = total = alike = same = 0.0
    samples = values = answers = 0
    for before, after, target in zip(befores, afters, targets, strict=True):
        strange = int((~np.isfinite(after)).sum())
        if strange:
            msg = f"{after_name} gives {strange} logits that are not finite for an image, where {before_name} does"
            raise ParityError(msg)
        error = np.abs(after.astype(np.float64) - before)
        norms = np.linalg.norm(before, axis=0) * np.linalg.norm(after, axis=0)
        choices = before.argmax(axis=0), after.argmax(axis=0)
        highest, largest = max(highest, float(error.max())), max(largest, float(np.abs(before).max()))
        total += float(error.sum())
        alike += float(((before * after).sum(axis=0) / np.maximum(norms, 1e-12)).sum())
        same += float((choices[0] == choices[1]).sum())
        samples, values, answers = samples + 1, values + error.size, answers + norms.size
        for one, choice in zip(scores, choices, strict=True):
            one.add(choice[None], target[None])
    parity = Parity(
        origin=before_name,
        result=after_name,
        samples=samples,
        max_abs_error=highest,
        mean_abs_error=total / values,
        relative_error=highest / max(largest, 1e-12),
        cosine=alike / answers,
        argmax_agreement=same / answers,
        accuracy_from_percent=scores[0].percent(),
        accuracy_to_percent=scores[1].percent(),
        tolerance=tolerance,
        largest=largest,
    )
    if not parity.passed:
        msg = (
            f"{after_name} differs from {before_name} by {parity.max_abs_error:.3g} in a logit, "
            f"more than the {parity.allowed:.3g} allowed; {parity.argmax_agreement:.1%} of the answers agree"
        )
        raise ParityError(msg)
    return parity
