"""SLAD: teacher and student train jointly through shared LoRA adapters.

Bensaid, Bendou, Gripon, Leduc-Primeau, "SLAD: Shared LoRA Adapters for Task Specific Distillation", arXiv 2605.29726
(2026). One stage, one optimiser::

    L = w_s CE(z_s, y) + w_t CE(z_t, y) + w_kl T^2 KL(softmax(z_t / T) || softmax(z_s / T))

Known from public text: LoRA on q, k, v; a layer map (even, first, last); truncation per dimension; all weights 1.
Chosen here, not published: separate factors per projection, the first d coordinates, T, rank, detached teacher target.
"""

from dataclasses import dataclass

import torch.nn.functional as F
from timm.models import VisionTransformer
from torch import Tensor, nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters import Factors, SharedFactors, inject
from pipeline.parts.losses import distillation_kl
from pipeline.parts.models import layer_map
from pipeline.parts.training import Losses


@dataclass(frozen=True, kw_only=True)
class SladOptions:
    """Settings of the method.

    Attributes:
        rank: r of every factor pair.
        alpha: the update is scaled by alpha / r.
        layer_map: "even", "first" or "last".
        temperature: T of the KL term.
        detach: whether the KL term leaves the teacher alone.
        weight_student: w_s.
        weight_teacher: w_t.
        weight_kl: w_kl.
    """

    rank: int
    alpha: float
    layer_map: str
    temperature: float
    detach: bool
    weight_student: float
    weight_teacher: float
    weight_kl: float

    @property
    def scale(self) -> float:
        """Factor of the low-rank update, alpha / r."""
        return self.alpha / self.rank


class SladPair(nn.Module):
    """Teacher and student with shared adapters; holds each trained parameter once.

    Args:
        teacher: a vision transformer of width D; changed in place.
        student: one of the same family with width d <= D, the same head width, and no more blocks; changed in place.
        options: settings of the method.

    Raises:
        ModelError: the two cannot share adapters.
    """

    def __init__(self, teacher: VisionTransformer, student: VisionTransformer, options: SladOptions) -> None:
        super().__init__()
        check_pair(teacher, student)
        factors = [Factors(teacher.embed_dim, options.rank) for _ in teacher.blocks]
        mapping = layer_map(len(teacher.blocks), len(student.blocks), options.layer_map)
        inject(teacher, factors, scale=options.scale)
        inject(student, [SharedFactors(factors[j], student.embed_dim) for j in mapping], scale=options.scale)
        self.teacher = teacher
        self.student = student
        self.options = options

    def losses(self, images: Tensor, labels: Tensor) -> Losses:
        """Returns the joint loss under "loss", and its terms; images are (batch, 3, height, width)."""
        teacher, student = self.teacher(images).float(), self.student(images).float()
        options = self.options
        terms = {
            "ce_teacher": F.cross_entropy(teacher, labels),
            "ce_student": F.cross_entropy(student, labels),
            "kl": distillation_kl(student, teacher, temperature=options.temperature, detach=options.detach),
        }
        loss = (
            options.weight_student * terms["ce_student"]
            + options.weight_teacher * terms["ce_teacher"]
            + options.weight_kl * terms["kl"]
        )
        return {"loss": loss, **terms}


def check_pair(teacher: VisionTransformer, student: VisionTransformer) -> None:
    """Refuses a pair whose adapters cannot be shared by truncation.

    Raises:
        ModelError: naming what differs and what to choose.
    """
    for role, model in (("teacher", teacher), ("student", student)):
        plain = all(isinstance(getattr(getattr(b, "attn", None), "qkv", None), nn.Linear) for b in model.blocks)
        if not plain:
            kind = type(model.blocks[0]).__name__
            msg = f"the {role}'s blocks are {kind}s without one fused qkv layer; choose a plain vit_*"
            raise ModelError(msg)
    if student.embed_dim > teacher.embed_dim:
        msg = (
            f"`student.overrides.embed_dim` is {student.embed_dim}, wider than the teacher's {teacher.embed_dim}; "
            f"slad shares the first coordinates of the teacher's adapters: choose a narrower student"
        )
        raise ModelError(msg)
    ours, theirs = (m.embed_dim // m.blocks[0].attn.num_heads for m in (student, teacher))
    if ours != theirs:
        msg = (
            f"the student's heads are {ours} wide, the teacher's {theirs}; slad cuts between heads: "
            f"set `student.overrides.num_heads` to {student.embed_dim // theirs or 1} or choose another family"
        )
        raise ModelError(msg)
    if len(student.blocks) > len(teacher.blocks):
        msg = (
            f"the student has {len(student.blocks)} blocks, the teacher {len(teacher.blocks)}; "
            f"choose a student with at most {len(teacher.blocks)}: `student.overrides.depth`"
        )
        raise ModelError(msg)
