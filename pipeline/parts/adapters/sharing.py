"""How a student's factors follow from its teacher's."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.factors import Factors, JoinedFactors, SharedFactors, coordinates
from pipeline.parts.adapters.inject import own_factors, shapes, upper
from pipeline.parts.adapters.sites import head_width, is_adaptable
from pipeline.parts.network import Network
from pipeline.parts.slices import layer_map


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """What the student's factors have in common with the teacher's.

    Attributes:
        share: "slice": the student's A and B are coordinates of the mapped teacher block's; "none": its own;
            "a_only", "b_only": one is shared, the other its own; "hybrid": a shared part of rank r - private_rank
            beside a private part of rank private_rank, in teacher and student.
        layer_map: which teacher block a student block shares with: "even", "first" or "last".
        subset: which coordinates: "first", or "random", a control.
        private_rank: rank of the private part; for "hybrid" only.
        student_scale: factor of a shared A in the student: 1.0, or None for sqrt(D / d).
        teacher_blocks: "all" blocks of the teacher have adapters, or only the "mapped" ones.
        seed: of the random subset.
    """

    share: str = "slice"
    layer_map: str = "even"
    subset: str = "first"
    private_rank: int = 0
    student_scale: float | None = 1.0
    teacher_blocks: str = "all"
    seed: int = 0


Blocks = list[dict[str, nn.Module]]


def joint_factors(
    teacher: Network, student: Network, *, targets: Sequence[str], rank: int, sharing: Sharing, depth: float = 1.0
) -> tuple[Blocks, Blocks]:
    """Makes the factors of both models: one mapping from projection to factors per block.

    Args:
        teacher: a vision transformer of width D.
        student: of width d <= D, with the same head width and no more blocks, unless nothing is shared.
        targets: projections, of "q", "k", "v", "proj", "fc1", "fc2".
        rank: r of each projection, shared and private part together.
        sharing: what is shared.
        depth: share of each model's blocks, from the top, that have adapters; a teacher block below has them too where
            a student block shares with it.

    Raises:
        ModelError: the two cannot share, or lack a projection.
    """
    check_sharing(teacher, student, share=sharing.share)
    owners = own_factors(teacher, targets, rank=rank - sharing.private_rank)
    theirs: Blocks = [dict(block) for block in owners]
    high, low = upper(len(teacher.blocks), depth), upper(len(student.blocks), depth)
    if sharing.share == "none":
        own = own_factors(student, targets, rank=rank)
        return _only(theirs, high), _only([dict(block) for block in own], low)
    mapping = layer_map(len(teacher.blocks), len(student.blocks), sharing.layer_map)
    gain = sharing.student_scale or math.sqrt(teacher.embed_dim / student.embed_dim)
    ours: Blocks = [
        {name: _borrow(owners[source], name, size, gain=gain, sharing=sharing) for name, size in block.items()}
        for block, source in zip(shapes(student, targets), mapping, strict=True)
    ]
    if sharing.share == "hybrid":
        theirs = _joined(theirs, own_factors(teacher, targets, rank=sharing.private_rank))
        ours = _joined(ours, own_factors(student, targets, rank=sharing.private_rank))
    lent = {mapping[index] for index in low}
    return _only(theirs, lent if sharing.teacher_blocks == "mapped" else lent | set(high)), _only(ours, low)


def _only(blocks: Blocks, kept: Container[int]) -> Blocks:
    return [block if index in kept else {} for index, block in enumerate(blocks)]


def _borrow(
    owners: Mapping[str, Factors], name: str, size: tuple[int, int], *, gain: float, sharing: Sharing
) -> SharedFactors:
    if name not in owners:
        msg = f"the teacher's blocks have no {name!r} to share, the student's do; choose other `distill.targets`"
        raise ModelError(msg)
    owner = owners[name]
    rank, wide_inputs = owner.a.shape
    wide_outputs = owner.b.shape[0]
    if size[0] > wide_inputs or size[1] > wide_outputs:
        msg = (
            f"the student's {name!r} is {size[0]} to {size[1]} wide, the teacher's only {wide_inputs} to "
            f"{wide_outputs}; choose other `distill.targets` or a narrower student"
        )
        raise ModelError(msg)
    return SharedFactors(
        owner,
        inputs=coordinates(wide_inputs, size[0], kind=sharing.subset, seed=sharing.seed),
        outputs=coordinates(wide_outputs, size[1], kind=sharing.subset, seed=sharing.seed),
        own_a=(rank, size[0]) if sharing.share == "b_only" else None,
        own_b=(size[1], rank) if sharing.share == "a_only" else None,
        gain=gain,
    )


def _joined(shared: Blocks, private: Sequence[Mapping[str, Factors]]) -> Blocks:
    return [
        {name: JoinedFactors(source, own[name]) for name, source in block.items()}
        for block, own in zip(shared, private, strict=True)
    ]


ALTERNATIVES = (
    "methods that can train it: finetune_kd, probe_kd, lora_kd with distill.student_training=full, or student_only "
    "with distill.training=full or probe"
)


def check_adaptable(model: Network, *, role: str) -> None:
    """Refuses a model without blocks of attention whose projections are linear layers.

    Raises:
        ModelError: naming the methods that can train it.
    """
    if not is_adaptable(model):
        kind = f"{type(model).__name__} has"
        if len(getattr(model, "blocks", ())) > 0:
            kind = f"{type(model).__name__} has blocks ({type(model.blocks[0]).__name__}) with"
        msg = f"LoRA needs blocks with a linear qkv layer, and the {role}, a {kind} none; {ALTERNATIVES}"
        raise ModelError(msg)


def check_sharing(teacher: Network, student: Network, *, share: str = "slice") -> None:
    """Refuses a pair whose adapters cannot be shared by truncation; with `share` "none" only models without adapters.

    Raises:
        ModelError: naming what differs, what to choose, and the methods that can train such a student.
    """
    for role, model in (("teacher", teacher), ("student", student)):
        check_adaptable(model, role=role)
    if share == "none":
        return
    others = f"or take one of the {ALTERNATIVES}, or joint_lora"
    if student.embed_dim > teacher.embed_dim:
        msg = (
            f"the student is {student.embed_dim} wide, the teacher {teacher.embed_dim}, and sharing truncates the "
            f"teacher's adapters: set `student.overrides.embed_dim` to at most {teacher.embed_dim}, {others}"
        )
        raise ModelError(msg)
    ours, theirs = head_width(student), head_width(teacher)
    if ours != theirs:
        msg = (
            f"the student's heads are {ours} wide, the teacher's {theirs}, and sharing cuts between heads: "
            f"set `student.overrides.num_heads` to {student.embed_dim // theirs or 1}, {others}"
        )
        raise ModelError(msg)
    if len(student.blocks) > len(teacher.blocks):
        msg = (
            f"the student has {len(student.blocks)} blocks, the teacher {len(teacher.blocks)}, and each shares with "
            f"one of the teacher's: set `student.overrides.depth` to at most {len(teacher.blocks)}, {others}"
        )
        raise ModelError(msg)
