import pytest
import torch
import torch.nn.functional as F

from pipeline.parts.losses import distillation_kl, feature_cosine


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
