"""Bottleneck adapters: what iDAT trains."""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.parts.network import Network

INIT_STD = 0.02


class Bottlenecked(nn.Module):
    """A block followed by a residual bottleneck: x <- block(x), then x + Up(GELU(Down x)).

    The sequential adapter of Ruan et al., "iDAT: inverse Distillation Adapter-Tuning" (ICME 2024), `gist_seq_adapter`
    in their code: linear layers with biases, started like the transformer's own (trunc_normal, std 0.02), not at zero.
    It is no linear map of a frozen layer and cannot be merged: it stays in the deployed network.

    Args:
        block: maps (batch, tokens, width) to the same shape; further arguments are passed on.
        width: of the tokens.
        hidden: of the bottleneck.
    """

    def __init__(self, block: Network, *, width: int, hidden: int) -> None:
        super().__init__()
        self.block = block
        self.down = nn.Linear(width, hidden)
        self.up = nn.Linear(hidden, width)
        for layer in (self.down, self.up):
            nn.init.trunc_normal_(layer.weight, std=INIT_STD)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, *args: object, **options: object) -> Tensor:
        """Applies block and bottleneck to x of shape (batch, tokens, width)."""
        x = self.block(x, *args, **options)
        widened: Tensor = x + self.up(F.gelu(self.down(x)))
        return widened


def add_bottlenecks(model: Network, *, hidden: int) -> None:
    """Puts a bottleneck behind every block, in place."""
    for index, block in enumerate(model.blocks):
        model.blocks[index] = Bottlenecked(block, width=model.embed_dim, hidden=hidden)
