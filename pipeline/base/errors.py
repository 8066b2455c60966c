"""The one exception family of the host library.

Every message is one line that says what, which value, where, and what to do.

    PipelineError
    |- ParamsError      2   params.yaml or configs/ are wrong or stale
    |- DataError        3   the images, labels or splits cannot be used
    |- WeightsError     4   pretrained weights are missing or do not fit
    |- ModelError       4   teacher, student or method do not go together
    |- ParityError      5   a transformation changed what it should not
    `- BudgetError      5   no network is accurate enough
"""

from typing import ClassVar


class PipelineError(Exception):
    """An expected failure: shown as one line, exits with `exit_code`."""

    exit_code: ClassVar[int] = 1


class ParamsError(PipelineError):
    """`params.yaml` or `configs/` hold a wrong or stale value."""

    exit_code = 2


class DataError(PipelineError):
    """Images, labels or splits cannot be used."""

    exit_code = 3


class WeightsError(PipelineError):
    """Pretrained weights are missing or do not fit the model."""

    exit_code = 4


class ModelError(PipelineError):
    """Teacher, student and method do not go together."""

    exit_code = 4


class ParityError(PipelineError):
    """A transformation changed the model's answers beyond its tolerance."""

    exit_code = 5


class BudgetError(PipelineError):
    """No network loses as little as it may."""

    exit_code = 5
