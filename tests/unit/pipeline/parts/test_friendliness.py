import numpy as np
import pytest
import timm
import torch
from scipy.stats import kurtosis
from torch import nn

from pipeline.base.errors import DataError
from pipeline.parts import friendliness as measured
from pipeline.parts.adapters.bottleneck import add_bottlenecks
from pipeline.parts.friendliness import NOT_OBSERVED, Layer, friendliness, sqnr_by_group, weighted
from tests import tiny
from tests.unit.pipeline.parts.adapters.families import FAMILIES, images, small


def drawn(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)


def linear(outputs=5, *, side=4, bias=True):
    """A network whose one layer gets the images themselves."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(3 * side * side, outputs, bias=bias)).eval()


def of_linear(pictures, **changes):
    return friendliness(linear(side=pictures.shape[-1], **changes), pictures)["1"]


def int8(values, peak):
    scale = np.maximum(peak, 1e-30) / 127
    return np.round(values / scale) * scale


def decibels(signal, noise):
    return 10 * np.log10((signal**2).sum() / (noise**2).sum())


def test_moments_are_those_of_scipy():
    x = np.exp(drawn(10, 3, 4, 4)) + 50  # skewed, and far from zero
    found = of_linear(x)
    exact = x.astype(np.float64)
    assert found.kurtosis == pytest.approx(kurtosis(exact, axis=None, fisher=False), rel=1e-9)
    assert found.outlier_ratio == pytest.approx(exact.max() / np.sqrt((exact**2).mean()), rel=1e-9)
    assert found.note == ""


def test_a_normal_input_has_a_kurtosis_of_three():
    assert of_linear(drawn(64, 3, 16, 16)).kurtosis == pytest.approx(3, abs=0.1)


def test_the_largest_magnitude_may_be_negative():
    x = drawn(4, 3, 4, 4)
    x[1, 0, 0, 0] = -20
    assert of_linear(x).outlier_ratio == pytest.approx(20 / np.sqrt((x.astype(float) ** 2).mean()), rel=1e-6)


@pytest.mark.parametrize("bias", [True, False])
def test_noise_of_a_linear_layer_is_that_of_numpy(bias):
    model, x = linear(bias=bias), drawn(10, 3, 4, 4)
    if bias:
        nn.init.constant_(model[1].bias, 30.0)  # hides no noise
    w, flat = model[1].weight.detach().numpy().astype(float), x.reshape(10, -1).astype(float)
    signal = flat @ w.T
    noise = signal - int8(flat, np.abs(flat).max()) @ int8(w, np.abs(w).max(1, keepdims=True)).T
    assert friendliness(model, x)["1"].sqnr_db == pytest.approx(decibels(signal, noise), abs=0.01)


def test_noise_of_a_convolution_is_that_of_numpy():
    torch.manual_seed(0)
    model = nn.Conv2d(3, 6, 3, stride=2, padding=1, groups=3)
    x = drawn(7, 3, 8, 8)
    weight = model.weight.detach().numpy().astype(float)
    weights = weight, int8(weight, np.abs(weight).max((1, 2, 3), keepdims=True))
    inputs = x.astype(float), int8(x.astype(float), np.abs(x).max())
    exact, rounded = (
        nn.functional.conv2d(torch.tensor(i), torch.tensor(w), stride=2, padding=1, groups=3).numpy()
        for i, w in zip(inputs, weights, strict=True)
    )
    assert friendliness(nn.Sequential(model), x)["0"].sqnr_db == pytest.approx(
        decibels(exact, exact - rounded), abs=0.01
    )


def test_noise_of_the_input_follows_from_the_outlier_ratio():
    model = linear(48, bias=False)
    with torch.no_grad():
        model[1].weight.copy_(torch.eye(48))  # INT8 holds it exactly
    found = friendliness(model, drawn(64, 3, 4, 4))["1"]
    assert found.sqnr_db == pytest.approx(52.87 - 20 * np.log10(found.outlier_ratio), abs=0.1)


def test_an_outlier_channel_is_seen():
    plain = drawn(16, 3, 8, 8)
    spoiled = plain.copy()
    spoiled[:, 1, 3, 3] *= 100
    before, after = of_linear(plain), of_linear(spoiled)
    assert after.outlier_ratio > 2 * before.outlier_ratio
    assert after.kurtosis > 10 * before.kurtosis
    with torch.no_grad():  # an output that does not need the channel still gets the coarser steps
        model = linear(side=8)
        model[1].weight[:, 64 + 3 * 8 + 3] = 0
    assert friendliness(model, spoiled)["1"].sqnr_db < friendliness(model, plain)["1"].sqnr_db - 20


def test_a_group_adds_the_energies_of_its_layers():
    model = small("eva02 with separate q, k, v")
    layers = friendliness(model, images(model).numpy())
    parts = [layers[f"blocks.1.attn.{name}_proj"] for name in "qkv"]
    expected = 10 * np.log10(sum(part.signal for part in parts) / sum(part.noise for part in parts))
    groups = sqnr_by_group(layers)
    assert groups["blocks.1.qkv"] == pytest.approx(expected)
    assert min(part.sqnr_db for part in parts) < expected < max(part.sqnr_db for part in parts)
    assert groups["head"] == pytest.approx(layers["head"].sqnr_db)


def test_a_group_without_noise_or_signal_has_no_ratio():
    layers = {"a": Layer(1, 1, 2.0, 0.0), "b": Layer(1, 1, 0.0, 2.0), "c": Layer()}
    assert sqnr_by_group(layers) == {"a": None, "b": None, "c": None}


@pytest.mark.parametrize("at_once", [1, 3, 10])
def test_how_many_are_shown_at_once_does_not_matter(monkeypatch, at_once):
    model, pictures = tiny.model(tiny.STUDENT), drawn(10, 3, tiny.SIZE, tiny.SIZE)
    whole = friendliness(model, pictures)
    seen = []
    model.register_forward_pre_hook(lambda _, given: seen.append(len(given[0])))
    monkeypatch.setattr(measured, "at_once", lambda _: at_once)
    parts = friendliness(model, pictures)
    assert max(seen) == at_once
    assert sum(seen) == 20  # twice each
    for name, layer in whole.items():
        for measure in ("outlier_ratio", "kurtosis", "sqnr_db"):
            assert getattr(parts[name], measure) == pytest.approx(getattr(layer, measure), rel=1e-4), (name, measure)


@pytest.mark.parametrize("training", [True, False])
def test_measuring_leaves_no_trace(training):
    model, pictures = tiny.model(tiny.STUDENT).train(training), drawn(4, 3, tiny.SIZE, tiny.SIZE)
    model.blocks[0].train(not training)
    modes = [module.training for module in model.modules()]
    state, answer = {k: v.clone() for k, v in model.state_dict().items()}, model(torch.from_numpy(pictures))
    friendliness(model, pictures)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(state[name], value) for name, value in model.state_dict().items())
    assert torch.equal(model(torch.from_numpy(pictures)), answer)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_nothing_is_watched_after_a_network_fails():
    model = tiny.model(tiny.STUDENT).train()
    with pytest.raises(AssertionError):
        friendliness(model, drawn(2, 3, 8, 8))
    assert model.training
    assert torch._C._len_torch_function_stack() == 0


def test_no_image_is_refused():
    with pytest.raises(DataError, match="no image"):
        friendliness(linear(), drawn(0, 3, 4, 4))


def whole(model, _):
    nn.init.constant_(model[1].weight, 127.0)


def black(_, pictures):
    pictures[:] = 0


def grey(_, pictures):
    pictures[:] = 0.3


def dead(model, _):
    nn.init.zeros_(model[1].weight)


def broken(model, _):
    nn.init.constant_(model[1].weight, float("nan"))


def hot(_, pictures):
    pictures[0, 0, 0, 0] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "note", "defined"),
    [
        (whole, "INT8 changes nothing", {"outlier_ratio", "kurtosis"}),
        (black, "its input is constant; its output is zero; INT8 changes nothing", set()),
        (grey, "its input is constant", {"outlier_ratio", "sqnr_db"}),
        (dead, "its output is zero; INT8 changes nothing", {"outlier_ratio", "kurtosis"}),
        (broken, "its values are not finite", set()),
        (hot, "its values are not finite", set()),
    ],
)
def test_a_number_that_is_not_defined_is_none_with_a_reason(spoil, note, defined):
    model, pictures = linear(), np.random.default_rng(0).integers(-127, 128, (4, 3, 4, 4)).astype(np.float32)
    pictures[0, 0, 0, 0] = 127  # a scale of 1: every value is held exactly
    spoil(model, pictures)
    layer = friendliness(model, pictures)["1"]
    assert layer.note == note
    assert {name for name in ("outlier_ratio", "kurtosis", "sqnr_db") if getattr(layer, name) is not None} == defined


@pytest.mark.parametrize("family", FAMILIES)
def test_every_layer_of_every_family_is_observed(family):
    model = small(family)
    layers = friendliness(model, images(model).numpy())
    own = {name for name, module in model.named_modules() if isinstance(module, nn.Linear | nn.Conv2d)}
    assert layers.keys() == own
    assert [name for name, layer in layers.items() if layer.note] == []
    assert all(20 < layer.sqnr_db < 60 for layer in layers.values())


@pytest.mark.parametrize("family", ["eva02", "beit"])
def test_how_attention_calls_its_weights_does_not_matter(family):
    model = small(family)
    pictures = images(model).numpy()
    for block in model.blocks:
        nn.init.normal_(block.attn.q_bias)
        assert block.attn.qkv_bias_separate is False
    functional = friendliness(model, pictures)
    for block in model.blocks:
        block.attn.qkv_bias_separate = True
    called = friendliness(model, pictures)
    for name, layer in functional.items():
        assert called[name].sqnr_db == pytest.approx(layer.sqnr_db, abs=0.01), name


@pytest.mark.parametrize("name", ["test_resnet", "test_efficientnet", "test_convnext"])
def test_every_layer_of_a_cnn_is_observed(name):
    layers = friendliness(timm.create_model(name, num_classes=3), drawn(4, 3, 32, 32))
    assert len(layers) > 10
    assert {layer.note for layer in layers.values()} == {""}


def test_layers_whose_weights_are_changed_before_their_use_are_named():
    model = timm.create_model("test_nfnet", num_classes=3)  # standardises the weights of its convolutions
    layers = friendliness(model, drawn(4, 3, 32, 32))
    assert layers.keys() == weighted(model).keys()
    assert layers["stem.conv1"] == Layer(note=NOT_OBSERVED)
    assert layers["head.fc"].sqnr_db is not None


def test_a_bottleneck_leaves_the_names_of_its_block():
    model = tiny.model(tiny.STUDENT)
    before = weighted(model)
    add_bottlenecks(model, hidden=4)
    after = weighted(model)
    assert after.keys() - before.keys() == {f"blocks.{index}.{name}" for index in (0, 1) for name in ("down", "up")}
    assert all(after[name] is module for name, module in before.items())
