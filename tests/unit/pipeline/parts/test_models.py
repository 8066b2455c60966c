import pytest
import torch
from safetensors.torch import save_file

from pipeline.base.errors import ModelError, WeightsError
from pipeline.parts.models import (
    ModelSpec,
    build_model,
    layer_map,
    load_merged,
    save_merged,
    slice_weights,
)
from tests import tiny


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("even", [0, 2, 4]), ("first", [0, 1, 2]), ("last", [3, 4, 5])],
)
def test_layer_map(kind, expected):
    assert layer_map(6, 3, kind) == expected


def test_layer_maps_coincide_for_equal_depth():
    assert layer_map(4, 4, "even") == layer_map(4, 4, "first") == layer_map(4, 4, "last") == [0, 1, 2, 3]


def test_layer_map_refuses_a_deeper_student():
    with pytest.raises(ModelError, match="student has 5 blocks, the teacher 4"):
        layer_map(4, 5, "even")


def test_layer_map_refuses_an_unknown_kind():
    with pytest.raises(ModelError, match="'odd'; choose even, first or last"):
        layer_map(4, 2, "odd")


def body(model):
    return {k: v for k, v in model.state_dict().items() if not k.startswith("head.")}


def test_weights_of_a_local_file_are_loaded_and_the_head_is_new(tmp_path):
    origin = tiny.model(tiny.STUDENT, num_classes=5)
    path = tmp_path / "weights.safetensors"
    save_file(origin.state_dict(), path)
    spec = ModelSpec(tiny.STUDENT.model, str(path), tiny.STUDENT.overrides)
    loaded = build_model(spec, num_classes=3, role="student")
    assert loaded.head.out_features == 3
    assert all(torch.equal(value, body(origin)[name]) for name, value in body(loaded).items())


def test_foundation_weights_lie_under_the_role(tmp_path):
    origin = tiny.model(tiny.TEACHER)
    save_file(body(origin), tmp_path / "teacher.safetensors")
    spec = ModelSpec(tiny.TEACHER.model, "foundation", tiny.TEACHER.overrides)
    loaded = build_model(spec, num_classes=2, role="teacher", foundation=tmp_path)
    assert torch.equal(loaded.norm.weight, origin.norm.weight)
    assert torch.equal(loaded.blocks[3].attn.qkv.weight, origin.blocks[3].attn.qkv.weight)


def test_missing_foundation_names_the_ways_out(tmp_path):
    spec = ModelSpec(tiny.STUDENT.model, "foundation", tiny.STUDENT.overrides)
    with pytest.raises(WeightsError, match="make foundation.*timm tag.*safetensors file"):
        build_model(spec, num_classes=2, role="student", foundation=tmp_path)


def test_weights_of_another_architecture_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    state = tiny.model(tiny.STUDENT).state_dict()
    del state["norm.weight"]
    save_file(state, path)
    spec = ModelSpec(tiny.STUDENT.model, str(path), tiny.STUDENT.overrides)
    with pytest.raises(WeightsError, match=r"`student.weights`.*absent \['norm.weight'\]"):
        build_model(spec, num_classes=2, role="student")


def test_weights_of_another_shape_are_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file(tiny.model(tiny.TEACHER).state_dict(), path)
    spec = ModelSpec(tiny.STUDENT.model, str(path), tiny.STUDENT.overrides)
    with pytest.raises(WeightsError, match="does not fit"):
        build_model(spec, num_classes=3, role="student")


def test_a_file_that_is_no_safetensors_is_refused(tmp_path):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"not weights")
    with pytest.raises(WeightsError, match="no readable safetensors"):
        build_model(ModelSpec(tiny.STUDENT.model, str(path), {}), num_classes=2, role="student")


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
    assert "'foundation'" in words
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


def test_a_network_that_is_no_vision_transformer_is_refused():
    with pytest.raises(ModelError, match="is a ResNet, not a timm VisionTransformer"):
        build_model(ModelSpec("resnet10t"), num_classes=2, role="student")


def test_a_network_with_a_distillation_head_is_refused():
    with pytest.raises(ModelError, match="second head"):
        build_model(ModelSpec("deit_tiny_distilled_patch16_224"), num_classes=2, role="student")


def test_an_unknown_layer_is_one_line():
    with pytest.raises(ModelError, match="cannot be built with `student.overrides`"):
        build_model(ModelSpec(tiny.ARCHITECTURE, overrides={"act_layer": "foo"}), num_classes=2, role="student")


def test_slicing_takes_whole_heads_of_every_projection():
    teacher, student = tiny.model(tiny.TEACHER), tiny.model(tiny.STUDENT, seed=1)
    slice_weights(teacher, student)
    ours, theirs = student.blocks[1].attn.qkv.weight, teacher.blocks[2].attn.qkv.weight
    for p in range(3):
        assert torch.equal(ours[p * 16 : (p + 1) * 16], theirs[p * 24 : p * 24 + 16, :16])
    assert torch.equal(student.blocks[1].mlp.fc1.weight, teacher.blocks[2].mlp.fc1.weight[:64, :16])
    assert torch.equal(student.pos_embed, teacher.pos_embed[..., :16])
    assert torch.equal(student.patch_embed.proj.weight, teacher.patch_embed.proj.weight[:16])


def test_a_merged_network_comes_back_with_its_labels(tmp_path):
    model = tiny.model(tiny.STUDENT)
    save_merged(tmp_path, "student", model, labels=["a", "b", "c"])
    again, labels = load_merged(tmp_path, "student", tiny.STUDENT)
    x = torch.randn(1, 3, tiny.SIZE, tiny.SIZE)
    assert labels == ["a", "b", "c"]
    assert torch.equal(again(x), model(x))


def test_a_network_not_merged_yet_is_named(tmp_path):
    with pytest.raises(WeightsError, match="dvc repro merge"):
        load_merged(tmp_path, "student", tiny.STUDENT)
