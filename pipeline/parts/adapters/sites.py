"""Where a vision transformer of timm can hold adapters: names of projections, the same in every family."""

from collections.abc import Sequence
from dataclasses import dataclass

from timm.layers import GluMlp
from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.network import Network

TARGETS = ("q", "k", "v", "proj", "fc1", "fc2")
FUSED = ("q", "k", "v")  # order of timm's fused layer


@dataclass(frozen=True)
class Site:
    """A layer of a block that holds one or more projections.

    Attributes:
        parent: module of the block that owns the layer, such as "attn".
        layer: attribute of the layer, such as "qkv".
        names: projections along its outputs, in order. Gated MLPs have "fc1_0" and "fc1_1".
    """

    parent: str
    layer: str
    names: tuple[str, ...]

    def of(self, block: Network) -> nn.Linear:
        """Returns the layer."""
        found: nn.Linear = getattr(block.get_submodule(self.parent), self.layer)
        return found

    def put(self, block: Network, layer: nn.Module) -> None:
        """Replaces the layer."""
        setattr(block.get_submodule(self.parent), self.layer, layer)


def target_of(name: str) -> str:
    """Returns the target that a projection belongs to: "fc1" for "fc1_0"."""
    return name.split("_", maxsplit=1)[0]


def is_adaptable(model: Network) -> bool:
    """Whether every block of the model has one width, and attention whose projections are linear layers."""
    blocks = getattr(model, "blocks", None)
    if not isinstance(getattr(model, "embed_dim", None), int):
        return False
    return isinstance(blocks, nn.ModuleList | nn.Sequential) and len(blocks) > 0 and all(map(_attention, blocks))


def head_width(model: Network) -> int:
    """Returns the width of one attention head of the first block."""
    block = model.blocks[0]
    site = _attention(block)[0]
    width: int = site.of(block).out_features // len(site.names) // block.attn.num_heads
    return width


def _attention(block: Network) -> tuple[Site, ...]:
    attention = getattr(block, "attn", None)
    if isinstance(getattr(attention, "qkv", None), nn.Linear):
        return (Site("attn", "qkv", FUSED),)
    if all(isinstance(getattr(attention, f"{name}_proj", None), nn.Linear) for name in FUSED):
        return tuple(Site("attn", f"{name}_proj", (name,)) for name in FUSED)
    return ()


def sites(block: Network, targets: Sequence[str]) -> list[Site]:
    """Finds the layers of `block` that hold any of `targets`.

    Raises:
        ModelError: the block has no layer for a target.
    """
    found = [*_attention(block)]
    if isinstance(getattr(getattr(block, "attn", None), "proj", None), nn.Linear):
        found.append(Site("attn", "proj", ("proj",)))
    mlp = getattr(block, "mlp", None)
    if isinstance(getattr(mlp, "fc1_g", None), nn.Linear):  # SwiGLU with two layers, as in EVA-02
        found += [Site("mlp", "fc1_g", ("fc1_0",)), Site("mlp", "fc1_x", ("fc1_1",))]
    elif isinstance(getattr(mlp, "fc1", None), nn.Linear):
        found.append(Site("mlp", "fc1", ("fc1_0", "fc1_1") if isinstance(mlp, GluMlp) else ("fc1",)))
    if isinstance(getattr(mlp, "fc2", None), nn.Linear):
        found.append(Site("mlp", "fc2", ("fc2",)))
    held = {target_of(name) for site in found for name in site.names}
    absent = [target for target in targets if target not in held]
    if absent:
        msg = (
            f"`distill.targets` names {', '.join(absent)}, but a {type(block).__name__} has only "
            f"{', '.join(t for t in TARGETS if t in held) or 'none of them'}; remove it or choose another model"
        )
        raise ModelError(msg)
    return [site for site in found if any(target_of(name) in targets for name in site.names)]
