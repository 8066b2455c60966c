"""Parity: how much a transformation of the network changed its answers, on the same samples."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import ParityError

Logits = NDArray[np.float32]


@dataclass(frozen=True, kw_only=True)
class Parity:
    """One hop of the chain from the trained network to the engine.

    Attributes:
        origin: what the answers are compared with, such as "torch".
        result: what was made of it, such as "merged".
        samples: number of images compared.
        max_abs_error: largest difference of any logit.
        mean_abs_error: mean difference of the logits.
        relative_error: largest difference over the largest logit of the origin.
        cosine: mean cosine similarity of the logit vectors.
        argmax_agreement: share of images with the same answer.
        accuracy_from_percent: accuracy of the origin on these images.
        accuracy_to_percent: accuracy of the result on these images.
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
    origin: tuple[str, Logits], result: tuple[str, Logits], *, labels: NDArray[np.int64], tolerance: float | None
) -> Parity:
    """Compares two networks' logits of shape (samples, classes) on the same images.

    Args:
        origin: name and logits of the network before the hop.
        result: name and logits of the network after the hop.
        labels: true classes, of shape (samples,).
        tolerance: largest error allowed, see `Parity`; None for a hop that may change answers.

    Raises:
        ParityError: the result holds values that are not finite, or differs by more than `tolerance`.
    """
    (before_name, before), (after_name, after) = origin, result
    if not np.isfinite(after).all():
        msg = (
            f"{after_name} gives {int((~np.isfinite(after)).sum())} logits that are not finite where {before_name} does"
        )
        raise ParityError(msg)
    error = np.abs(after.astype(np.float64) - before)
    norms = np.linalg.norm(before, axis=1) * np.linalg.norm(after, axis=1)
    parity = Parity(
        origin=before_name,
        result=after_name,
        samples=len(labels),
        max_abs_error=float(error.max()),
        mean_abs_error=float(error.mean()),
        relative_error=float(error.max() / max(np.abs(before).max(), 1e-12)),
        cosine=float(((before * after).sum(axis=1) / np.maximum(norms, 1e-12)).mean()),
        argmax_agreement=float((before.argmax(axis=1) == after.argmax(axis=1)).mean()),
        accuracy_from_percent=accuracy_percent(before, labels),
        accuracy_to_percent=accuracy_percent(after, labels),
        tolerance=tolerance,
        largest=float(np.abs(before).max()),
    )
    if not parity.passed:
        msg = (
            f"{after_name} differs from {before_name} by {parity.max_abs_error:.3g} in a logit, "
            f"more than the {parity.allowed:.3g} allowed; {parity.argmax_agreement:.1%} of the answers agree"
        )
        raise ParityError(msg)
    return parity


def accuracy_percent(logits: Logits, labels: NDArray[np.int64]) -> float:
    """Returns the share of right answers in percent."""
    return float(100 * (logits.argmax(axis=1) == labels).mean())
