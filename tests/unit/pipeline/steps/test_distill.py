import csv
import json

import pytest
import timm
import torch
from safetensors.torch import load_file

from pipeline.base.errors import ModelError
from pipeline.parts.data import Augment
from pipeline.parts.training import Schedule
from pipeline.steps.distill.slad import SladOptions, SladPair
from pipeline.steps.distill.step import distill
from tests import tiny

OPTIONS = SladOptions(
    rank=2,
    alpha=4.0,
    layer_map="even",
    temperature=2.0,
    detach=True,
    weight_student=1.0,
    weight_teacher=1.0,
    weight_kl=1.0,
)
X = torch.randn(6, 3, tiny.SIZE, tiny.SIZE, generator=torch.Generator().manual_seed(0))
Y = torch.tensor([0, 1, 2, 0, 1, 2])


def pair(**changes) -> SladPair:
    return SladPair(tiny.model(tiny.TEACHER), tiny.model(tiny.STUDENT), SladOptions(**vars(OPTIONS) | changes))


def test_both_networks_start_at_their_pretrained_function():
    fresh = pair()
    assert torch.equal(fresh.teacher(X), tiny.model(tiny.TEACHER)(X))
    assert torch.equal(fresh.student(X), tiny.model(tiny.STUDENT)(X))


def test_the_loss_is_the_weighted_sum_of_its_terms():
    terms = pair(weight_student=2.0, weight_teacher=3.0, weight_kl=0.5).losses(X, Y)
    expected = 2 * terms["ce_student"] + 3 * terms["ce_teacher"] + 0.5 * terms["kl"]
    torch.testing.assert_close(terms["loss"], expected)


def test_student_blocks_use_the_adapters_of_the_mapped_teacher_blocks():
    fresh = pair()
    for student_block, teacher_index in zip(fresh.student.blocks, (0, 2), strict=True):
        a, b = student_block.attn.qkv.factors()
        owner = fresh.teacher.blocks[teacher_index].attn.qkv.factors
        assert a.data_ptr() == owner.a.data_ptr()
        assert b.data_ptr() == owner.b.data_ptr()


def test_each_trained_parameter_occurs_once():
    trained = [p for p in pair().parameters() if p.requires_grad]
    assert len({id(p) for p in trained}) == len(trained)
    adapters = 4 * 3 * 2 * 2 * 24  # blocks, projections, A and B, rank, width: the student adds none
    heads = 3 * (24 + 1) + 3 * (16 + 1)
    assert sum(p.numel() for p in trained) == adapters + heads


def test_the_student_trains_only_mapped_adapters_and_only_its_slice():
    fresh = pair(weight_teacher=0.0, weight_kl=0.0)
    for block in fresh.teacher.blocks:
        torch.nn.init.normal_(block.attn.qkv.factors.b)
    fresh.losses(X, Y)["loss"].backward()
    gradients = [block.attn.qkv.factors.b.grad for block in fresh.teacher.blocks]
    assert all(gradients[i][:, :16].abs().sum() > 0 for i in (0, 2))
    assert all(gradients[i][:, 16:].abs().sum() == 0 for i in (0, 2))
    assert all(gradients[i].abs().sum() == 0 for i in (1, 3))


def test_the_teacher_is_untouched_by_the_student_while_weights_are_zero():
    fresh = pair(weight_student=0.0, weight_kl=0.0)
    fresh.losses(X, Y)["loss"].backward()
    assert fresh.student.head.weight.grad.abs().sum() == 0
    assert fresh.teacher.head.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("which", "words"),
    [
        (tiny.spec(width=32, depth=2, heads=4), "wider than the teacher's 24"),
        (tiny.spec(width=16, depth=2, heads=4), "heads are 4 wide, the teacher's 8.*num_heads` to 2"),
        (tiny.spec(width=16, depth=5, heads=2), "5 blocks, the teacher 4"),
    ],
    ids=["wider", "other head width", "deeper"],
)
def test_a_pair_that_cannot_share_is_refused(which, words):
    with pytest.raises(ModelError, match=words):
        SladPair(tiny.model(tiny.TEACHER), tiny.model(which), OPTIONS)


def test_blocks_without_a_fused_qkv_are_refused():
    odd = timm.create_model("vit_small_patch16_18x2_224", img_size=16, patch_size=8, embed_dim=16, depth=2, num_heads=2)
    with pytest.raises(ModelError, match="student's blocks are ParallelThingsBlocks without one fused qkv"):
        SladPair(tiny.model(tiny.TEACHER), odd, OPTIONS)


def run(output, data, *, epochs=2, seed=0):
    output.mkdir()
    return distill(
        output,
        data=data,
        foundation=output,
        teacher=tiny.TEACHER,
        student=tiny.STUDENT,
        options=OPTIONS,
        schedule=Schedule(epochs=epochs, learning_rate=0.01, weight_decay=0.01, warmup_epochs=0, clip_norm=1.0),
        batch_size=6,
        workers=0,
        precision="fp32",
        augment=Augment(degrees=5, translate=0.05, scale=(0.9, 1.1), flip=False),
        black=(-1.0, -1.0, -1.0),
        load=tiny.LOAD,
        seed=seed,
    )


@pytest.fixture
def data(tmp_path):
    tiny.prepared(tmp_path / "data", tiny.write_images(tmp_path / "images"))
    return tmp_path / "data"


def test_training_learns_and_is_recorded(tmp_path, data):
    accuracies = run(tmp_path / "out", data, epochs=12)
    assert accuracies["student"] > 60  # brightness tells the three classes apart; chance is 33
    with (tmp_path / "out/curves.csv").open() as file:
        curve = list(csv.DictReader(file))
    assert [row["epoch"] for row in curve] == [str(i) for i in range(1, 13)]
    assert float(curve[-1]["loss"]) < float(curve[0]["loss"])
    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["student"]["validation_accuracy_percent"] == pytest.approx(accuracies["student"], abs=1e-3)
    assert metrics["trained_parameters"] == 1152 + 126


def test_saved_student_adapters_are_slices_of_the_teachers(tmp_path, data):
    run(tmp_path / "out", data)
    saved = load_file(tmp_path / "out/adapters.safetensors")
    for ours, theirs in ((0, 0), (1, 2)):
        teacher = saved[f"teacher.blocks.{theirs}.attn.qkv.b"]
        assert torch.equal(saved[f"student.blocks.{ours}.attn.qkv.b"], teacher[:, :16])
        assert teacher.abs().sum() > 0


def test_two_runs_give_the_same_bytes_and_another_seed_does_not(tmp_path, data):
    for name, seed in (("one", 0), ("two", 0), ("three", 1)):
        run(tmp_path / name, data, seed=seed)
    files = ("adapters.safetensors", "heads.safetensors", "metrics.json", "curves.csv")
    one, two, three = ([(tmp_path / name / f).read_bytes() for f in files] for name in ("one", "two", "three"))
    assert one == two
    assert one[0] != three[0]


def test_the_test_split_is_not_read(tmp_path, data):
    index = json.loads((data / "index.json").read_text())
    for item in index["splits"]["test"]:
        (tmp_path / "images" / item["path"]).unlink()
    assert run(tmp_path / "out", data)["student"] >= 0
