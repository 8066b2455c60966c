import pytest
import timm
import torch

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.inject import adapters, inject, merge, prove_gradients, upper
from pipeline.parts.adapters.saved import restore, trained_state
from pipeline.parts.adapters.sharing import Sharing, check_sharing, joint_factors
from pipeline.parts.adapters.sites import TARGETS
from tests import tiny
from tests.unit.pipeline.parts.adapters.families import FAMILIES, fill, images, small

X = torch.randn(4, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))
RANK = 4
# Trained numbers per block and projection of widths 24 (teacher, 4 blocks) and 16 (student, 2 blocks).
WIDE, NARROW = 4 * 3 * 24, 2 * 3 * 16
CASES = {
    "slice": (Sharing(), RANK * 2 * WIDE),
    "slice, last": (Sharing(layer_map="last"), RANK * 2 * WIDE),
    "slice, first": (Sharing(layer_map="first"), RANK * 2 * WIDE),
    "slice, random": (Sharing(subset="random"), RANK * 2 * WIDE),
    "slice, scaled": (Sharing(student_scale=None), RANK * 2 * WIDE),
    "slice, mapped blocks only": (Sharing(layer_map="last", teacher_blocks="mapped"), RANK * WIDE),
    "none": (Sharing(share="none"), RANK * 2 * (WIDE + NARROW)),
    "a_only": (Sharing(share="a_only"), RANK * (2 * WIDE + NARROW)),
    "b_only": (Sharing(share="b_only"), RANK * (2 * WIDE + NARROW)),
    "hybrid": (Sharing(share="hybrid", private_rank=1), RANK * 2 * WIDE + 2 * NARROW),
}


def pair(sharing, targets=("q", "k", "v"), *, filled=True):
    teacher, student = tiny.model(tiny.TEACHER), tiny.model(tiny.STUDENT)
    theirs, ours = joint_factors(teacher, student, targets=targets, rank=RANK, sharing=sharing)
    inject(teacher, theirs, scale=0.5)
    inject(student, ours, scale=0.5)
    both = torch.nn.ModuleDict({"teacher": teacher, "student": student})
    if filled:
        fill(both)
    return both


def factors_of(both):
    return {name: p for name, p in both.named_parameters() if ".sources." in name}


@pytest.mark.parametrize("case", CASES)
def test_each_way_of_sharing_trains_as_many_numbers_as_its_formula_says(case):
    sharing, expected = CASES[case]
    trained = factors_of(pair(sharing))
    assert len({id(p) for p in trained.values()}) == len(trained)
    assert sum(p.numel() for p in trained.values()) == expected


@pytest.mark.parametrize("case", CASES)
def test_each_way_of_sharing_starts_at_the_pretrained_function_and_reaches_every_factor(case):
    both = pair(CASES[case][0], TARGETS, filled=False)
    for role, spec in (("teacher", tiny.TEACHER), ("student", tiny.STUDENT)):
        assert torch.equal(both[role](X), tiny.model(spec)(X))
        prove_gradients(both[role], X)
    fill(both)
    (both["teacher"](X).square().sum() + both["student"](X).square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in factors_of(both).values())


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_saving_loading_and_merging_give_the_same_logits(case, role):
    both = pair(CASES[case][0], TARGETS)
    expected = both[role](X)
    state, described = trained_state(both[role], list(factors_of(both).values()))
    assert all(value.is_contiguous() for value in state.values())
    again = tiny.model(tiny.TEACHER if role == "teacher" else tiny.STUDENT)
    restore(again, state, described)
    torch.testing.assert_close(again(X), expected, atol=1e-5, rtol=0)
    merge(again)
    torch.testing.assert_close(again(X), expected, atol=1e-5, rtol=0)
    assert adapters(again) == {}


@pytest.mark.parametrize(("kind", "mapped"), [("even", (0, 2)), ("first", (0, 1)), ("last", (2, 3))])
def test_the_student_alone_trains_only_the_mapped_blocks_and_only_its_slice(kind, mapped):
    both = pair(Sharing(layer_map=kind))
    both["student"](X).square().sum().backward()
    for index, block in enumerate(both["teacher"].blocks):
        for source in block.attn.qkv.sources.values():
            if index not in mapped:
                assert source.b.grad is None
                continue
            assert source.b.grad[:16].any()
            assert source.a.grad[:, :16].any()
            assert not source.b.grad[16:].any()
            assert not source.a.grad[:, 16:].any()


@pytest.mark.parametrize(
    ("sharing", "teachers", "students"),
    [
        (Sharing(), [2, 3], [1]),
        (Sharing(layer_map="first"), [1, 2, 3], [1]),  # the lender of block 1 is below the teacher's upper half
        (Sharing(teacher_blocks="mapped"), [2], [1]),
        (Sharing(share="none"), [2, 3], [1]),
        (Sharing(share="hybrid", private_rank=1), [2, 3], [1]),
    ],
    ids=["even", "first", "mapped", "none", "hybrid"],
)
def test_only_the_upper_blocks_can_have_adapters(sharing, teachers, students):
    theirs, ours = joint_factors(
        tiny.model(tiny.TEACHER), tiny.model(tiny.STUDENT), targets=("q",), rank=RANK, sharing=sharing, depth=0.5
    )
    assert [index for index, block in enumerate(theirs) if block] == teachers
    assert [index for index, block in enumerate(ours) if block] == students


