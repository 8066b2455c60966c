import pytest
import torch

from pipeline.base.errors import ModelError
from pipeline.parts.slices import layer_map, slice_weights
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


def test_slicing_takes_whole_heads_of_every_projection():
    teacher, student = tiny.model(tiny.TEACHER), tiny.model(tiny.STUDENT, seed=1)
    slice_weights(teacher, student)
    ours, theirs = student.blocks[1].attn.qkv.weight, teacher.blocks[2].attn.qkv.weight
    for p in range(3):
        assert torch.equal(ours[p * 16 : (p + 1) * 16], theirs[p * 24 : p * 24 + 16, :16])
    assert torch.equal(student.blocks[1].mlp.fc1.weight, teacher.blocks[2].mlp.fc1.weight[:64, :16])
    assert torch.equal(student.pos_embed, teacher.pos_embed[..., :16])
    assert torch.equal(student.patch_embed.proj.weight, teacher.patch_embed.proj.weight[:16])


def test_slicing_leaves_the_head_alone():
    student = tiny.model(tiny.STUDENT, seed=1)
    before = student.head.weight.clone()
    slice_weights(tiny.model(tiny.TEACHER), student)
    assert torch.equal(student.head.weight, before)
