"""Puts LoRA into vision transformers of timm, proves that it works there, and takes it out again."""

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.bottleneck import Bottlenecked
from pipeline.parts.adapters.factors import Factors
from pipeline.parts.adapters.lora import LoraLinear
from pipeline.parts.adapters.sites import sites, target_of
from pipeline.parts.network import Network

Sources = Mapping[str, nn.Module]
"""Factors of one block by projection: "q", "k", "v", "proj", "fc1" (or "fc1_0" and "fc1_1"), "fc2"."""


def shapes(model: Network, targets: Sequence[str]) -> list[dict[str, tuple[int, int]]]:
    """Returns for each block the projections of `targets` with their widths (inputs, outputs).

    Raises:
        ModelError: a block has no layer for a target.
    """
    found = []
    for block in model.blocks:
        here: dict[str, tuple[int, int]] = {}
        for site in sites(block, targets):
            layer = site.of(block)
            for name in site.names:
                if target_of(name) in targets:
                    here[name] = layer.in_features, layer.out_features // len(site.names)
        found.append(here)
    return found


def own_factors(model: Network, targets: Sequence[str], *, rank: int) -> list[dict[str, Factors]]:
    """Returns new factors for every projection of every block."""
    return [
        {name: Factors(inputs, outputs, rank=rank) for name, (inputs, outputs) in block.items()}
        for block in shapes(model, targets)
    ]


def upper(count: int, share: float) -> range:
    """Returns the indices of the upper `share` of `count` blocks, at least one.

    Below the lowest adapter there is nothing to train: no gradient is computed and no activation is kept there.
    """
    return range(count - max(1, round(share * count)), count)


def inject(model: Network, sources: Sequence[Sources], *, scale: float, dropout: float = 0.0) -> None:
    """Gives the layers of each block their factors, in place; a block with no factors stays as it is."""
    for block, given in zip(model.blocks, sources, strict=True):
        targets = {target_of(name) for name in given}
        for site in sites(block, sorted(targets)):
            _call_layer(block)
            layer = LoraLinear(site.of(block), names=site.names, sources=given, scale=scale, dropout=dropout)
            site.put(block, layer)


def _call_layer(block: Network) -> None:
    """Makes EVA's and BEiT's attention call its qkv layer.

    With q and v biases of their own they compute F.linear(x, qkv.weight, bias) and would bypass the adapter without a
    word; with `qkv_bias_separate` they call the layer and add the bias, which is the same function.
    """
    attention = block.attn
    if getattr(attention, "q_bias", None) is not None and hasattr(attention, "qkv_bias_separate"):
        attention.qkv_bias_separate = True


def adapters(model: Network) -> dict[str, LoraLinear | Bottlenecked]:
    """Returns every adapted layer by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear | Bottlenecked)}


def prove_gradients(model: Network, images: Tensor) -> None:
    """Proves by one forward and backward pass that every adapter of `model` is used and receives a gradient.

    Args:
        model: with adapters; neither its parameters nor its mode change.
        images: at least one, of shape (batch, 3, height, width).

    Raises:
        ModelError: naming the adapters that the architecture bypasses.
    """
    seen: dict[str, Tensor] = {}

    def note(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: object, output: Tensor) -> None:
            output.retain_grad()
            seen[name] = output

        return hook

    held = adapters(model)
    handles = [module.register_forward_hook(note(name)) for name, module in held.items()]
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    before = [parameter.grad for parameter in trained]
    was_training = model.training
    model.eval()
    try:
        with torch.enable_grad():
            # An input that needs a gradient gives every layer's output one, whoever owns the factors. A random
            # direction, since the sum of squares after the last norm is constant.
            features = model.forward_features(images.clone().requires_grad_())
            weight = torch.randn(features.shape, generator=torch.Generator().manual_seed(0)).to(features)
            (features * weight).sum().backward()
    finally:
        for handle in handles:
            handle.remove()
        model.train(was_training)
        for parameter, gradient in zip(trained, before, strict=True):
            parameter.grad = gradient
    idle = [name for name in held if not _reached(seen.get(name))]
    if idle:
        msg = (
            f"{type(model).__name__} bypasses {len(idle)} of {len(held)} adapters, such as {idle[0]!r}: they would "
            f"train nothing; choose other `distill.targets` or another model"
        )
        raise ModelError(msg)


def _reached(output: Tensor | None) -> bool:
    return output is not None and output.grad is not None and bool(output.grad.abs().sum() > 0)


def merge(model: Network) -> None:
    """Folds every low-rank update into its layer, in place; bottlenecks, which are no linear maps, stay."""
    for name, module in adapters(model).items():
        if isinstance(module, LoraLinear):
            parent, _, attribute = name.rpartition(".")
            setattr(model.get_submodule(parent), attribute, module.merged())
