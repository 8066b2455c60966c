import pytest
import timm
import torch
from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.bottleneck import add_bottlenecks
from pipeline.parts.adapters.inject import inject, own_factors
from pipeline.parts.adapters.saved import restore, trained_state, without_factors
from tests import tiny
from tests.unit.pipeline.parts.adapters.families import fill

X = torch.randn(4, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))


def adapted(targets=("q", "v")):
    """A student with adapters, and the parameters that were trained."""
    model = tiny.model(tiny.STUDENT)
    inject(model, own_factors(model, targets, rank=2), scale=0.5)
    fill(model)
    trained = [p for name, p in model.named_parameters() if ".sources." in name]
    trained += model.head.parameters()
    nn.init.normal_(model.head.weight)
    return model, trained


def saved(**options):
    model, trained = adapted(**options)
    return trained_state(model, trained)


def test_only_what_was_trained_is_saved():
    state, described = saved()
    factors = {f"blocks.{i}.{name}.{part}" for i in range(2) for name in ("q", "v") for part in ("a", "b")}
    assert state.keys() == factors | {"head.weight", "head.bias"}
    assert state["blocks.0.q.a"].shape == (2, 16)
    assert state["blocks.0.q.b"].shape == (16, 2)
    assert described == {"scale": "0.5"}


def test_saved_tensors_are_copies_on_the_cpu():
    model, trained = adapted()
    state, _ = trained_state(model, trained)
    before = state["head.weight"].clone()
    nn.init.zeros_(model.head.weight)
    assert torch.equal(state["head.weight"], before)
    assert all(not value.requires_grad and value.is_contiguous() for value in state.values())


@pytest.mark.parametrize("options", [{}, {"targets": ("q", "k", "v", "proj", "fc1", "fc2")}, {"targets": ("fc2",)}])
def test_what_was_saved_gives_the_trained_network_again(options):
    model, trained = adapted(**options)
    again = tiny.model(tiny.STUDENT)
    restore(again, *trained_state(model, trained))
    assert torch.equal(again(X), model(X))
    assert without_factors(again)


def test_bottlenecks_are_restored_with_their_width():
    model = tiny.model(tiny.STUDENT)
    add_bottlenecks(model, hidden=3)
    trained = [p for name, p in model.named_parameters() if name.split(".")[2:3] != ["block"]]
    for parameter in trained:
        nn.init.normal_(parameter)
    state, described = trained_state(model, trained)
    assert described == {"bottleneck": "3"}
    again = tiny.model(tiny.STUDENT, seed=0)
    restore(again, state, described)
    assert [block.down.out_features for block in again.blocks] == [3, 3]
    assert torch.equal(again(X), model(X))


def test_parameters_inside_an_adapted_layer_are_saved_under_their_plain_names():
    model, trained = adapted()
    trained += [p for name, p in model.named_parameters() if name.endswith("qkv.base.bias")]
    nn.init.ones_(model.blocks[0].attn.qkv.base.bias)
    state, described = trained_state(model, trained)
    assert "blocks.0.attn.qkv.bias" in state
    again = tiny.model(tiny.STUDENT)
    restore(again, state, described)
    assert torch.equal(again(X), model(X))


def test_a_plain_network_is_saved_with_the_statistics_of_its_batch_norms():
    model = timm.create_model("test_resnet", num_classes=3)
    model(torch.randn(4, 3, 32, 32))  # moves the statistics
    model.eval()
    state, described = trained_state(model, list(model.parameters()))
    assert described == {}
    assert state.keys() == model.state_dict().keys()
    again = timm.create_model("test_resnet", num_classes=3).eval()
    restore(again, state, described)
    x = torch.randn(2, 3, 32, 32)
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"blocks.0.q.a": torch.zeros(2, 24)}, r"'blocks.0.q' have shapes \(2, 24\) and \(16, 2\).*maps 16 to 16"),
        ({"blocks.1.v.b": torch.zeros(24, 2)}, r"'blocks.1.v' have shapes \(2, 16\) and \(24, 2\).*maps 16 to 16"),
        ({"blocks.0.q.b": torch.zeros(16, 3)}, r"'blocks.0.q' have shapes \(2, 16\) and \(16, 3\)"),
        ({"blocks.0.q.b": None}, r"'blocks.0.q' have shapes \(2, 16\) and None"),
        ({"blocks.0.q.a": None}, r"no place for the factors \['blocks.0.q.b'\]"),
        ({"blocks.2.q.a": torch.zeros(2, 16)}, r"no place for the factors \['blocks.2.q.a'\]"),
        (
            {"head.weight": torch.zeros(5, 16)},
            r"trained 'head.weight' has shape \(5, 16\), the network has it of",
        ),
        ({"neck.weight": torch.zeros(5)}, r"trained 'neck.weight' has shape \(5,\), the network has it nowhere"),
    ],
    ids=["a", "b", "rank", "no b", "no a", "block", "head", "unknown"],
)
def test_what_does_not_fit_is_refused_with_what_to_do(change, words):
    state, described = saved()
    state = {name: value for name, value in (state | change).items() if value is not None}
    with pytest.raises(ModelError, match=f"{words}.*run `dvc repro distill` again"):
        restore(tiny.model(tiny.STUDENT), state, described)


@pytest.mark.parametrize("which", [tiny.TEACHER, tiny.spec(width=16, depth=1, heads=2)], ids=["wider", "shallower"])
def test_another_network_is_refused(which):
    with pytest.raises(ModelError, match="run `dvc repro distill` again"):
        restore(tiny.model(which), *saved())
