from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pipeline.parts.losses import distillation_kl, feature_cosine, logit_mse


def test_kl_is_the_published_formula():
    student, teacher, t = torch.randn(5, 4), torch.randn(5, 4), 3.0
    p, q = F.softmax(teacher / t, -1), F.softmax(student / t, -1)
    expected = t**2 * (p * (p / q).log()).sum(-1).mean()
    torch.testing.assert_close(distillation_kl(student, teacher, temperature=t), expected)


def test_kl_of_equal_logits_is_zero():
    logits = torch.randn(5, 4)
    assert distillation_kl(logits, logits + 2, temperature=2).item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(("detach", "moves_teacher"), [(True, False), (False, True)])
def test_detach_decides_whether_the_teacher_moves(detach, moves_teacher):
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    distillation_kl(student, teacher, temperature=2, detach=detach).backward()
    assert student.grad.abs().sum() > 0
    assert (teacher.grad is not None) == moves_teacher


def test_cosine_ignores_length_and_leaves_the_teacher_alone():
    student = torch.randn(2, 3, 8, requires_grad=True)
    teacher = (5 * student).detach().requires_grad_()
    loss = feature_cosine(student, teacher)
    assert loss.item() == pytest.approx(0, abs=1e-6)
    loss.backward()
    assert teacher.grad is None


@pytest.mark.parametrize(("detach", "moves_teacher"), [(True, False), (False, True)])
def test_mse_is_the_mean_over_batch_and_classes(detach, moves_teacher):
    student, teacher = torch.randn(5, 4, requires_grad=True), torch.randn(5, 4, requires_grad=True)
    loss = logit_mse(student, teacher, detach=detach)
    torch.testing.assert_close(loss, ((student - teacher) ** 2).sum() / 20)
    loss.backward()
    torch.testing.assert_close(student.grad, 2 * (student - teacher).detach() / 20)
    assert (teacher.grad is not None) == moves_teacher


@pytest.mark.parametrize("loss", [partial(distillation_kl, temperature=2.0), logit_mse], ids=["kl", "mse"])
def test_half_precision_logits_are_compared_in_single_precision(loss):
    student, teacher = torch.randn(5, 4).bfloat16(), torch.randn(5, 4).bfloat16()
    found = loss(student, teacher)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, loss(student.float(), teacher.float()))
