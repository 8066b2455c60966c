import pytest
import timm
import torch
from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.inject import adapters, inject, merge, own_factors, prove_gradients, shapes
from pipeline.parts.adapters.lora import LoraLinear
from pipeline.parts.adapters.sites import TARGETS, head_width, is_adaptable, sites
from tests.unit.pipeline.parts.adapters.families import FAMILIES, fill, images, small

QKV = ("q", "k", "v")


def adapted(family, targets=TARGETS):
    model = small(family)
    inject(model, own_factors(model, targets, rank=2), scale=0.5)
    return model


@pytest.mark.parametrize("targets", [QKV, TARGETS], ids=["qkv", "all"])
@pytest.mark.parametrize("family", FAMILIES)
def test_injection_leaves_the_function_and_every_adapter_gets_a_gradient(family, targets):
    plain, model = small(family), adapted(family, targets)
    x = images(model)
    torch.testing.assert_close(model(x), plain(x), atol=1e-5, rtol=0)
    prove_gradients(model, x)
    fill(model)
    model(x).square().sum().backward()
    sources = [source for layer in adapters(model).values() for source in layer.sources.values()]
    assert len(sources) == sum(len(block) for block in shapes(plain, targets))
    assert all(source.a.grad.any() and source.b.grad.any() for source in sources)


@pytest.mark.parametrize("family", FAMILIES)
def test_merging_keeps_the_logits_and_leaves_a_plain_model(family):
    plain, model = small(family), adapted(family)
    fill(model)
    x = images(model)
    before = model(x).detach()
    assert (before - plain(x)).abs().max() > 1e-2  # the adapters matter
    merge(model)
    torch.testing.assert_close(model(x), before, atol=1e-5 * max(1, float(before.abs().max())), rtol=0)
    assert adapters(model) == {}
    assert model.state_dict().keys() == plain.state_dict().keys()
    fresh = small(family)
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh(x), before, atol=1e-5 * max(1, float(before.abs().max())), rtol=0)


def test_an_attention_that_bypasses_its_qkv_layer_is_named():
    model = adapted("eva02", QKV)
    for block in model.blocks:
        block.attn.qkv_bias_separate = False  # what timm has before injection
        block.attn.qkv.weight = block.attn.qkv.base.weight  # what peft's layers offer, and what makes it silent
    with pytest.raises(ModelError, match=r"Eva bypasses 2 of 2 adapters, such as 'blocks.0.attn.qkv'"):
        prove_gradients(model, images(model))


def test_the_proof_leaves_no_trace():
    model = adapted("plain and augreg").train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    prove_gradients(model, images(model))
    assert all(parameter.grad is None for parameter in model.parameters())
    assert model.training
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_blocks_without_factors_stay_plain():
    model = small("plain and augreg")
    factors = own_factors(model, QKV, rank=2)
    inject(model, [{}, factors[1]], scale=1.0)
    assert type(model.blocks[0].attn.qkv) is nn.Linear
    assert isinstance(model.blocks[1].attn.qkv, LoraLinear)


def test_shapes_are_those_of_each_projection():
    first = shapes(small("plain and augreg"), TARGETS)[0]
    assert first == {"q": (32, 32), "k": (32, 32), "v": (32, 32), "proj": (32, 32), "fc1": (32, 128), "fc2": (128, 32)}
    gated = shapes(small("dinov2 with a gated mlp"), ("fc1", "fc2"))[0]
    assert gated == {"fc1_0": (32, 32), "fc1_1": (32, 32), "fc2": (32, 32)}
    assert set(shapes(small("eva02"), ("fc1",))[0]) == {"fc1_0", "fc1_1"}


def test_a_target_that_a_block_lacks_is_refused():
    block = small("plain and augreg").blocks[0]
    block.mlp = nn.Identity()
    with pytest.raises(ModelError, match=r"`distill.targets` names fc1, fc2, but a Block has only q, k, v, proj"):
        sites(block, TARGETS)


def test_models_without_linear_attention_projections_are_not_adaptable():
    assert all(is_adaptable(small(family)) for family in FAMILIES)
    assert not is_adaptable(timm.create_model("test_resnet"))
    odd = timm.create_model("vit_small_patch16_18x2_224", img_size=32, embed_dim=16, depth=2, num_heads=2)
    assert not is_adaptable(odd)


def test_the_width_of_a_head():
    assert {head_width(small(family)) for family in FAMILIES} == {16}
