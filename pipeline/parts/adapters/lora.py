"""A linear layer with low-rank updates, folded into its weight for the forward pass."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.base.errors import ModelError


class _Folded(torch.autograd.Function):
    """y = (W + s B A) x + bias with W frozen; the gradient of the folded weight is never formed.

    Ordinary autograd would compute dL/dW, of W's size, to get at the factors. With u = x A^T and v = (dL/dy) B::

        dL/dB = s (dL/dy)^T u        dL/dA = s v^T x        dL/dx = (dL/dy) W + s v A
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        groups: tuple[int, ...],
    ) -> Tensor:
        ctx.kinds = a.dtype, None if bias is None else bias.dtype
        if torch.is_autocast_enabled(x.device.type):
            kind = torch.get_autocast_dtype(x.device.type)
            x, weight, a, b = (tensor.to(kind) for tensor in (x, weight, a, b))
            bias = None if bias is None else bias.to(kind)
        ctx.save_for_backward(x, weight, a, b)
        ctx.scale, ctx.groups = scale, groups
        return F.linear(x, _fold(weight, a, b, scale=scale, groups=groups), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, a, b = ctx.saved_tensors
        grad = gradients[0].to(x.dtype)
        flat, flat_grad = x.flatten(0, -2), grad.flatten(0, -2)
        size = b.shape[1]
        parts = [flat_grad[:, group * size : (group + 1) * size] for group in ctx.groups]
        u = (flat @ a.T).unflatten(1, (len(parts), -1))
        v = torch.cat([part @ factor for part, factor in zip(parts, b, strict=True)], dim=1)
        grad_a = ctx.scale * (v.T @ flat)
        grad_b = ctx.scale * torch.stack([part.T @ u[:, i] for i, part in enumerate(parts)])
        grad_x = None
        if ctx.needs_input_grad[0]:
            grad_x = torch.addmm(flat_grad @ weight, v, a, alpha=ctx.scale).view(x.shape)
        grad_bias = flat_grad.sum(0).to(ctx.kinds[1]) if ctx.needs_input_grad[2] else None
        # Under autocast the factors are fp32 and the arithmetic is not.
        return grad_x, None, grad_bias, grad_a.to(ctx.kinds[0]), grad_b.to(ctx.kinds[0]), None, None


def _fold(weight: Tensor, a: Tensor, b: Tensor, *, scale: float, groups: tuple[int, ...]) -> Tensor:
    """W + scale * B A for a of shape (groups * r, inputs) and b of shape (groups, outputs, r)."""
    _, size, rank = b.shape
    folded = weight.clone()
    for place, group in enumerate(groups):
        rows = folded[group * size : (group + 1) * size]
        rows.addmm_(b[place], a[place * rank : (place + 1) * rank], alpha=scale)
    return folded


class LoraLinear(nn.Module):
    """A linear layer, or several fused along its outputs, with one low-rank update per fused part.

    Input (..., inputs), output (..., groups * outputs). timm's qkv has the groups q, k, v.

    Args:
        base: the frozen layer.
        names: of its groups, in order.
        sources: by name of a group: gives A (r, inputs) and B (outputs, r). A group without one has no adapter.
        scale: alpha / r.
        dropout: probability of dropping an input of A in training. The update is then computed beside the layer and
            costs about as much as in other implementations; without dropout it is folded into the weight.
    """

    def __init__(
        self,
        base: nn.Linear,
        *,
        names: Sequence[str],
        sources: Mapping[str, nn.Module],
        scale: float,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.base = base
        self.count = len(names)
        self.groups = tuple(place for place, name in enumerate(names) if name in sources)
        self.sources = nn.ModuleDict({name: sources[name] for name in names if name in sources})
        self.scale = scale
        self.dropout = nn.Dropout(dropout)

    def factors(self) -> tuple[Tensor, Tensor]:
        """Returns A of shape (groups * r, inputs) and B of shape (groups, outputs, r)."""
        pairs = [source() for source in self.sources.values()]
        return torch.cat([a for a, _ in pairs]), torch.stack([b for _, b in pairs])

    def forward(self, x: Tensor) -> Tensor:
        """Applies the layer and its updates."""
        a, b = self.factors()
        if self.training and self.dropout.p > 0:
            return self._beside(x, a, b)
        folded: Tensor = _Folded.apply(x, self.base.weight, self.base.bias, a, b, self.scale, self.groups)
        return folded

    def _beside(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        low: Tensor = self.dropout(x) @ a.T
        low = low.reshape(*low.shape[:-1], len(self.groups), -1)
        plain: Tensor = self.base(x)
        added = torch.zeros_like(plain).reshape(*plain.shape[:-1], self.count, -1)
        added[..., list(self.groups), :] = self.scale * torch.einsum("...pr,por->...po", low, b).to(plain.dtype)
        return plain + added.flatten(-2)

    @torch.no_grad()
    def merged(self) -> nn.Linear:
        """Returns a plain layer with weight W + scale * B A, summed in double precision.

        Raises:
            ModelError: the merged weight is not finite.
        """
        a, b = (factor.double() for factor in self.factors())
        weight = _fold(self.base.weight.double(), a, b, scale=self.scale, groups=self.groups)
        if not torch.isfinite(weight).all():
            msg = "a merged weight is not finite: the training diverged; lower `distill.schedule.learning_rate`"
            raise ModelError(msg)
        rows, columns = weight.shape
        plain = nn.Linear(columns, rows, bias=self.base.bias is not None)
        plain.weight.copy_(weight)
        if self.base.bias is not None:
            plain.bias.copy_(self.base.bias)
        return plain
