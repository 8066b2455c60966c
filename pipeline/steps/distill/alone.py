"""The student alone, without a teacher: what distillation must beat."""

from dataclasses import dataclass
from typing import ClassVar

from pipeline.parts.network import Network
from pipeline.parts.training import Phase, Schedule
from pipeline.steps.distill.method import Lora, prefixed, trained_by
from pipeline.steps.distill.objective import Supervised


@dataclass(frozen=True, kw_only=True)
class StudentOnly:
    """Cross-entropy on the labels.

    Attributes:
        name: of the method.
        training: "full", "lora" or "probe" (the head on frozen features).
        lora: for "lora".
        schedule: length and rates.
    """

    name: str = "student_only"
    training: str
    lora: Lora | None = None
    schedule: Schedule
    has_teacher: ClassVar[bool] = False

    def phases(self, teacher: Network | None, student: Network) -> list[Phase]:  # noqa: ARG002 - one interface
        """Prepares the student; see `Method`."""
        trained = prefixed("student", trained_by(self.training, student, lora=self.lora, role="student"))
        objective = Supervised(student, role="student")
        return [Phase(name="student", objective=objective, trained=trained, schedule=self.schedule)]
