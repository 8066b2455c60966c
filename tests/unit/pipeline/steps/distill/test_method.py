import pytest
import torch

from pipeline.parts.adapters.inject import adapters
from pipeline.steps.distill.method import Lora, trained_by
from tests import tiny

X = torch.randn(2, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))


def prepared(**changes):
    """A teacher of four blocks and what of it is trained by LoRA."""
    model = tiny.model(tiny.TEACHER)
    lora = Lora(**({"targets": ("q", "k", "v"), "rank": 2, "alpha": 2.0} | changes))
    trained = trained_by("lora", model, lora=lora, role="teacher")
    model.requires_grad_(False)
    for parameter in trained.values():
        parameter.requires_grad_(True)
    return model, trained


def test_lora_trains_factors_and_head():
    model, trained = prepared()
    assert set(adapters(model)) == {f"blocks.{index}.attn.qkv" for index in range(4)}
    assert {name for name in trained if ".sources." not in name} == {"head.weight", "head.bias"}


def test_norms_bring_every_norm_and_bias_of_the_model():
    model, trained = prepared(norms=True)
    flat = {name for name, parameter in model.named_parameters() if parameter.ndim <= 1}
    assert {"patch_embed.proj.bias", "blocks.0.norm1.weight", "blocks.0.attn.qkv.base.bias", "norm.bias"} <= flat
    assert {name for name in trained if ".sources." not in name} == flat | {"head.weight"}


@pytest.mark.parametrize("norms", [False, True])
def test_below_the_lowest_adapter_nothing_is_trained_and_no_gradient_flows(norms):
    model, trained = prepared(depth=0.5, norms=norms)
    assert set(adapters(model)) == {"blocks.2.attn.qkv", "blocks.3.attn.qkv"}
    assert not [name for name in trained if name.startswith(("patch_embed", "blocks.0.", "blocks.1."))]
    needed = []
    for block in model.blocks:
        block.register_forward_hook(lambda _module, _inputs, output: needed.append(output.requires_grad))
    model(X).square().sum().backward()
    assert needed == [False, False, True, True]
    assert all(parameter.grad is not None for parameter in trained.values())
