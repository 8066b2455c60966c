"""What a runtime and a loaded engine offer, as types."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class Engine(Protocol):
    """A loaded engine: float32 (1, 3, H, W) in, a fresh float32 (1, classes) out."""

    def __call__(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Run one query.

        Raises:
            EngineError: the runtime failed.
        """


class Runtime(Protocol):
    """What each file of `deploy.runtimes` offers."""

    @property
    def ENGINE_FILE(self) -> str:  # noqa: N802 - a module's constant
        """Name of the engine's file in its folder."""

    def version(self) -> str:
        """Return the version of the installed runtime.

        Raises:
            RuntimeMissingError: it is not installed.
        """

    def supports(self, precision: str) -> str | None:
        """Return the reason why this device cannot run `precision` natively, or None where it can."""

    def build(self, onnx_path: Path, engine_path: Path, *, precision: str, threads: int) -> dict[str, Any]:
        """Compile a model for this device and write the engine.

        Args:
            onnx_path: a model with a fixed batch of 1.
            engine_path: the file to write.
            precision: one of `deploy.target.PRECISIONS`; INT8 models carry their own Q/DQ nodes.
            threads: 0 leaves the number to the runtime.

        Returns:
            The options that were used, for the manifest.

        Raises:
            EngineError: the runtime refused the model.
        """

    def load(self, engine_path: Path, *, precision: str, threads: int) -> Engine:
        """Load an engine that `build` wrote with the same `precision` and `threads`.

        Raises:
            EngineError: the runtime refused the file.
        """
