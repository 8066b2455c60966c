"""SLAD, and its control without sharing: teacher and student train jointly through LoRA, in one stage.

Bensaid, Bendou, Gripon, Leduc-Primeau, "SLAD: Shared LoRA Adapters for Task Specific Distillation", arXiv 2605.29726
(2026), equation 4::

    L = w_s CE(z_s, y) + w_t CE(z_t, y) + w_kl T^2 KL(softmax(z_t / T) || softmax(z_s / T))

Known from public text: LoRA on q, k, v; a layer map (even, first, last); truncation per dimension; all weights 1.
Not published, and chosen here: separate factors per projection, the first d coordinates, T and the factor T^2, rank,
optimiser and schedule, a detached teacher target, a linear head on what timm's model pools.
"""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.parts.adapters.sharing import Sharing, joint_factors
from pipeline.parts.network import Network
from pipeline.parts.training import Phase, Schedule
from pipeline.steps.distill.method import Lora, needed, prefixed
from pipeline.steps.distill.objective import Joint, Weights


@dataclass(frozen=True, kw_only=True)
class JointLora:
    """Joint training through LoRA.

    Attributes:
        name: "slad", or "joint_lora" where nothing is shared.
        lora: rank and places of the adapters, the same in teacher and student.
        sharing: what the student's factors have in common with the teacher's.
        weights: of the loss terms.
        schedule: length and rates.
    """

    name: str = "slad"
    lora: Lora
    sharing: Sharing
    weights: Weights
    schedule: Schedule
    has_teacher: ClassVar[bool] = True

    def phases(self, teacher: Network | None, student: Network) -> list[Phase]:
        """Gives both models their factors; see `Method`."""
        teacher = needed(teacher, by=self.name)
        lora = self.lora
        theirs, ours = joint_factors(
            teacher, student, targets=lora.targets, rank=lora.rank, sharing=self.sharing, depth=lora.depth
        )
        self.lora.add_to(teacher, theirs)
        self.lora.add_to(student, ours)
        trained = prefixed("teacher", self.lora.trained(teacher)) | prefixed("student", self.lora.trained(student))
        objective = Joint(teacher, student, weights=self.weights)
        return [Phase(name="joint", objective=objective, trained=trained, schedule=self.schedule)]
