import math

import pytest
import timm
import torch

from pipeline.parts.cka import FEWEST, features, linear_cka
from tests import tiny


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.double)


def biased(one, other):
    """The estimate of the paper, with centred kernels: biased towards 1 when features outnumber the images."""
    kernels = [x @ x.T for x in (one - one.mean(0), other - other.mean(0))]
    cross, first, second = ((a * b).sum() for a, b in (kernels, kernels[:1] * 2, kernels[1:] * 2))
    return float(cross / (first * second).sqrt())


def textbook(one, other):
    """The unbiased estimator as sums over distinct pairs, triples and quadruples of images."""

    def hsic(k, l):  # noqa: E741 - the formula's names
        n = len(k)
        pairs = triples = quadruples = 0.0
        for i in range(n):
            for j in range(n):
                if j == i:
                    continue
                pairs += k[i, j] * l[i, j]
                for q in range(n):
                    if q in (i, j):
                        continue
                    triples += k[i, j] * l[i, q]
                    quadruples += sum(k[i, j] * l[q, r] for r in range(n) if r not in (i, j, q))
        two = n * (n - 1)
        three, four = two * (n - 2), two * (n - 2) * (n - 3)
        return pairs / two + quadruples / four - 2 * triples / three

    k, l = (one @ one.T).tolist(), (other @ other.T).tolist()  # noqa: E741
    k, l = torch.tensor(k, dtype=torch.double), torch.tensor(l, dtype=torch.double)  # noqa: E741
    return float(hsic(k, l) / math.sqrt(hsic(k, k) * hsic(l, l)))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_estimator_written_out(seed):
    one = drawn(7, 5, seed=seed)
    other = one[:, :3] + drawn(7, 3, seed=seed + 10)  # related, so that no term is near zero
    assert linear_cka(one, other) == pytest.approx(textbook(one, other), rel=1e-9)


def test_rotation_scale_and_shift_do_not_matter():
    x = drawn(20, 6)
    rotation = torch.linalg.qr(drawn(6, 6, seed=1)).Q
    assert linear_cka(x, 3 * x @ rotation + 5) == pytest.approx(1)
    assert linear_cka(x.float(), x.float()) == pytest.approx(1)
    assert linear_cka(x, x @ drawn(6, 6, seed=1)) < 0.99  # any other map does


def test_unrelated_features_are_not_alike_however_few_the_images():
    found = [linear_cka(drawn(16, 256, seed=i), drawn(16, 128, seed=100 + i)) for i in range(20)]
    naive = [biased(drawn(16, 256, seed=i), drawn(16, 128, seed=100 + i)) for i in range(20)]
    assert abs(sum(found) / len(found)) < 0.05
    assert min(naive) > 0.8  # why the other estimate is not used


def test_more_noise_is_less_alike():
    x = drawn(50, 8)
    values = [linear_cka(x, x + noise * drawn(50, 8, seed=1)) for noise in (0.0, 0.3, 1.0, 3.0)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("count", range(FEWEST))
def test_too_few_images_have_no_value(count):
    assert math.isnan(linear_cka(drawn(count, 5), drawn(count, 3)))


def test_features_without_variance_have_no_value():
    assert math.isnan(linear_cka(torch.ones(8, 5), drawn(8, 3)))


def batches(count=10, size=tiny.SIZE):
    return drawn(count, 3, size, size).float().split(4)


@pytest.mark.parametrize("training", [True, False])
def test_taking_features_leaves_no_trace(training):
    model = tiny.model(tiny.STUDENT).train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    features(model, batches(), blocks=(0, 1))
    assert model.training == training
    assert all(not module._forward_hooks for module in model.modules())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_hooks_are_removed_when_the_network_fails():
    model = tiny.model(tiny.STUDENT).train()
    with pytest.raises(AssertionError):
        features(model, [torch.zeros(2, 3, 8, 8)], blocks=(0,))
    assert model.training
    assert all(not module._forward_hooks for module in model.modules())


@torch.no_grad()
def test_features_are_those_of_a_pass_by_hand():
    model = tiny.model(tiny.STUDENT)
    found = features(model, batches(), blocks=(0, 1))
    x = torch.cat(batches())
    tokens = model.patch_embed(x)
    tokens = model.norm_pre(model._pos_embed(tokens))
    for index, block in enumerate(model.blocks):
        tokens = block(tokens)
        torch.testing.assert_close(found[f"{index} class"], tokens[:, 0])
        torch.testing.assert_close(found[f"{index} patches"], tokens[:, 1:].mean(1))
    torch.testing.assert_close(found["last"] @ model.head.weight.T + model.head.bias, model(x))
    assert found.keys() == {"0 class", "0 patches", "1 class", "1 patches", "last"}


@torch.no_grad()
@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_efficientnet"])
def test_any_classifier_has_features_before_its_head(name):
    model = timm.create_model(name, num_classes=3).eval()
    found = features(model, batches(size=32))
    head = model.get_classifier()
    assert found.keys() == {"last"}
    torch.testing.assert_close(found["last"] @ head.weight.T + head.bias, model(torch.cat(batches(size=32))))


def test_a_network_without_a_class_token_has_patches_only():
    model = timm.create_model(
        "vit_small_patch16_224", img_size=16, patch_size=8, embed_dim=16, depth=1, num_heads=2, class_token=False,
        global_pool="avg",
    )  # fmt: skip
    found = features(model, batches(), blocks=(0,))
    assert found.keys() == {"0 patches", "last"}
    assert found["0 patches"].shape == (10, 16)
