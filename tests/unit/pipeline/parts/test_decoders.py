import pytest
import timm
import torch
from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.decoders import KINDS, PatchDecoder, add_decoder
from tests import tiny

FAMILIES = {
    "vit_tiny_patch16_224": (32, 48),
    "deit3_small_patch16_224": (32, 48),
    "vit_small_patch14_dinov2": (28, 42),
    "vit_small_patch14_reg4_dinov2": (28, 42),
    "vit_small_patch16_dinov3": (32, 48),
    "eva02_tiny_patch14_224": (28, 42),
    "beit_base_patch16_224": (32, 48),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", FAMILIES)
def test_every_pixel_gets_its_logits(name, kind):
    size = FAMILIES[name]
    model = timm.create_model(name, img_size=size, depth=1)
    add_decoder(model, kind, classes=3, role="student")
    assert isinstance(model.get_classifier(), PatchDecoder)
    assert model(torch.zeros(2, 3, *size)).shape == (2, 3, *size)


def test_the_linear_decoder_is_a_layer_per_patch_resized():
    decoder = PatchDecoder("linear", width=8, classes=3, prefix=1, grid=(2, 3), size=(8, 12))
    tokens = torch.randn(1, 7, 8)
    small = decoder.project(tokens[:, 1:]).reshape(1, 2, 3, 3).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(small, (8, 12), mode="bilinear", align_corners=False)
    torch.testing.assert_close(decoder(tokens), expected)


@pytest.mark.parametrize("kind", KINDS)
def test_a_patch_acts_where_it_lies(kind):
    torch.manual_seed(0)
    decoder = PatchDecoder(kind, width=8, classes=2, prefix=2, grid=(6, 6), size=(24, 24))
    tokens = torch.randn(1, 38, 8)
    changed = tokens.clone()
    changed[:, 2 + 6 * 5 + 5] += 1.0  # the last patch, lower right
    moved = (decoder(changed) - decoder(tokens)).abs().sum(1)[0]
    assert moved[-1, -1] > 0
    assert moved[:8, :8].max() == 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_patches_and_not_the_prefix(kind):
    decoder = PatchDecoder(kind, width=8, classes=2, prefix=1, grid=(2, 2), size=(4, 4))
    tokens = torch.randn(1, 5, 8, requires_grad=True)
    decoder(tokens).square().sum().backward()
    assert tokens.grad[:, 0].abs().max() == 0
    assert (tokens.grad[:, 1:].abs().sum(-1) > 0).all()


def test_a_model_without_patches_is_refused_by_name():
    with pytest.raises(ModelError, match="`student.model` is a ResNet without a grid of patches; .* needs a plain ViT"):
        add_decoder(timm.create_model("test_resnet"), "linear", classes=2, role="student")


@pytest.mark.parametrize(
    ("name", "size", "words"),
    [
        ("vit_small_patch14_dinov2", (256, 256), r"sees 252 x 252 of 256 x 256 .* 14 x 14, .*crop` to \[252, 252\]"),
        ("eva02_tiny_patch14_224", (98, 200), r"sees 98 x 196 of 98 x 200 .*crop` to \[98, 196\]"),
        ("vit_tiny_patch16_224", (64, 100), r"sees 64 x 96 of 64 x 100 .* 16 x 16"),
    ],
)
def test_a_size_that_patches_do_not_cover_is_refused(name, size, words):
    with pytest.raises(ModelError, match=words):
        add_decoder(timm.create_model(name, img_size=size, depth=1), "linear", classes=2, role="student")


def test_what_trains_a_head_trains_the_decoder():
    from pipeline.steps.distill.method import trained_by

    model = tiny.model(tiny.STUDENT)
    add_decoder(model, "conv", classes=2, role="student")
    trained = trained_by("probe", model, lora=None, role="student")
    assert set(trained) == {f"head.{name}" for name, _ in model.head.named_parameters()}
