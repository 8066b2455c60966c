"""LoRA on the fused qkv layer of timm's attention, with factors that a narrower model can share.

LoRA (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021), one pair of factors per projection
p in {q, k, v}::

    y_p = W_p x + (alpha / r) * B_p A_p x        A_p: (r, D)    B_p: (D, r)    A_p kaiming-uniform, B_p = 0

SLAD (Bensaid et al., "SLAD: Shared LoRA Adapters for Task Specific Distillation", arXiv 2605.29726, 2026) lets student
block i use the factors of teacher block m(i), truncated to the student's width d <= D::

    A_p^student = A_p[:, :d]        B_p^student = B_p[:d, :]

The cut is made per projection, never on the fused (3D, r) factor, whose first 3d rows would be all of q and some of k.
With equal head widths the first d rows are whole heads. As views, both uses add their gradients to one tensor.
"""

import math
from collections.abc import Sequence
from typing import Protocol

import torch
from timm.models import VisionTransformer
from torch import Tensor, nn

from pipeline.base.errors import ModelError

PROJECTIONS = 3  # q, k, v, in the order of timm's fused layer


class FactorSource(Protocol):
    """Whatever gives the factors A of shape (3, r, width) and B of shape (3, width, r)."""

    def __call__(self) -> tuple[Tensor, Tensor]:
        """Returns A and B."""


class Factors(nn.Module):
    """Trainable factors of one fused qkv layer.

    Args:
        width: D, the width of the layer's input.
        rank: r.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.empty(PROJECTIONS, rank, width))
        self.b = nn.Parameter(torch.zeros(PROJECTIONS, width, rank))
        for factor in self.a:
            nn.init.kaiming_uniform_(factor, a=math.sqrt(5))

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns A and B."""
        return self.a, self.b


class SharedFactors(nn.Module):
    """The first `width` coordinates of somebody else's factors, as views: owns no parameter.

    Args:
        owner: the factors that are shared.
        width: d, at most the owner's width.
    """

    def __init__(self, owner: Factors, width: int) -> None:
        super().__init__()
        self._owner = (owner,)  # in a tuple, so that torch does not register the owner's parameters here again
        self._width = width

    def forward(self) -> tuple[Tensor, Tensor]:
        """Returns views of the owner's A and B."""
        a, b = self._owner[0]()
        return a[..., : self._width], b[:, : self._width]


class LoraQkv(nn.Module):
    """A fused qkv layer with a low-rank update per projection; input (..., D), output (..., 3D).

    Args:
        base: the frozen layer.
        factors: gives A (3, r, D) and B (3, D, r).
        scale: alpha / r.
    """

    def __init__(self, base: nn.Linear, factors: FactorSource, *, scale: float) -> None:
        super().__init__()
        self.base = base
        self.factors = factors
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer and its update."""
        a, b = self.factors()
        low = (x @ a.flatten(0, 1).T).reshape(*x.shape[:-1], PROJECTIONS, a.shape[1])
        update = torch.einsum("...pr,pdr->...pd", low, b).flatten(-2)
        plain: Tensor = self.base(x)
        return plain + self.scale * update

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns a plain layer with weight W + scale * [B_q A_q; B_k A_k; B_v A_v], summed in double precision.

        Raises:
            ModelError: the merged weight is not finite.
        """
        a, b = (factor.double() for factor in self.factors())
        weight = self.base.weight.double() + self.scale * (b @ a).flatten(0, 1)
        if not torch.isfinite(weight).all():
            msg = "a merged weight is not finite: the training diverged; lower `distill.schedule.learning_rate`"
            raise ModelError(msg)
        rows, columns = weight.shape
        plain = nn.Linear(columns, rows, bias=self.base.bias is not None)
        plain.weight.copy_(weight)
        if self.base.bias is not None:
            plain.bias.copy_(self.base.bias)
        return plain


def inject(model: VisionTransformer, sources: Sequence[FactorSource], *, scale: float) -> None:
    """Freezes `model` but for its head and gives each block's qkv layer its factors, in place."""
    model.requires_grad_(False)
    model.head.requires_grad_(True)
    for block, source in zip(model.blocks, sources, strict=True):
        block.attn.qkv = LoraQkv(block.attn.qkv, source, scale=scale)


def adapters_of(model: VisionTransformer) -> dict[str, Tensor]:
    """Returns every factor by name (`blocks.<i>.attn.qkv.a` and `.b`), views made whole, ready to be saved."""
    found: dict[str, Tensor] = {}
    for index, block in enumerate(model.blocks):
        a, b = block.attn.qkv.factors()
        prefix = f"blocks.{index}.attn.qkv"
        found[f"{prefix}.a"], found[f"{prefix}.b"] = (f.detach().cpu().contiguous().clone() for f in (a, b))
    return found


@torch.no_grad()
def inject_saved(model: VisionTransformer, saved: dict[str, Tensor], *, scale: float) -> None:
    """Gives `model` the adapters that `adapters_of` returned, in place.

    Raises:
        ModelError: the saved adapters do not fit the model.
    """
    sources = []
    for index in range(len(model.blocks)):
        try:
            a, b = (saved[f"blocks.{index}.attn.qkv.{factor}"] for factor in "ab")
        except KeyError as error:
            msg = f"the saved adapters lack {error.args[0]!r}; run `dvc repro distill` again"
            raise ModelError(msg) from error
        if a.shape[-1] != model.embed_dim:
            msg = f"adapter {index} is {a.shape[-1]} wide, the network {model.embed_dim}; run `dvc repro distill` again"
            raise ModelError(msg)
        factors = Factors(a.shape[-1], a.shape[-2])
        factors.a.copy_(a)
        factors.b.copy_(b)
        sources.append(factors)
    inject(model, sources, scale=scale)


def merge(model: VisionTransformer) -> None:
    """Folds every adapter into its layer, in place; no adapter module remains."""
    for block in model.blocks:
        block.attn.qkv = block.attn.qkv.merged()
