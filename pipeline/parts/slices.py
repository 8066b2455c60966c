"""Which blocks and coordinates of a larger transformer a smaller one takes."""

import torch
from timm.models import VisionTransformer

from pipeline.base.errors import ModelError


def layer_map(teacher_depth: int, student_depth: int, kind: str) -> list[int]:
    """Maps each student block to the teacher block whose adapter it shares.

    Args:
        teacher_depth: Lt, the number of teacher blocks.
        student_depth: Ls <= Lt, the number of student blocks.
        kind: "even": floor(i * Lt / Ls); "first": i; "last": Lt - Ls + i.

    Returns:
        The teacher's block index for every student block, ascending.

    Raises:
        ModelError: the student is deeper than the teacher, or `kind` is unknown.
    """
    if student_depth > teacher_depth:
        msg = f"the student has {student_depth} blocks, the teacher {teacher_depth}; choose a shallower student"
        raise ModelError(msg)
    match kind:
        case "even":
            return [i * teacher_depth // student_depth for i in range(student_depth)]
        case "first":
            return list(range(student_depth))
        case "last":
            return [teacher_depth - student_depth + i for i in range(student_depth)]
        case _:
            msg = f"`layer_map` is {kind!r}; choose even, first or last"
            raise ModelError(msg)


@torch.no_grad()
def slice_weights(teacher: VisionTransformer, student: VisionTransformer) -> None:
    """Starts `student` as a slice of `teacher`, in place: every k-th block, the first d coordinates everywhere.

    The fused qkv weight of shape (3D, D) is cut per projection: rows p*D .. p*D + d - 1 for p in q, k, v.
    With equal head widths those are whole heads. Heads (classifiers) are left alone.
    """
    source = teacher.state_dict()
    mapping = layer_map(len(teacher.blocks), len(student.blocks), "even")
    for name, target in student.state_dict().items():
        if name.startswith("head."):
            continue
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = str(mapping[int(parts[1])])
        value = source[".".join(parts)]
        if ".qkv." in name:
            value = value.unflatten(0, (3, -1))[:, : target.shape[0] // 3]
            value = value[(..., *(slice(n) for n in target.shape[1:]))].flatten(0, 1)
        target.copy_(value[tuple(slice(n) for n in target.shape)])
