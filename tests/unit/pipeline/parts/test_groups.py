import pytest

from pipeline.parts.groups import group_of, module_of


@pytest.mark.parametrize(
    ("module", "group"),
    [
        ("blocks.3.attn.qkv", "blocks.3.qkv"),
        ("blocks.11.attn.k_proj", "blocks.11.qkv"),
        ("blocks.3.attn", "blocks.3.qkv"),
        ("blocks.3.attn.proj", "blocks.3.proj"),
        ("blocks.3.mlp.fc1", "blocks.3.fc1"),
        ("blocks.3.mlp.fc1_g", "blocks.3.fc1"),
        ("blocks.3.mlp.fc2", "blocks.3.fc2"),
        ("patch_embed.proj", "patch_embed"),
        ("head", "head"),
        ("blocks.1.2.conv_pw", "blocks.1.2.conv_pw"),  # of a CNN
        ("decoder.mix.0", "decoder.mix.0"),
    ],
)
def test_layers_go_to_their_group(module, group):
    assert group_of(module) == group


def test_a_node_belongs_to_the_layer_before_its_slash():
    assert module_of("blocks.3.attn.qkv/MatMul_2") == "blocks.3.attn.qkv"
    assert module_of("/Concat") == ""
