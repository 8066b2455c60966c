"""The factors of LoRA, owned or borrowed.

LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021) adds to a frozen layer ``y = W x``::

    y = W x + (alpha / r) * B A x        A: (r, inputs)    B: (outputs, r)    A kaiming-uniform, B = 0

SLAD (Bensaid et al., "SLAD: Shared LoRA Adapters for Task Specific Distillation", arXiv 2605.29726, 2026) truncates the
teacher's factors to the student's width d <= D::

    A_student = A[:, :d]        B_student = B[:d, :]

Every projection has its own pair: the first 3d rows of one factor for the fused (q, k, v) would be all of q and some of
k. With equal head widths the first d rows of a projection are whole heads. Borrowed factors are views of the owner's,
so that the gradients of both uses add up in one tensor.
"""

import math

import torch
from torch import Tensor, nn

Pair = tuple[Tensor, Tensor]
Coordinates = slice | Tensor
"""Which coordinates of the wider side are taken: the first ones, or a list of indices."""


class Factors(nn.Module):
    """Trainable factors of one projection.

    Args:
        inputs: width of what the projection reads.
        outputs: width of what it writes.
        rank: r.
    """

    def __init__(self, inputs: int, outputs: int, *, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(rank, inputs))
        self.b = nn.Parameter(torch.zeros(outputs, rank))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    def forward(self) -> Pair:
        """Returns A and B."""
        return self.a, self.b


class SharedFactors(nn.Module):
    """Some coordinates of somebody else's factors; what is not shared is an own parameter.

    Args:
        owner: the factors that are shared.
        inputs: which of the owner's inputs are taken.
        outputs: which of the owner's outputs are taken.
        own_a: shape (r, inputs) of a private A; None shares A.
        own_b: shape (outputs, r) of a private B; None shares B.
        gain: factor of a shared A. A is drawn for the owner's fan-in D; sqrt(D / d) gives d inputs the same scale.
    """

    rows: Tensor | None
    columns: Tensor | None

    def __init__(
        self,
        owner: Factors,
        *,
        inputs: Coordinates,
        outputs: Coordinates,
        own_a: tuple[int, int] | None = None,
        own_b: tuple[int, int] | None = None,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that torch does not register the owner's parameters here again
        self._first = tuple(part if isinstance(part, slice) else None for part in (inputs, outputs))
        # Buffers follow the module to its device.
        self.register_buffer("columns", None if isinstance(inputs, slice) else inputs, persistent=False)
        self.register_buffer("rows", None if isinstance(outputs, slice) else outputs, persistent=False)
        self._gain = gain
        self.a = self.b = None
        if own_a is not None:
            self.a = nn.Parameter(torch.empty(own_a))
            nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        if own_b is not None:
            self.b = nn.Parameter(torch.zeros(own_b))

    def forward(self) -> Pair:
        """Returns A and B; with first coordinates and no gain, views of the owner's."""
        a, b = self._owner[0]()
        if self.a is not None:
            a = self.a
        else:
            a = a[:, self._first[0]] if self.columns is None else a.index_select(1, self.columns)
            a = a if self._gain == 1 else a * self._gain
        if self.b is not None:
            return a, self.b
        return a, b[self._first[1]] if self.rows is None else b.index_select(0, self.rows)


class JoinedFactors(nn.Module):
    """Two pairs side by side: rank r1 + r2, update B1 A1 + B2 A2.

    Args:
        shared: pair of rank r1.
        private: pair of rank r2.
    """

    def __init__(self, shared: nn.Module, private: nn.Module) -> None:
        super().__init__()
        self.shared, self.private = shared, private

    def forward(self) -> Pair:
        """Returns A of shape (r1 + r2, inputs) and B of shape (outputs, r1 + r2)."""
        first, second = self.shared(), self.private()
        return torch.cat([first[0], second[0]]), torch.cat([first[1], second[1]], dim=1)


def coordinates(full: int, part: int, *, kind: str, seed: int) -> Coordinates:
    """Chooses `part` of `full` coordinates: the first ones, or a fixed random subset in ascending order.

    The random subset is a control: residual coordinates of separately trained models have no common order, so a
    benefit of the first ones over random ones would show that the order means something. Equal sizes get the same
    subset in every layer, as a residual stream needs.

    Args:
        full: D.
        part: d <= D.
        kind: "first" or "random".
        seed: of the random subset.
    """
    if kind == "first":
        return slice(part)
    generator = torch.Generator().manual_seed(seed)
    return torch.randperm(full, generator=generator)[:part].sort().values
