"""The one exception family of the device package.

Every message is one line that says what, which value, where, and what to do.

    DeployError             1   never raised itself
    |- TargetError          2   an option of a target, or of the command line, is wrong
    |- ImageError           3   an image file cannot be decoded
    |- BundleError          6   a bundle or data index is missing, tampered with, or leaves its folder
    |- EngineError          7   an engine is foreign, stale, truncated, or fails its self-test
    |- RuntimeMissingError  8   the runtime is not installed
    `- MeasureError         9   a measurement cannot be made or is incomplete
"""

from typing import ClassVar


class DeployError(Exception):
    """An expected failure: shown as one line, exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class TargetError(DeployError):
    """An option of a target, or of the command line, is unknown or has a wrong value."""

    exit_code = 2


class ImageError(DeployError):
    """An image file is missing, truncated, or of a kind that has no defined conversion."""

    exit_code = 3


class BundleError(DeployError):
    """A bundle or data index is missing, tampered with, or names a file outside its folder."""

    exit_code = 6


class EngineError(DeployError):
    """An engine is foreign, stale or truncated, could not be built, or fails its self-test."""

    exit_code = 7


class RuntimeMissingError(DeployError):
    """The runtime that a target names is not installed."""

    exit_code = 8


class MeasureError(DeployError):
    """A measurement cannot be made, or some of its variants failed."""

    exit_code = 9
