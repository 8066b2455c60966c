"""Exponential moving average of trained parameters."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn


class Ema:
    """Averages p <- decay * p + (1 - decay) * new over the steps of a run.

    Args:
        parameters: what is averaged; their present values are the first.
        decay: share of the old average, in (0, 1).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], *, decay: float) -> None:
        self._parameters = list(parameters)
        self.average: list[Tensor] = [parameter.detach().clone() for parameter in parameters]
        self._blend = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the parameters' present values."""
        self._blend(self.average, list(self._parameters), 0)

    @torch.no_grad()
    def swap(self) -> None:
        """Exchanges the parameters' values and the averages."""
        for parameter, average in zip(self._parameters, self.average, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the averages in place of the parameters for the time of the block."""
        self.swap()
        try:
            yield
        finally:
            self.swap()
