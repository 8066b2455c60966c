from dataclasses import replace

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

from pipeline.base.errors import ModelError, WeightsError
from pipeline.parts.adapters.bottleneck import add_bottlenecks
from pipeline.parts.models import ModelSpec, build_model, load_merged, save_merged
from tests import tiny

CNNS = ("test_resnet", "test_convnext", "test_efficientnet")


def body(model, head="head."):
    return {k: v for k, v in model.state_dict().items() if not k.startswith(head)}


def from_file(which, path):
    return replace(which, weights=str(path))


def test_weights_of_a_local_file_are_loaded_and_the_head_is_new(tmp_path):
    origin = tiny.model(tiny.STUDENT, num_classes=5)
    path = tmp_path / "weights.safetensors"
    save_file(origin.state_dict(), path)
    loaded = build_model(from_file(tiny.STUDENT, path), num_classes=3, role="student")
    assert not loaded.training
    assert loaded.head.out_features == 3
    assert all(torch.equal(value, body(origin)[name]) for name, value in body(loaded).items())


def test_a_head_of_as_many_classes_is_loaded_too(tmp_path):
    origin = tiny.model(tiny.STUDENT, num_classes=3)
    path = tmp_path / "weights.safetensors"
    save_file(origin.state_dict(), path)
    loaded = build_model(from_file(tiny.STUDENT, path), num_classes=3, role="student")
    assert torch.equal(loaded.head.weight, origin.head.weight)


def test_half_precision_weights_without_a_head_are_enough(tmp_path):
    origin = tiny.model(tiny.TEACHER)
    path = tmp_path / "teacher.safetensors"
    save_file({name: value.half() for name, value in body(origin).items()}, path)
    loaded = build_model(from_file(tiny.TEACHER, path), num_classes=2, role="teacher")
    assert loaded.norm.weight.dtype == torch.float32
    assert torch.equal(loaded.blocks[3].attn.qkv.weight, origin.blocks[3].attn.qkv.weight.half().float())


@pytest.mark.parametrize("name", CNNS)
@pytest.mark.parametrize("num_classes", [2, 5], ids=["new head", "same head"])
def test_cnns_are_built_and_loaded_whatever_their_head_is_called(tmp_path, name, num_classes):
    origin = timm.create_model(name, num_classes=5)
    spec = ModelSpec(name, str(tmp_path / "cnn.safetensors"), image_size=32)
    save_file(origin.state_dict(), spec.weights)
    loaded = build_model(spec, num_classes=num_classes, role="student")
    head = f"{spec.classifier}."
    assert loaded.get_classifier().out_features == num_classes
    assert body(loaded, head).keys() == body(origin, head).keys()
    assert all(torch.equal(value, body(origin, head)[key]) for key, value in body(loaded, head).items())
    same = torch.equal(loaded.get_classifier().weight[:2], origin.get_classifier().weight[:2])
    assert same == (num_classes == 5)


@pytest.mark.parametrize(
    ("name", "sized"), [(tiny.ARCHITECTURE, True), ("eva02_tiny_patch14_224", True), *((name, False) for name in CNNS)]
)
def test_only_architectures_built_for_one_size_get_it(name, sized):
    assert ModelSpec(name).takes_image_size == sized


def test_the_image_size_reaches_the_network():
    assert build_model(tiny.STUDENT, num_classes=2, role="student").patch_embed.img_size == (tiny.SIZE, tiny.SIZE)


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("artifacts/foundation/grey32/student.safetensors", "git checkout artifacts/foundation.*timm tag"),
        ("/nowhere/student.safetensors", "give one that exists, or choose a timm tag or another safetensors file"),
    ],
    ids=["foundation", "own"],
)
def test_a_missing_file_names_the_ways_out(tmp_path, monkeypatch, path, words):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WeightsError, match=f"`student.weights`: no file '{path}'; .*{words}"):
        build_model(from_file(tiny.STUDENT, path), num_classes=2, role="student")


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = tiny.model(tiny.STUDENT).state_dict()
    del state["norm.weight"]
    save_file(state, path)
    with pytest.raises(WeightsError, match=r"`student.weights`.*(absent|[Mm]issing).*norm.weight"):
        build_model(from_file(tiny.STUDENT, path), num_classes=2, role="student")


def test_weights_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny.model(tiny.TEACHER).state_dict(), path)
    with pytest.raises(WeightsError, match="does not fit"):
        build_model(from_file(tiny.STUDENT, path), num_classes=3, role="student")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="no readable safetensors"):
        build_model(ModelSpec(tiny.STUDENT.model, str(path)), num_classes=2, role="student")


