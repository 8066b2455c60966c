"""What a runtime and a loaded engine offer, as types."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

OptionValue = str | int | bool | None


@dataclass(frozen=True, kw_only=True)
class Option:
    """One option of a runtime, as `targets.<target>.options` may set it.

    Attributes:
        default: what holds where a target does not set it; its type is the option's, and None allows an integer too.
        meaning: one line for messages and documents.
        choices: what a text may be; () allows what `pattern` does.
        pattern: a regular expression that a text must match as a whole.
        least: the smallest number.
        most: the largest one; None is no limit.
        only_with: another option, and its values that alone read this one; None where all do.
    """

    default: OptionValue
    meaning: str
    choices: tuple[str, ...] = ()
    pattern: str = r".+"
    least: int = 0
    most: int | None = None
    only_with: tuple[str, tuple[str, ...]] | None = None


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How one engine is built and loaded.

    Attributes:
        precision: what it computes in, one of the runtime's `EXPORTED_AS`.
        threads: of the CPU; 0 leaves the number to the runtime.
        options: all of the runtime's `OPTIONS`, by name.
    """

    precision: str
    threads: int
    options: Mapping[str, OptionValue]


@dataclass(frozen=True, kw_only=True)
class Source:
    """The model an engine is built from.

    Attributes:
        onnx: a file with a fixed batch of 1.
        program: the same network as torch.export saved it; None where the bundle has none.
    """

    onnx: Path
    program: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Where the nodes of a loaded engine run, by the runtime's own report.

    Attributes:
        asked: the device or provider that the target names.
        nodes: number of nodes by the device or provider that runs them.
        precisions: number of nodes by what they compute in; {} where the runtime does not say.
        strays: names of the nodes that run elsewhere than asked.
    """

    asked: str
    nodes: Mapping[str, int]
    precisions: Mapping[str, int] = field(default_factory=dict)
    strays: tuple[str, ...] = ()

    def __str__(self) -> str:
        return ", ".join(f"{count} nodes on {place}" for place, count in self.nodes.items())

    def as_dict(self) -> dict[str, Any]:
        """Return the form of manifests and records: the number of strays, and the first ten."""
        return {
            "asked": self.asked,
            "nodes": dict(self.nodes),
            "precisions": dict(self.precisions),
            "strays": {"count": len(self.strays), "first": list(self.strays[:10])},
        }


class Engine(Protocol):
    """A loaded engine."""

    def run(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
        """Run one query.

        Args:
            image: (1, 3, H, W).

        Returns:
            A fresh array of (1, classes), or (1, classes, H, W) of a model of masks.

        Raises:
            EngineError: the runtime failed.
        """

    def copy(self, image: NDArray[np.float32], /) -> bool:
        """Do only the copies of one query: the input to where the engine reads it, an answer from where it writes it.

        Args:
            image: (1, 3, H, W).

        Returns:
            Whether there is anything to copy; False where the engine works on the caller's arrays.

        Raises:
            EngineError: the runtime failed.
        """

    def placement(self) -> Placement:
        """Ask the runtime where the nodes run; may run the engine once, and is not meant to be quick.

        Raises:
            EngineError: the runtime failed.
        """


class Runtime(Protocol):
    """What each file of `deploy.runtimes` offers."""

    @property
    def ENGINE_FILE(self) -> str:  # noqa: N802 - a module's constant
        """Name of the engine's file in its folder."""

    @property
    def MADE_FROM(self) -> str:  # noqa: N802
        """The file of a bundle that engines are built from: "onnx" or "program"."""

    @property
    def THREADED(self) -> bool:  # noqa: N802
        """Whether the number of the CPU's threads is its to choose."""

    @property
    def EXPORTED_AS(self) -> Mapping[str, str]:  # noqa: N802
        """The precisions it computes in, and the one a bundle must have for each."""

    @property
    def OPTIONS(self) -> Mapping[str, Option]:  # noqa: N802
        """What a target may set, by name."""

    def version(self) -> str:
        """Return the version of the installed runtime.

        Raises:
            RuntimeMissingError: it is not installed.
        """

    def places(self) -> Mapping[str, str | None]:
        """Try every device or provider that the installed runtime names.

        Returns:
            By name, None where a network of one node ran there, else the reason why it did not.

        Raises:
            RuntimeMissingError: the runtime is not installed.
        """

    def probe(self, options: Mapping[str, OptionValue]) -> dict[str, Any]:
        """Describe the device or provider that `options` name: what an engine is tied to, as JSON values.

        Raises:
            EngineError: it is not there, or does not execute: a fallback is found here.
            RuntimeMissingError: the runtime is not installed.
        """

    def supports(self, settings: Settings) -> str | None:
        """Return the reason why this device cannot run the precision natively, or None where it can."""

    def build(self, source: Source, engine_path: Path, settings: Settings) -> dict[str, Any]:
        """Compile a model for this device and write the engine.

        Returns:
            What the runtime was told, by its own names, for the manifest.

        Raises:
            EngineError: the runtime refused the model, or has not enough memory.
        """

    def load(self, engine_path: Path, settings: Settings) -> Engine:
        """Load an engine that `build` wrote with the same settings.

        Raises:
            EngineError: the runtime refused the file, or fell back to another device or provider.
        """
