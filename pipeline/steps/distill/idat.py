"""iDAT: a small teacher helps a large student, both with bottleneck adapters, in one stage.

Ruan et al., "iDAT: inverse Distillation Adapter-Tuning" (ICME 2024), and their code (train_onlinekd.py)::

    kl:  L = CE(z_s, y) + CE(z_t, y) + KL(softmax(z_t / 5) || softmax(z_s / 5))        without T^2
    mse: L = CE(z_s, y) + CE(z_t, y) + mean (z_s - z_t)^2

All weights are 1 and nothing is detached: the term pulls the small teacher too. The deployed network is the large one.
Not taken over from that code: the second backward pass, and the choice of the epoch on test data.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.bottleneck import Bottlenecked, add_bottlenecks
from pipeline.parts.adapters.sharing import check_adaptable
from pipeline.parts.network import Network
from pipeline.parts.training import Phase, Schedule
from pipeline.steps.distill.method import needed, prefixed
from pipeline.steps.distill.objective import Joint, Weights


@dataclass(frozen=True, kw_only=True)
class Idat:
    """Joint training through bottlenecks.

    Attributes:
        name: of the method.
        hidden: width of the bottleneck.
        weights: of the loss terms.
        schedule: length and rates.
    """

    name: str = "idat"
    hidden: int
    weights: Weights
    schedule: Schedule
    has_teacher: ClassVar[bool] = True

    def phases(self, teacher: Network | None, student: Network) -> list[Phase]:
        """Gives both models their bottlenecks; see `Method`."""
        teacher = needed(teacher, by=self.name)
        trained: dict[str, nn.Parameter] = {}
        sizes = {}
        for role, model in (("teacher", teacher), ("student", student)):
            check_adaptable(model, role=role)
            sizes[role] = sum(parameter.numel() for parameter in model.parameters())
        if sizes["teacher"] > sizes["student"]:
            msg = (
                f"idat trains a large student with a small teacher, but the student has {sizes['student']:,} "
                f"parameters, the teacher {sizes['teacher']:,}; exchange them: teacher=vit_96x3 student=vit_192x6"
            )
            raise ModelError(msg)
        for role, model in (("teacher", teacher), ("student", student)):
            add_bottlenecks(model, hidden=self.hidden)
            trained |= prefixed(role, self._trained(model))
        objective = Joint(teacher, student, weights=self.weights)
        return [Phase(name="joint", objective=objective, trained=trained, schedule=self.schedule)]

    @staticmethod
    def _trained(model: Network) -> dict[str, nn.Parameter]:
        chosen = {id(parameter) for parameter in model.get_classifier().parameters()}
        for module in model.modules():
            if isinstance(module, Bottlenecked):
                chosen |= {id(p) for layer in (module.down, module.up) for p in layer.parameters()}
        return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in chosen}