def test_a_download_that_cannot_be_had_names_three_ways_out(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")

    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    monkeypatch.setattr("timm.models._builder.download_cached_file", offline)
    with pytest.raises(WeightsError) as caught:
        build_model(ModelSpec("vit_small_patch16_224", "augreg_in21k"), num_classes=2, role="teacher")
    words = str(caught.value)
    assert "vit_small_patch16_224.augreg_in21k" in words
    assert "connect this machine" in words
    assert "safetensors file" in words
    assert "configs/teacher/" in words
    assert "\n" not in words


def test_an_unknown_tag_lists_the_known_ones_without_a_download():
    with pytest.raises(WeightsError, match=r"'nonsense' is no pretrained tag of 'vit_small_patch16_224'.*augreg_in21k"):
        build_model(ModelSpec("vit_small_patch16_224", "nonsense"), num_classes=2, role="teacher")


def test_an_unknown_architecture_lists_near_ones():
    with pytest.raises(ModelError, match="'vit_tinny_patch16_224' is no model of timm.*near it"):
        build_model(ModelSpec("vit_tinny_patch16_224"), num_classes=2, role="teacher")


def test_an_override_that_timm_refuses_is_named():
    spec = ModelSpec(tiny.ARCHITECTURE, overrides={"embed_dim": 30, "num_heads": 4})
    with pytest.raises(ModelError, match=r"`teacher.overrides` .*'embed_dim': 30"):
        build_model(spec, num_classes=2, role="teacher")


def test_a_network_with_a_distillation_head_is_refused():
    with pytest.raises(ModelError, match="second head"):
        build_model(ModelSpec("deit_tiny_distilled_patch16_224"), num_classes=2, role="student")


def test_an_unknown_layer_is_one_line():
    with pytest.raises(ModelError, match="cannot be built with `student.overrides`"):
        build_model(ModelSpec(tiny.ARCHITECTURE, overrides={"act_layer": "foo"}), num_classes=2, role="student")


@pytest.mark.parametrize("hidden", [0, 4], ids=["plain", "bottlenecks"])
def test_a_merged_network_comes_back_with_its_labels(tmp_path, hidden):
    model = tiny.model(tiny.STUDENT)
    if hidden:
        add_bottlenecks(model, hidden=hidden)
    save_merged(tmp_path, "student", model, labels=["a", "b", "c"])
    again, labels = load_merged(tmp_path, "student", tiny.STUDENT)
    x = torch.randn(1, 3, tiny.SIZE, tiny.SIZE)
    assert labels == ["a", "b", "c"]
    assert not again.training
    assert torch.equal(again(x), model(x))


@pytest.mark.parametrize("hidden", [0, 4], ids=["plain", "bottlenecks"])
def test_a_merged_network_is_written_with_the_same_bytes_every_time(tmp_path, hidden):
    model = tiny.model(tiny.STUDENT)
    if hidden:
        add_bottlenecks(model, hidden=hidden)
    written = set()
    for _ in range(20):  # safetensors writes several entries of its metadata in random order
        save_merged(tmp_path, "student", model, labels=["a", "b", "c"])
        written.add((tmp_path / "student.safetensors").read_bytes())
    assert len(written) == 1


def test_merged_bottlenecks_of_another_network_are_refused(tmp_path):
    model = tiny.model(tiny.TEACHER)
    add_bottlenecks(model, hidden=4)
    save_merged(tmp_path, "student", model, labels=["a", "b", "c"])
    with pytest.raises(WeightsError, match="does not fit 'vit_tiny_patch16_224'.*dvc repro merge"):
        load_merged(tmp_path, "student", tiny.STUDENT)


def test_a_merged_network_holds_no_adapter_names(tmp_path):
    save_merged(tmp_path, "student", tiny.model(tiny.STUDENT), labels=["a", "b", "c"])
    assert load_file(tmp_path / "student.safetensors").keys() == tiny.model(tiny.STUDENT).state_dict().keys()


def test_a_network_not_merged_yet_is_named(tmp_path):
    with pytest.raises(WeightsError, match="dvc repro merge"):
        load_merged(tmp_path, "student", tiny.STUDENT)


def test_a_network_with_two_heads_is_refused():
    with pytest.raises(
        ModelError, match="'efficientformer_l1' is a EfficientFormer, no classifier of timm with one head"
    ):
        build_model(ModelSpec("efficientformer_l1"), num_classes=2, role="student")


def test_sizes_that_divide_by_zero_are_refused():
    spec = ModelSpec(tiny.ARCHITECTURE, image_size=tiny.SIZE, overrides={"patch_size": 0})
    with pytest.raises(ModelError, match="cannot be built with `student.overrides`"):
        build_model(spec, num_classes=2, role="student")
