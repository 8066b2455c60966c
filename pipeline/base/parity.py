"""Parity: how much a transformation of the network changed its answers, on the same samples."""

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
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

    def share(self, counts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Returns of the counts of one image what `change` needs: those of all images are kept."""

    def change(self, before: Sequence[NDArray[np.int64]], after: Sequence[NDArray[np.int64]]) -> tuple[float, float]:
        """Returns the 95 % interval of the change of the score, in points, when answers changed on the same images.

        Args:
            before: the share of each image in the score before the change.
            after: the same after it.
        """

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
        change_low_points: lower end of the 95 % interval of the difference of the two, paired by image.
        change_high_points: its upper end.
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
    change_low_points: float
    change_high_points: float
    tolerance: float | None
    largest: float

    @property
    def points(self) -> float:
        """Accuracy of the result less that of the origin: negative where the hop lost some."""
        return self.accuracy_to_percent - self.accuracy_from_percent

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
    sums, scores = _Sums(), (_Scored(score()), _Scored(score()))
    for before, after, target in zip(befores, afters, targets, strict=True):
        strange = int((~np.isfinite(after)).sum())
        if strange:
            msg = f"{after_name} gives {strange} logits that are not finite for an image, where {before_name} does not"
            raise ParityError(msg)
        sums.add(before, after)
        for one, logits in zip(scores, (before, after), strict=True):
            one.add(logits.argmax(axis=0), target)
    low, high = scores[0].score.change(*(one.by_image for one in scores))
    parity = Parity(
        origin=before_name,
        result=after_name,
        samples=len(scores[0].by_image),
        max_abs_error=sums.highest,
        mean_abs_error=sums.total / sums.values,
        relative_error=sums.highest / max(sums.largest, 1e-12),
        cosine=sums.alike / sums.answers,
        argmax_agreement=sums.same / sums.answers,
        accuracy_from_percent=scores[0].score.percent(),
        accuracy_to_percent=scores[1].score.percent(),
        change_low_points=low,
        change_high_points=high,
        tolerance=tolerance,
        largest=sums.largest,
    )
    if not parity.passed:
        msg = (
            f"{after_name} differs from {before_name} by {parity.max_abs_error:.3g} in a logit, "
            f"more than the {parity.allowed:.3g} allowed; {parity.argmax_agreement:.1%} of the answers agree"
        )
        raise ParityError(msg)
    return parity


@dataclass
class _Sums:
    """What is gathered of the differences, image by image."""

    largest: float = 0.0  # logit of the origin
    highest: float = 0.0  # difference
    total: float = 0.0  # of all differences
    alike: float = 0.0  # cosines
    same: float = 0.0  # answers
    values: int = 0
    answers: int = 0

    def add(self, before: Logits, after: Logits) -> None:
        error = np.abs(after.astype(np.float64) - before)
        norms = np.linalg.norm(before, axis=0) * np.linalg.norm(after, axis=0)
        self.largest = max(self.largest, float(np.abs(before).max()))
        self.highest = max(self.highest, float(error.max()))
        self.total += float(error.sum())
        self.alike += float(((before * after).sum(axis=0) / np.maximum(norms, 1e-12)).sum())
        self.same += float((before.argmax(axis=0) == after.argmax(axis=0)).sum())
        self.values += error.size
        self.answers += norms.size


@dataclass
class _Scored:
    """A score, and what each image added to its counts."""

    score: Score
    by_image: list[NDArray[np.int64]] = field(default_factory=list)

    def add(self, answers: NDArray[np.int64], target: NDArray[np.int64]) -> None:
        earlier = self.score.counts.copy()
        self.score.add(answers[None], target[None])
        self.by_image.append(self.score.share(self.score.counts - earlier))
