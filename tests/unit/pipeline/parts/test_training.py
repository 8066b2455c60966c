import pytest
import torch
from torch import nn

from pipeline.parts.training import Schedule, fit, make_accelerator


class Batches(list):
    """A list of batches."""


def schedule(**changes):
    values = {"epochs": 3, "learning_rate": 0.1, "weight_decay": 0.0, "warmup_epochs": 1.0, "clip_norm": 1.0}
    return Schedule(**values | changes)


def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    return Batches(zip(x.split(16), y.split(16), strict=True))


def run(model, on_epoch=None, **changes):
    def loss(images, labels):
        return {"loss": nn.functional.cross_entropy(model(images), labels)}

    fit(
        model,
        data(),
        loss=loss,
        schedule=schedule(**changes),
        accelerator=make_accelerator("fp32"),
        title="test",
        on_epoch=on_epoch,
    )


def test_the_loss_falls_and_every_epoch_is_reported():
    torch.manual_seed(0)
    seen = []
    run(nn.Linear(4, 2), lambda epoch, means: seen.append((epoch, means)), epochs=5)
    assert [epoch for epoch, _ in seen] == [0, 1, 2, 3, 4]
    assert seen[-1][1]["loss"] < 0.5 * seen[0][1]["loss"]
    assert set(seen[0][1]) == {"loss", "learning_rate"}


def test_the_learning_rate_warms_up_and_falls():
    rates = []
    run(nn.Linear(4, 2), lambda _epoch, means: rates.append(means["learning_rate"]), epochs=4, warmup_epochs=2)
    assert rates[0] < rates[1] <= 0.1
    assert rates[3] < rates[2]


def test_frozen_parameters_stay():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    model[0].requires_grad_(False)
    before = model[0].weight.clone()
    run(model)
    assert torch.equal(model[0].weight, before)


def test_a_parameter_used_twice_is_stepped_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 2, bias=False)
            self.two = self.one

        def forward(self, x):
            return self.one(x)

    torch.manual_seed(0)
    twice = Twice()
    torch.manual_seed(0)
    once = nn.Linear(4, 2, bias=False)
    run(twice)
    run(once)
    assert torch.equal(twice.one.weight, once.weight)


def test_biases_do_not_decay():
    model = nn.Linear(4, 2)
    nn.init.ones_(model.bias)

    def nothing(images, _labels):
        return {"loss": model(images).sum() * 0}

    fit(
        model,
        data(),
        loss=nothing,
        schedule=schedule(weight_decay=1.0),
        accelerator=make_accelerator("fp32"),
        title="test",
    )
    assert torch.equal(model.bias, torch.ones(2))


@pytest.mark.parametrize(("asked", "given"), [("fp32", "no"), ("bf16", "bf16")])
def test_precision_is_what_was_asked(asked, given):
    assert make_accelerator(asked).mixed_precision == given


def test_auto_is_fp32_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make_accelerator("auto").mixed_precision == "no"
