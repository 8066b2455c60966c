"""The golden check: does an engine still give the answers its model gave on the host?"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from deploy.bundle import REMEDY, Bundle, load_golden
from deploy.errors import BundleError, EngineError
from deploy.runtime import Engine


@dataclass(frozen=True)
class GoldenCheck:
    """Outcome of one check.

    Attributes:
        relative_error: max|y - y_ref| / max|y_ref| over all golden inputs.
        tolerance: the largest error that the bundle allows in this precision.
        argmax_agreement: share of inputs, or of their pixels, that keep their class, 0..1.
    """

    relative_error: float
    tolerance: float
    argmax_agreement: float

    @property
    def passed(self) -> bool:
        """Whether the error is within the tolerance; an error that is not a number is not."""
        return self.relative_error <= self.tolerance

    def require(self, engine: str, *, remedy: str) -> None:
        """Refuse an engine that does not give its model's answers.

        Args:
            engine: its name, first words of the message.
            remedy: last words of the message.

        Raises:
            EngineError: the check was not passed.
        """
        if not self.passed:
            msg = (
                f"{engine}: relative error {self.relative_error:.3g} on the golden inputs, at most "
                f"{self.tolerance:g} allowed; {remedy}"
            )
            raise EngineError(msg)

    def __str__(self) -> str:
        return f"relative error {self.relative_error:.2g} (at most {self.tolerance:g})"

    def as_dict(self) -> dict[str, Any]:
        """Return the record's form."""
        return asdict(self)


def check_golden(engine: Engine, bundle: Bundle, *, precision: str) -> GoldenCheck:
    """Run the golden inputs through a loaded engine.

    Raises:
        BundleError: the bundle has no tolerance for `precision`, or its golden archive is faulty.
        EngineError: the engine gives outputs of another shape, or values that are not finite.
    """
    if precision not in bundle.golden.tolerance:
        msg = f"{bundle.folder}: bundle.json has no `golden.tolerance.{precision}`; {REMEDY}"
        raise BundleError(msg)
    inputs, expected = load_golden(bundle)
    outputs = np.concatenate([engine.run(image[None]) for image in inputs])
    if outputs.shape != expected.shape or not np.isfinite(outputs).all():
        msg = (
            f"{bundle.folder}: the {precision} engine should give finite outputs of shape {expected.shape}, "
            f"got shape {outputs.shape}, {np.isfinite(outputs).mean():.0%} finite; check the exported model"
        )
        raise EngineError(msg)
    scale = max(float(np.abs(expected).max()), float(np.finfo(np.float32).tiny))
    return GoldenCheck(
        relative_error=float(np.abs(outputs - expected).max()) / scale,
        tolerance=float(bundle.golden.tolerance[precision]),
        argmax_agreement=float((outputs.argmax(1) == expected.argmax(1)).mean()),
    )
