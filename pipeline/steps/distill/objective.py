"""What the methods minimise: sums of cross-entropies and a distillation term."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from pipeline.parts.losses import CrossEntropy, distillation_kl, logit_mse
from pipeline.parts.training import Losses


@dataclass(frozen=True, kw_only=True)
class Weights:
    """How the terms of a loss are weighed.

    Attributes:
        student: of the student's cross-entropy.
        teacher: of the teacher's cross-entropy, where the teacher trains too.
        distillation: of the distillation term.
        kind: of the distillation term: "kl" or "mse".
        temperature: T of the KL term.
        detach: whether the distillation term leaves the teacher alone.
        squared_temperature: whether the KL term has the factor T^2.
    """

    student: float = 1.0
    teacher: float = 1.0
    distillation: float = 1.0
    kind: str = "kl"
    temperature: float = 2.0
    detach: bool = True
    squared_temperature: bool = True

    def term(self, student: Tensor, teacher: Tensor) -> Tensor:
        """Returns the distillation term of logits of shape (batch, classes, ...)."""
        if self.kind == "mse":
            return logit_mse(student, teacher, detach=self.detach)
        kl = distillation_kl(student, teacher, temperature=self.temperature, detach=self.detach)
        return kl if self.squared_temperature else kl / self.temperature**2


class Objective(nn.Module):
    """Maps images (batch, 3, height, width) and targets to losses: "loss" is the one to minimise.

    Targets are labels (batch,), shares of classes (batch, classes), or labels of pixels (batch, height, width).

    Attributes:
        cross_entropy: of one model's logits and the targets.
    """

    def __init__(self) -> None:
        super().__init__()
        self.cross_entropy = CrossEntropy()

    def train(self, mode: bool = True) -> "Objective":
        """Sets the mode; frozen batch norms keep their statistics, as every frozen layer keeps its function."""
        super().train(mode)
        for module in self.modules():
            frozen = isinstance(module, _BatchNorm) and module.weight is not None and not module.weight.requires_grad
            if frozen:
                module.eval()
        return self


class Supervised(Objective):
    """Cross-entropy of one model.

    Args:
        model: to be trained.
        role: names the term, `ce_<role>`.
    """

    def __init__(self, model: nn.Module, *, role: str) -> None:
        super().__init__()
        self.model, self.role = model, role

    def forward(self, images: Tensor, targets: Tensor) -> Losses:
        """Returns the loss."""
        loss = self.cross_entropy(self.model(images).float(), targets)
        return {"loss": loss, f"ce_{self.role}": loss}


class Joint(Objective):
    """L = w_s CE(z_s, y) + w_t CE(z_t, y) + w_d D(z_s, z_t): teacher and student train together.

    Args:
        teacher: to be trained.
        student: to be trained.
        weights: of the terms.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, *, weights: Weights) -> None:
        super().__init__()
        self.teacher, self.student, self.weights = teacher, student, weights

    def forward(self, images: Tensor, targets: Tensor) -> Losses:
        """Returns the loss and its terms."""
        teacher, student = self.teacher(images).float(), self.student(images).float()
        weights = self.weights
        own, theirs = self.cross_entropy(student, targets), self.cross_entropy(teacher, targets)
        distillation = weights.term(student, teacher)
        loss = weights.student * own + weights.teacher * theirs + weights.distillation * distillation
        return {"loss": loss, "ce_teacher": theirs, "ce_student": own, weights.kind: distillation}


class Imitation(Objective):
    """L = w_s CE(z_s, y) + w_d D(z_s, z_t): the student learns from a teacher that is finished.

    Args:
        teacher: stays as it is, in evaluation mode.
        student: to be trained.
        weights: of the terms.
    """

    def __init__(self, teacher: nn.Module, student: nn.Module, *, weights: Weights) -> None:
        super().__init__()
        self.teacher, self.student, self.weights = teacher, student, weights

    def train(self, mode: bool = True) -> "Imitation":
        """Sets the student's mode."""
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor, targets: Tensor) -> Losses:
        """Returns the loss and its terms."""
        with torch.no_grad():
            teacher = self.teacher(images).float()
        student = self.student(images).float()
        own, distillation = self.cross_entropy(student, targets), self.weights.term(student, teacher)
        loss = self.weights.student * own + self.weights.distillation * distillation
        return {"loss": loss, "ce_student": own, self.weights.kind: distillation}
