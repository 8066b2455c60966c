import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.steps.distill.objective import Imitation, Joint, Supervised, Weights

X = torch.randn(6, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2])
SHARES = torch.softmax(torch.randn(6, 3, generator=torch.Generator().manual_seed(1)), dim=1)


def pair(*, norm=False):
    torch.manual_seed(0)
    body = [nn.BatchNorm1d(8)] if norm else []
    return nn.Sequential(*body, nn.Linear(8, 3)), nn.Sequential(*[nn.BatchNorm1d(8)] * norm, nn.Linear(8, 3))


def cross_entropy(logits, targets):
    shares = F.one_hot(targets, 3).float() if targets.ndim == 1 else targets
    return -(shares * logits.log_softmax(1)).sum(1).mean()


def kl(student, teacher, temperature):
    p, q = (teacher / temperature).softmax(1), (student / temperature).softmax(1)
    return (p * (p / q).log()).sum(1).mean()


@pytest.mark.parametrize("targets", [LABELS, SHARES], ids=["labels", "shares"])
def test_one_model_minimises_its_cross_entropy(targets):
    model, _ = pair()
    found = Supervised(model, role="teacher")(X, targets)
    assert found.keys() == {"loss", "ce_teacher"}
    torch.testing.assert_close(found["loss"], cross_entropy(model(X), targets))
    assert found["loss"] is found["ce_teacher"]


TERMS = {
    # SLAD's equation 4, with T^2.
    "joint kl": (Weights(student=2.0, teacher=3.0, distillation=0.5, temperature=4.0), lambda s, t: 16 * kl(s, t, 4.0)),
    # iDAT's: all weights 1, no T^2, nothing detached.
    "idat kl": (Weights(temperature=5.0, detach=False, squared_temperature=False), lambda s, t: kl(s, t, 5.0)),
    "idat mse": (Weights(kind="mse", detach=False), lambda s, t: ((s - t) ** 2).mean()),
}


@pytest.mark.parametrize("targets", [LABELS, SHARES], ids=["labels", "shares"])
@pytest.mark.parametrize("case", TERMS)
def test_two_models_minimise_the_formula_written_out(case, targets):
    weights, term = TERMS[case]
    teacher, student = pair()
    found = Joint(teacher, student, weights=weights)(X, targets)
    t, s = teacher(X), student(X)
    assert found.keys() == {"loss", "ce_teacher", "ce_student", weights.kind}
    torch.testing.assert_close(found["ce_teacher"], cross_entropy(t, targets))
    torch.testing.assert_close(found["ce_student"], cross_entropy(s, targets))
    torch.testing.assert_close(found[weights.kind], term(s, t))
    expected = weights.student * cross_entropy(s, targets) + weights.teacher * cross_entropy(t, targets)
    torch.testing.assert_close(found["loss"], expected + weights.distillation * term(s, t))


@pytest.mark.parametrize("kind", ["kl", "mse"])
@pytest.mark.parametrize("detach", [True, False])
def test_only_a_term_that_is_not_detached_pulls_the_teacher(kind, detach):
    teacher, student = pair()
    weights = Weights(student=0.0, teacher=0.0, kind=kind, detach=detach)
    Joint(teacher, student, weights=weights)(X, LABELS)["loss"].backward()
    assert student[0].weight.grad.any()
    assert bool(teacher[0].weight.grad.any()) == (not detach)


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_a_weight_of_zero_leaves_its_model_alone(role):
    teacher, student = pair()
    weights = Weights(**{role: 0.0}, distillation=0.0)
    Joint(teacher, student, weights=weights)(X, LABELS)["loss"].backward()
    models = {"teacher": teacher, "student": student}
    assert not models.pop(role)[0].weight.grad.any()
    assert all(model[0].weight.grad.any() for model in models.values())


@pytest.mark.parametrize("kind", ["kl", "mse"])
def test_imitation_weighs_labels_and_a_finished_teacher(kind):
    teacher, student = pair()
    weights = Weights(student=0.3, distillation=0.7, kind=kind, temperature=3.0)
    found = Imitation(teacher, student, weights=weights)(X, LABELS)
    t, s = teacher(X), student(X)
    term = 9 * kl(s, t, 3.0) if kind == "kl" else ((s - t) ** 2).mean()
    assert found.keys() == {"loss", "ce_student", kind}
    torch.testing.assert_close(found["loss"], 0.3 * cross_entropy(s, LABELS) + 0.7 * term)
    found["loss"].backward()
    assert student[0].weight.grad.any()
    assert teacher[0].weight.grad is None


def test_a_finished_teacher_stays_in_evaluation_mode():
    teacher, student = pair(norm=True)
    objective = Imitation(teacher, student, weights=Weights()).train()
    assert student.training
    assert not any(module.training for module in teacher.modules())
    before = teacher[0].running_mean.clone()
    objective(X, LABELS)
    assert torch.equal(teacher[0].running_mean, before)


@pytest.mark.parametrize("frozen", [True, False])
def test_frozen_batch_norms_keep_their_statistics_in_training(frozen):
    model, _ = pair(norm=True)
    objective = Supervised(model, role="student")
    model[0].requires_grad_(not frozen)
    objective.train()
    objective(X, LABELS)
    assert model[0].training == (not frozen)
    assert bool(model[0].running_mean.any()) == (not frozen)
    objective.eval()
    assert not model[0].training
