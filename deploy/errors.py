"""The one exception family of the device package.

Every message is one line that says what, which value, where, and what to do.

    DeployError             1   never raised itself
    |- TargetError          2   an option of a target, or of the command line, is wrong
    |- ImageError           3   an image file cannot be decoded, or a camera gives no picture
    |- BundleError          6   a bundle or data index is missing, tampered with, or leaves its folder
    |- EngineError          7   an engine is foreign, stale, truncated, or fails its self-test
    |- RuntimeMissingError  8   the runtime, or OpenCV for a camera, is not installed
    |- MeasureError         9   a measurement cannot be made, is incomplete, or cannot be compared with another
    |- DeviceError         10   another machine cannot be reached, or is not fit for what is asked of it
    |- OverBudgetError     11   no variant keeps its target's budget
    `- RegressionError     12   a measurement is worse than an earlier one
"""

from typing import ClassVar


class DeployError(Exception):
    """An expected failure: shown as one line, exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class TargetError(DeployError):
    """An option of a target, or of the command line, is unknown or has a wrong value."""

    exit_code = 2


class ImageError(DeployError):
    """An image file is missing, truncated, or has no defined conversion, or a camera gives no picture."""

    exit_code = 3


class BundleError(DeployError):
    """A bundle or data index is missing, tampered with, or names a file outside its folder."""

    exit_code = 6


class EngineError(DeployError):
    """An engine is foreign, stale or truncated, could not be built, or fails its self-test."""

    exit_code = 7


class RuntimeMissingError(DeployError):
    """The runtime that a target names, or OpenCV for a camera, is not installed."""

    exit_code = 8


class MeasureError(DeployError):
    """A measurement cannot be made or compared with another, or some of its variants failed."""

    exit_code = 9


class DeviceError(DeployError):
    """Another machine cannot be reached, or is not fit for what is asked of it."""

    exit_code = 10


class OverBudgetError(DeployError):
    """No variant of a target keeps the budget that the target has."""

    exit_code = 11


class RegressionError(DeployError):
    """A measurement is worse than the one it is compared with, by more than is accepted."""

    exit_code = 12


def error_of(code: int) -> type[DeployError]:
    """Return the kind of error that a process ended with: the one of its exit code, `DeviceError` for any other."""
    kinds = {kind.exit_code: kind for kind in DeployError.__subclasses__()}
    return kinds.get(code, DeviceError)