@pytest.mark.parametrize(("count", "share", "expected"), [(6, 1.0, 0), (6, 0.5, 3), (3, 0.5, 1), (12, 0.01, 11)])
def test_the_upper_share_of_the_blocks_is_at_least_one(count, share, expected):
    assert upper(count, share) == range(expected, count)


def test_with_nothing_shared_no_model_trains_the_other():
    both = pair(Sharing(share="none"))
    both["student"](X).square().sum().backward()
    assert all(p.grad is None for name, p in factors_of(both).items() if name.startswith("teacher"))
    assert all(p.grad is not None for name, p in factors_of(both).items() if name.startswith("student"))


def test_the_private_part_of_a_hybrid_belongs_to_one_model():
    both = pair(Sharing(share="hybrid", private_rank=1))
    both["student"](X).square().sum().backward()
    teachers = {n: p for n, p in factors_of(both).items() if n.startswith("teacher.blocks.0")}
    assert all(p.grad is None for name, p in teachers.items() if ".private." in name)
    assert all(p.grad.any() for name, p in teachers.items() if ".shared." in name)


def test_blocks_below_the_first_mapped_one_need_no_backward_pass():
    both = pair(Sharing(layer_map="last", teacher_blocks="mapped"))
    outputs = []
    for block in both["teacher"].blocks:
        block.register_forward_hook(lambda _m, _i, output: outputs.append(output))
    both["teacher"].requires_grad_(False)
    for parameter in factors_of(both).values():
        parameter.requires_grad_(True)
    both["teacher"](X)
    assert [output.requires_grad for output in outputs] == [False, False, True, True]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_shares_with_a_narrower_member(family):
    teacher, student = small(family), small(family, embed_dim=16, num_heads=1, depth=1)
    theirs, ours = joint_factors(teacher, student, targets=TARGETS, rank=2, sharing=Sharing())
    inject(teacher, theirs, scale=1.0)
    inject(student, ours, scale=1.0)
    fill(teacher)
    for model in (teacher, student):
        prove_gradients(model, images(model))
    state, described = trained_state(student, [])
    again = small(family, embed_dim=16, num_heads=1, depth=1)
    restore(again, state, described)
    torch.testing.assert_close(again(images(again)), student(images(student)), atol=1e-4, rtol=1e-5)


WAYS = "finetune_kd, probe_kd, lora_kd with distill.student_training=full, or student_only"


@pytest.mark.parametrize(
    ("student", "words"),
    [
        (lambda: tiny.model(tiny.spec(width=32, depth=2, heads=4)), "student is 32 wide, the teacher 24.*" + WAYS),
        (lambda: tiny.model(tiny.spec(width=16, depth=2, heads=4)), "heads are 4 wide, the teacher's 8.*to 2.*" + WAYS),
        (lambda: tiny.model(tiny.spec(width=16, depth=5, heads=2)), "5 blocks, the teacher 4.*to at most 4.*" + WAYS),
        (lambda: timm.create_model("test_resnet"), "the student, a ResNet has none.*" + WAYS),
        (
            lambda: timm.create_model("vit_small_patch16_18x2_224", img_size=32, embed_dim=16, depth=2, num_heads=2),
            r"VisionTransformer has blocks \(ParallelThingsBlock\) with none.*" + WAYS,
        ),
    ],
    ids=["wider", "other head width", "deeper", "cnn", "parallel blocks"],
)
def test_a_student_that_cannot_share_is_told_which_methods_can_train_it(student, words):
    with pytest.raises(ModelError, match=words):
        check_sharing(tiny.model(tiny.TEACHER), student())


def test_without_sharing_any_transformer_will_do():
    check_sharing(tiny.model(tiny.TEACHER), tiny.model(tiny.spec(width=32, depth=5, heads=2)), share="none")
    with pytest.raises(ModelError, match="ResNet has none"):
        check_sharing(tiny.model(tiny.TEACHER), timm.create_model("test_resnet"), share="none")


def test_different_mlps_cannot_share():
    gated = small("dinov2 with a gated mlp", embed_dim=16, num_heads=1)
    with pytest.raises(ModelError, match="teacher's blocks have no 'fc1_0' to share"):
        joint_factors(small("dinov2"), gated, targets=("fc1",), rank=2, sharing=Sharing())
    wide = small("plain and augreg", embed_dim=16, num_heads=1, mlp_ratio=16.0)
    with pytest.raises(ModelError, match="student's 'fc1' is 16 to 256 wide, the teacher's only 32 to 128"):
        joint_factors(small("plain and augreg"), wide, targets=("fc1",), rank=2, sharing=Sharing())
