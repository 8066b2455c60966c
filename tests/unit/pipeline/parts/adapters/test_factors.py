import math

import pytest
import torch
from torch import nn

from pipeline.parts.adapters.factors import Factors, JoinedFactors, SharedFactors, coordinates


def filled(inputs=24, outputs=24, rank=2) -> Factors:
    factors = Factors(inputs, outputs, rank=rank)
    nn.init.normal_(factors.b)
    return factors


def shared(owner, inputs=16, outputs=16, kind="first", **options) -> SharedFactors:
    wide = owner.a.shape[1], owner.b.shape[0]
    return SharedFactors(
        owner,
        inputs=coordinates(wide[0], inputs, kind=kind, seed=0),
        outputs=coordinates(wide[1], outputs, kind=kind, seed=0),
        **options,
    )


def test_a_is_drawn_kaiming_uniform_for_the_width_and_b_is_zero():
    factors = Factors(64, 32, rank=8)
    bound = 1 / math.sqrt(64)  # sqrt(6 / ((1 + 5) * fan_in))
    assert factors.a.shape == (8, 64)
    assert 0.9 * bound < factors.a.abs().max() <= bound
    assert factors.b.shape == (32, 8)
    assert not factors.b.any()


def test_shared_factors_are_views_of_the_first_coordinates_and_own_nothing():
    owner = filled()
    borrower = shared(owner)
    a, b = borrower()
    assert torch.equal(a, owner.a[:, :16])
    assert torch.equal(b, owner.b[:16])
    assert a.untyped_storage().data_ptr() == owner.a.untyped_storage().data_ptr()
    assert list(borrower.parameters()) == []


def test_a_random_subset_is_fixed_ascending_and_the_same_for_equal_sizes():
    owner = filled()
    chosen = coordinates(24, 16, kind="random", seed=3)
    assert chosen.tolist() == sorted(set(chosen.tolist()))
    assert torch.equal(chosen, coordinates(24, 16, kind="random", seed=3))
    assert not torch.equal(chosen, coordinates(24, 16, kind="random", seed=4))
    a, b = shared(owner, kind="random")()
    subset = coordinates(24, 16, kind="random", seed=0)
    assert torch.equal(a, owner.a[:, subset])
    assert torch.equal(b, owner.b[subset])


@pytest.mark.parametrize("kind", ["first", "random"])
def test_the_gradient_of_a_borrower_stays_inside_its_coordinates(kind):
    owner = filled()
    a, b = shared(owner, kind=kind)()
    (a.square().sum() + b.square().sum()).backward()
    inside = torch.zeros(24, dtype=torch.bool)
    inside[coordinates(24, 16, kind=kind, seed=0)] = True
    assert owner.a.grad[:, inside].abs().min() > 0
    assert owner.b.grad[inside].abs().min() > 0
    assert not owner.a.grad[:, ~inside].any()
    assert not owner.b.grad[~inside].any()


def test_both_uses_of_a_shared_tensor_add_their_gradients():
    owner = filled()
    borrower = shared(owner)
    (owner()[0].sum() + 3 * borrower()[0].sum()).backward()
    assert torch.equal(owner.a.grad[:, :16], torch.full((2, 16), 4.0))
    assert torch.equal(owner.a.grad[:, 16:], torch.ones(2, 8))


@pytest.mark.parametrize(("private", "public"), [("a", "b"), ("b", "a")])
def test_one_factor_can_be_shared_and_the_other_its_own(private, public):
    owner = filled()
    own = {"own_a": (2, 16)} if private == "a" else {"own_b": (16, 2)}
    borrower = shared(owner, **own)
    assert [name for name, _ in borrower.named_parameters()] == [private]
    factors = dict(zip("ab", borrower(), strict=True))
    sum(factor.square().sum() + factor.sum() for factor in factors.values()).backward()
    assert getattr(owner, public).grad.any()
    assert getattr(owner, private).grad is None
    assert getattr(borrower, private).grad.any()


def test_the_gain_scales_a_shared_a_only():
    owner = filled()
    a, b = shared(owner, gain=1.5)()
    assert torch.equal(a, 1.5 * owner.a[:, :16])
    assert torch.equal(b, owner.b[:16])


def test_sqrt_of_the_widths_gives_a_truncated_a_the_scale_of_a_narrow_one():
    torch.manual_seed(0)
    owner = filled(1024, 1024, rank=64)
    x = torch.randn(512, 384)
    plain = (x @ shared(owner, 384, 384)()[0].T).std().item()
    scaled = (x @ shared(owner, 384, 384, gain=math.sqrt(1024 / 384))()[0].T).std().item()
    narrow = (x @ Factors(384, 384, rank=64).a.T).std().item()
    assert plain < 0.7 * narrow
    assert scaled == pytest.approx(narrow, rel=0.05)


def test_joined_factors_add_two_updates():
    one, two = filled(rank=2), filled(rank=3)
    a, b = JoinedFactors(one, two)()
    assert a.shape == (5, 24)
    torch.testing.assert_close(b @ a, one.b @ one.a + two.b @ two.a)
