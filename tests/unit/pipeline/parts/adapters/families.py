"""One small network of every family that can hold adapters."""

import timm
import torch
from torch import nn

from pipeline.parts.network import Network

SMALL = {"img_size": 32, "num_classes": 3}
PLAIN = {"embed_dim": 32, "depth": 2, "num_heads": 2}
# name -> (architecture, further arguments). augreg's weights are of the plain architecture.
FAMILIES: dict[str, tuple[str, dict[str, object]]] = {
    "plain and augreg": ("vit_tiny_patch16_224", PLAIN),
    "deit3": ("deit3_small_patch16_224", PLAIN),
    "dinov2": ("vit_small_patch14_dinov2", PLAIN | {"img_size": 28}),
    "dinov2 with registers": ("vit_small_patch14_reg4_dinov2", PLAIN | {"img_size": 28}),
    "dinov2 with a gated mlp": ("vit_giant_patch14_dinov2", PLAIN | {"img_size": 28, "mlp_ratio": 2.0}),
    "dinov3": ("vit_small_patch16_dinov3", PLAIN),
    "dinov3 qkvb": ("vit_small_patch16_dinov3_qkvb", PLAIN),
    "dinov3 with a gated mlp": ("vit_small_plus_patch16_dinov3", PLAIN),
    "eva02": ("eva02_tiny_patch14_224", PLAIN | {"img_size": 28}),
    "eva02 with separate q, k, v": ("eva02_base_patch14_224", PLAIN | {"img_size": 28}),
    "beit": ("beit_base_patch16_224", PLAIN),
}


def small(family: str, **changes: object) -> Network:
    """Builds a family's network with random weights, a random head, and layer scales that let adapters be seen."""
    name, options = FAMILIES[family]
    torch.manual_seed(0)
    model: Network = timm.create_model(name, **(SMALL | options | changes)).eval()
    nn.init.normal_(model.get_classifier().weight, std=0.5)
    for key, parameter in model.named_parameters():
        if "gamma" in key:  # LayerScale starts at 1e-5 in DINOv2
            nn.init.ones_(parameter)
    return model


def images(model: Network, count: int = 4) -> torch.Tensor:
    """Random images of the network's size."""
    side = model.patch_embed.img_size[0]
    return torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))


def fill(model: Network) -> None:
    """Gives every B random values, as training does."""
    for name, parameter in model.named_parameters():
        if ".sources." in name and name.endswith("b"):
            nn.init.normal_(parameter, std=0.5)
