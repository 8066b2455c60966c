"""Methods of two stages: adapt the teacher to the task, then train the student from it.

========== ============ =========== ================================================================================
method     teacher      student     source
========== ============ =========== ================================================================================
finetune_kd full        full        Hinton et al., "Distilling the Knowledge in a Neural Network" (2015), the
                                    conventional baseline
probe_kd   probe        full        Marrie et al., "On Good Practices for Task-Specific Distillation of Large
                                    Pretrained Visual Models" (TMLR 2024): L = (1 - a) CE + a KL
lora_kd    lora         lora, full  the vanilla-LoRA baseline of SLAD's authors
kd_lora    full         lora        Azimi et al., "KD-LoRA" (ENLSP-IV 2024): L = 0.5 T^2 KL + 0.5 CE, LoRA on q, v
========== ============ =========== ================================================================================
"""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.parts.network import Network
from pipeline.parts.training import Phase, Schedule
from pipeline.steps.distill.method import Lora, needed, prefixed, trained_by
from pipeline.steps.distill.objective import Imitation, Supervised, Weights

TRAININGS = {
    "finetune_kd": ("full", "full"),
    "probe_kd": ("probe", "full"),
    "lora_kd": ("lora", "lora"),
    "kd_lora": ("full", "lora"),
}
"""How each method trains teacher and student."""


@dataclass(frozen=True, kw_only=True)
class Staged:
    """First the teacher, then the student.

    Attributes:
        name: of the method.
        teacher_training: "full", "lora" or "probe".
        student_training: "full", "lora" or "probe".
        lora: for models trained by LoRA.
        weights: of the student's loss terms.
        teacher_schedule: of the first stage.
        schedule: of the second stage.
    """

    name: str
    teacher_training: str
    student_training: str
    lora: Lora | None = None
    weights: Weights
    teacher_schedule: Schedule
    schedule: Schedule
    has_teacher: ClassVar[bool] = True

    def phases(self, teacher: Network | None, student: Network) -> list[Phase]:
        """Prepares both models; see `Method`."""
        teacher = needed(teacher, by=self.name)
        theirs = trained_by(self.teacher_training, teacher, lora=self.lora, role="teacher")
        ours = trained_by(self.student_training, student, lora=self.lora, role="student")
        return [
            Phase(
                name="teacher",
                objective=Supervised(teacher, role="teacher"),
                trained=prefixed("teacher", theirs),
                schedule=self.teacher_schedule,
                judged="teacher",
            ),
            Phase(
                name="student",
                objective=Imitation(teacher, student, weights=self.weights),
                trained=prefixed("student", ours),
                schedule=self.schedule,
            ),
        ]
