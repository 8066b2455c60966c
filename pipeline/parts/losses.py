"""Losses of distillation."""

import torch.nn.functional as F
from torch import Tensor, nn


def distillation_kl(student: Tensor, teacher: Tensor, *, temperature: float, detach: bool = True) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), averaged over images, or over all pixels of all images.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015): the factor T^2 keeps the gradient's size
    independent of T.

    Args:
        student: logits of shape (batch, classes) or (batch, classes, height, width).
        teacher: logits of the same shape.
        temperature: T > 0.
        detach: whether the teacher is a fixed target; otherwise it is pulled towards the student as well.

    Returns:
        A scalar in nats.
    """
    if detach:
        teacher = teacher.detach()
    target = F.log_softmax(teacher.float() / temperature, dim=1)
    guess = F.log_softmax(student.float() / temperature, dim=1)
    answers = student.numel() // student.shape[1]
    return F.kl_div(guess, target, reduction="sum", log_target=True) / answers * temperature**2


NONE = -100  # torch's name for no label


class CrossEntropy(nn.Module):
    """Cross-entropy of logits (batch, classes, ...) and labels (batch, ...) or shares of classes, averaged over all.

    Where labels are ignored or classes weighted, what counts is still divided by the number of all labels: what a
    micro-batch or a process happens to hold must not change what a pixel weighs. torch's own mean divides by the
    weights of what counts in it.

    Args:
        weights: of the classes, of shape (classes,); None weighs all alike.
        ignored: label that does not count; None counts all.
    """

    weights: Tensor | None

    def __init__(self, weights: Tensor | None = None, *, ignored: int | None = None) -> None:
        super().__init__()
        self.register_buffer("weights", weights, persistent=False)
        self._ignored = ignored

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Returns a scalar in nats: 0 where no target counts."""
        if self._ignored is None and self.weights is None:
            return F.cross_entropy(logits, targets)  # targets may be shares
        ignored = NONE if self._ignored is None else self._ignored
        return (
            F.cross_entropy(logits, targets, weight=self.weights, ignore_index=ignored, reduction="sum")
            / targets.numel()
        )


def feature_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity, averaged over all tokens; both of shape (batch, tokens, width), teacher detached."""
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()


def logit_mse(student: Tensor, teacher: Tensor, *, detach: bool = True) -> Tensor:
    """Mean squared difference of logits of shape (batch, classes, ...).

    Args:
        student: logits.
        teacher: logits.
        detach: whether the teacher is a fixed target.
    """
    return F.mse_loss(student.float(), (teacher.detach() if detach else teacher).float())
