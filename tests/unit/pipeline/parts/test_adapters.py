import math

import pytest
import torch
from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters import Factors, LoraQkv, SharedFactors, adapters_of, inject, inject_saved, merge
from tests import tiny


def filled(width: int, rank: int = 2) -> Factors:
    factors = Factors(width, rank)
    nn.init.normal_(factors.b)
    return factors


def adapted(which=tiny.STUDENT, *, scale=0.5):
    model = tiny.model(which)
    sources = [filled(model.embed_dim) for _ in model.blocks]
    inject(model, sources, scale=scale)
    return model, sources


def test_new_factors_leave_the_function_unchanged():
    base = nn.Linear(16, 48)
    x = torch.randn(2, 5, 16)
    assert torch.equal(LoraQkv(base, Factors(16, 4), scale=1.0)(x), base(x))


def test_a_is_drawn_kaiming_uniform_for_the_width():
    bound = 1 / math.sqrt(64)  # sqrt(6 / ((1 + 5) * fan_in))
    a = Factors(64, 8).a
    assert a.shape == (3, 8, 64)
    assert a.abs().max() <= bound
    assert a.abs().max() > 0.9 * bound


def test_update_is_scale_times_b_a_per_projection():
    base, factors = nn.Linear(16, 48), filled(16)
    x = torch.randn(7, 16)
    result = LoraQkv(base, factors, scale=0.25)(x) - base(x)
    for p in range(3):
        expected = 0.25 * x @ factors.a[p].T @ factors.b[p].T
        torch.testing.assert_close(result[:, p * 16 : (p + 1) * 16], expected)


def test_shared_factors_are_the_first_coordinates_of_each_projection():
    owner = filled(24)
    a, b = SharedFactors(owner, 16)()
    assert torch.equal(a, owner.a[:, :, :16])
    assert torch.equal(b, owner.b[:, :16, :])
    assert a.untyped_storage().data_ptr() == owner.a.untyped_storage().data_ptr()


def test_shared_factors_own_no_parameter():
    assert list(SharedFactors(filled(24), 16).parameters()) == []


def test_gradient_of_a_student_stays_inside_its_slice():
    owner = filled(24)
    layer = LoraQkv(nn.Linear(16, 48), SharedFactors(owner, 16), scale=1.0)
    layer(torch.randn(4, 16)).square().sum().backward()
    assert owner.a.grad[:, :, :16].abs().min() > 0
    assert owner.b.grad[:, :16].abs().min() > 0
    assert owner.a.grad[:, :, 16:].abs().max() == 0
    assert owner.b.grad[:, 16:].abs().max() == 0


def test_both_uses_of_a_shared_tensor_add_their_gradients():
    owner = filled(24)
    own = LoraQkv(nn.Linear(24, 72), owner, scale=1.0)
    narrow = LoraQkv(nn.Linear(16, 48), SharedFactors(owner, 16), scale=1.0)
    wide_x, narrow_x = torch.randn(4, 24), torch.randn(4, 16)

    def gradient(*losses):
        owner.zero_grad()
        sum(losses).backward()
        return owner.a.grad.clone()

    alone = gradient(own(wide_x).square().sum()) + gradient(narrow(narrow_x).square().sum())
    together = gradient(own(wide_x).square().sum(), narrow(narrow_x).square().sum())
    torch.testing.assert_close(together, alone)


def test_injection_freezes_all_but_head_and_factors():
    model, _ = adapted()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {
        "head.weight", "head.bias",
        *(f"blocks.{i}.attn.qkv.factors.{f}" for i in range(2) for f in "ab"),
    }  # fmt: skip


def test_every_adapter_receives_a_gradient():
    model, sources = adapted()
    model(torch.randn(2, 3, tiny.SIZE, tiny.SIZE)).square().sum().backward()
    assert all(s.a.grad.abs().sum() > 0 and s.b.grad.abs().sum() > 0 for s in sources)


def test_merging_keeps_the_logits_and_leaves_a_plain_model():
    model, _ = adapted()
    plain = tiny.model(tiny.STUDENT)
    x = torch.randn(4, 3, tiny.SIZE, tiny.SIZE)
    before = model(x)
    assert (before - plain(x)).abs().max() > 1e-3  # the adapters matter
    merge(model)
    torch.testing.assert_close(model(x), before, atol=1e-5, rtol=0)
    assert {type(m) for m in model.modules()} == {type(m) for m in plain.modules()}
    assert model.state_dict().keys() == plain.state_dict().keys()


def test_saved_slices_give_the_same_student():
    teacher_factors = [filled(24), filled(24)]
    model = tiny.model(tiny.STUDENT)
    inject(model, [SharedFactors(f, 16) for f in teacher_factors], scale=0.5)
    saved = adapters_of(model)
    assert saved["blocks.1.attn.qkv.a"].shape == (3, 2, 16)
    assert all(value.is_contiguous() for value in saved.values())
    again = tiny.model(tiny.STUDENT)
    inject_saved(again, saved, scale=0.5)
    x = torch.randn(2, 3, tiny.SIZE, tiny.SIZE)
    torch.testing.assert_close(again(x), model(x), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda saved: saved.pop("blocks.1.attn.qkv.b"), "lack 'blocks.1.attn.qkv.b'"),
        (lambda saved: saved.update({"blocks.0.attn.qkv.a": torch.zeros(3, 2, 24)}), "is 24 wide, the network 16"),
    ],
)
def test_saved_adapters_that_do_not_fit_are_refused(change, words):
    saved = adapters_of(adapted()[0])
    change(saved)
    with pytest.raises(ModelError, match=words):
        inject_saved(tiny.model(tiny.STUDENT), saved, scale=1.0)


def test_a_diverged_adapter_is_not_merged():
    factors = filled(16)
    with torch.no_grad():
        factors.b[0, 0, 0] = math.inf
    with pytest.raises(ModelError, match="not finite"):
        LoraQkv(nn.Linear(16, 48), factors, scale=1.0).merged()
