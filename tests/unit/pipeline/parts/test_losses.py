from functools import partial

import pytest
import torch
import torch.nn.functional as F

from pipeline.parts.losses import CrossEntropy, distillation_kl, feature_cosine, logit_mse


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


def test_kl_of_masks_is_the_mean_over_all_pixels():
    student, teacher = torch.randn(2, 4, 3, 5), torch.randn(2, 4, 3, 5)
    pixels = [logits.permute(0, 2, 3, 1).reshape(-1, 4) for logits in (student, teacher)]
    expected = distillation_kl(*pixels, temperature=3.0)
    torch.testing.assert_close(distillation_kl(student, teacher, temperature=3.0), expected)


WEIGHTS = torch.tensor([1.0, 2.0, 0.5])


def test_cross_entropy_of_classes_is_that_of_torch():
    logits, labels, shares = torch.randn(5, 3), torch.randint(0, 3, (5,)), torch.randn(5, 3).softmax(1)
    torch.testing.assert_close(CrossEntropy()(logits, labels), F.cross_entropy(logits, labels))
    torch.testing.assert_close(CrossEntropy()(logits, shares), F.cross_entropy(logits, shares))
    each = F.cross_entropy(logits, labels, reduction="none")
    torch.testing.assert_close(CrossEntropy(WEIGHTS)(logits, labels), (each * WEIGHTS[labels]).mean())


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_pixels_that_are_ignored_count_as_nothing_among_all(weights):
    logits, masks = torch.randn(2, 3, 4, 5), torch.randint(0, 3, (2, 4, 5))
    each = F.cross_entropy(logits, masks, weight=weights, reduction="none")
    masks[0, :2] = 255
    each[0, :2] = 0
    torch.testing.assert_close(CrossEntropy(weights, ignored=255)(logits, masks), each.mean())


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_parts_of_a_batch_weigh_as_in_the_whole(weights):
    logits, masks = torch.randn(6, 3, 4, 5), torch.randint(0, 3, (6, 4, 5))
    masks[0], masks[3, :3] = 255, 255
    loss = CrossEntropy(weights, ignored=255)
    parts = [loss(logits[first : first + 2], masks[first : first + 2]) for first in (0, 2, 4)]
    torch.testing.assert_close(sum(parts) / 3, loss(logits, masks))


@pytest.mark.parametrize("weights", [None, WEIGHTS], ids=["alike", "weighted"])
def test_masks_of_no_class_teach_nothing(weights):
    logits = torch.randn(2, 3, 4, 5, requires_grad=True)
    loss = CrossEntropy(weights, ignored=255)(logits, torch.full((2, 4, 5), 255))
    loss.backward()
    assert loss.item() == 0  # torch's own mean is not a number here
    assert logits.grad.abs().max() == 0


def test_weights_of_classes_are_no_part_of_what_is_saved():
    assert CrossEntropy(WEIGHTS, ignored=255).state_dict() == {}
