import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.parts.adapters.bottleneck import Bottlenecked, add_bottlenecks
from pipeline.parts.adapters.inject import adapters, inject, merge, own_factors, prove_gradients
from pipeline.parts.models import load_merged, save_merged
from tests import tiny
from tests.unit.pipeline.parts.adapters.families import FAMILIES, fill, images, small

X = torch.randn(4, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))


def test_it_is_a_residual_bottleneck_behind_the_block():
    torch.manual_seed(0)
    block = nn.Linear(16, 16)
    layer = Bottlenecked(block, width=16, hidden=4)
    for parameter in layer.parameters():
        nn.init.normal_(parameter)
    x = torch.randn(2, 5, 16)
    inner = block(x)
    hidden = inner @ layer.down.weight.T + layer.down.bias
    expected = inner + F.gelu(hidden) @ layer.up.weight.T + layer.up.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer.down.weight.shape == (4, 16)
    assert layer.up.weight.shape == (16, 4)


def test_it_starts_like_the_transformers_own_layers_and_not_at_zero():
    torch.manual_seed(0)
    layer = Bottlenecked(nn.Identity(), width=256, hidden=64)
    for part in (layer.down, layer.up):
        assert part.weight.std().item() == pytest.approx(0.02, rel=0.05)
        assert not part.bias.any()
    x = torch.randn(1, 3, 256)
    assert not torch.equal(layer(x), x)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_can_hold_bottlenecks(family):
    model = small(family)
    add_bottlenecks(model, hidden=4)
    held = adapters(model)
    assert len(held) == len(model.blocks)
    assert all(isinstance(layer, Bottlenecked) for layer in held.values())
    prove_gradients(model, images(model))


def test_merging_folds_lora_and_leaves_bottlenecks():
    model = tiny.model(tiny.STUDENT)
    inject(model, own_factors(model, ("q", "v"), rank=2), scale=0.5)
    fill(model)
    add_bottlenecks(model, hidden=4)
    before = model(X)
    merge(model)
    left = adapters(model)
    assert list(left) == ["blocks.0", "blocks.1"]
    assert all(type(block.block.attn.qkv) is nn.Linear for block in model.blocks)
    torch.testing.assert_close(model(X), before, atol=1e-5, rtol=0)


def test_a_merged_network_comes_back_with_its_bottlenecks(tmp_path):
    model = tiny.model(tiny.STUDENT)
    add_bottlenecks(model, hidden=3)
    save_merged(tmp_path, "student", model, labels=["a", "b", "c"])
    again, _ = load_merged(tmp_path, "student", tiny.STUDENT)
    assert [block.down.out_features for block in again.blocks] == [3, 3]
    assert torch.equal(again(X), model(X))
