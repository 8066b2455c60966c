"""Losses of distillation."""

import torch.nn.functional as F
from torch import Tensor


def distillation_kl(student: Tensor, teacher: Tensor, *, temperature: float, detach: bool = True) -> Tensor:
    """T^2 * KL(softmax(teacher / T) || softmax(student / T)), averaged over the batch.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (2015): the factor T^2 keeps the gradient's size
    independent of T.

    Args:
        student: logits of shape (batch, classes).
        teacher: logits of shape (batch, classes).
        temperature: T > 0.
        detach: whether the teacher is a fixed target; otherwise it is pulled towards the student as well.

    Returns:
        A scalar in nats.
    """
    if detach:
        teacher = teacher.detach()
    target = F.log_softmax(teacher.float() / temperature, dim=-1)
    guess = F.log_softmax(student.float() / temperature, dim=-1)
    return F.kl_div(guess, target, reduction="batchmean", log_target=True) * temperature**2


def feature_cosine(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine similarity, averaged over all tokens; both of shape (batch, tokens, width), teacher detached."""
    return 1 - F.cosine_similarity(student.float(), teacher.detach().float(), dim=-1).mean()


def logit_mse(student: Tensor, teacher: Tensor, *, detach: bool = True) -> Tensor:
    """Mean squared difference of logits of shape (batch, classes).

    Args:
        student: logits.
        teacher: logits.
        detach: whether the teacher is a fixed target.
    """
    return F.mse_loss(student.float(), (teacher.detach() if detach else teacher).float())
