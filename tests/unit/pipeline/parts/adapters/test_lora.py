import math

import pytest
import torch
from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.factors import Factors
from pipeline.parts.adapters.lora import LoraLinear

NAMES = ("q", "k", "v")


def layer(adapted=NAMES, *, scale=0.5, dropout=0.0, bias=True, width=16, rank=2, filled=True) -> LoraLinear:
    torch.manual_seed(0)
    base = nn.Linear(width, 3 * width, bias=bias).requires_grad_(False)
    sources = {name: Factors(width, width, rank=rank) for name in adapted}
    if filled:
        for source in sources.values():
            nn.init.normal_(source.b)
    return LoraLinear(base, names=NAMES, sources=sources, scale=scale, dropout=dropout)


def reference(lora: LoraLinear, x):
    """The formula, written plainly: ordinary autograd differentiates it."""
    updates = [
        lora.scale * x @ lora.sources[name].a.T @ lora.sources[name].b.T
        if name in lora.sources
        else torch.zeros(*x.shape[:-1], lora.base.out_features // 3, dtype=x.dtype)
        for name in NAMES
    ]
    return lora.base(x) + torch.cat(updates, dim=-1)


def test_new_factors_leave_the_function_unchanged():
    lora = layer(filled=False)
    x = torch.randn(2, 5, 16)
    assert torch.equal(lora(x), lora.base(x))


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("adapted", [NAMES, ("q", "v"), ("k",)], ids="".join)
def test_output_and_every_gradient_are_those_of_the_formula(adapted, bias):
    lora = layer(adapted, bias=bias).double()
    if bias:
        lora.base.bias.requires_grad_(True)
    x = torch.randn(3, 5, 16, dtype=torch.double, requires_grad=True)
    weight = torch.randn(3, 5, 48, dtype=torch.double)
    trained = [x, *(p for p in lora.parameters() if p.requires_grad)]
    found = lora(x)
    expected = reference(lora, x)
    torch.testing.assert_close(found, expected)
    for one, other in zip(
        torch.autograd.grad((found * weight).sum(), trained),
        torch.autograd.grad((expected * weight).sum(), trained),
        strict=True,
    ):
        torch.testing.assert_close(one, other)


def test_no_gradient_is_computed_for_an_input_that_needs_none():
    lora = layer()
    lora(torch.randn(4, 16)).sum().backward()
    assert all(source.b.grad.any() for source in lora.sources.values())
    assert lora.base.weight.grad is None


def test_under_autocast_the_gradients_are_those_of_fp32_up_to_rounding():
    lora = layer(width=64, rank=4)
    x = torch.randn(32, 64)
    with torch.autocast("cpu", torch.bfloat16):
        found = lora(x)
    assert found.dtype == torch.bfloat16
    found.float().square().sum().backward()
    half = lora.sources["q"].a.grad.clone()
    lora.zero_grad()
    lora(x).square().sum().backward()
    assert half.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(half.flatten(), lora.sources["q"].a.grad.flatten(), dim=0) > 0.999


def test_dropout_acts_on_the_adapter_alone_and_only_in_training():
    lora = layer(dropout=0.5)
    x = torch.randn(4, 16)
    plain = lora.eval()(x)
    torch.testing.assert_close(plain, reference(lora, x))
    torch.manual_seed(0)
    dropped = torch.stack([lora.train()(x) for _ in range(4000)])
    assert not torch.equal(dropped[0], dropped[1])
    torch.testing.assert_close(dropped.mean(0), plain, atol=0.15, rtol=0)  # dropout keeps the mean
    still = layer(("q",), dropout=0.5).train()
    torch.testing.assert_close(still(x)[:, 16:], still.base(x)[:, 16:])


@pytest.mark.parametrize("adapted", [NAMES, ("q", "v")], ids="".join)
def test_merging_keeps_the_function(adapted):
    lora = layer(adapted)
    x = torch.randn(4, 16)
    merged = lora.merged()
    assert type(merged) is nn.Linear
    torch.testing.assert_close(merged(x), lora(x), atol=1e-5, rtol=0)
    assert (lora(x) - lora.base(x)).abs().max() > 1e-2


def test_a_diverged_adapter_is_not_merged():
    lora = layer()
    with torch.no_grad():
        lora.sources["k"].b[0, 0] = math.inf
    with pytest.raises(ModelError, match="not finite"):
        lora.merged()
