import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.training import Phase, Run, Schedule, make_accelerator

BATCH, STEPS = 16, 4


class Points:
    """Points of a plane, labelled by their side of a line; the same order in every epoch."""

    def __init__(self, accumulation=1):
        self.accumulation, self.images, self.steps = accumulation, BATCH, STEPS
        generator = torch.Generator().manual_seed(0)
        self.x = torch.randn(BATCH * STEPS, 4, generator=generator)
        self.y = (self.x[:, 0] > 0).long()

    def batches(self, start, stop):
        size = BATCH // self.accumulation
        for step in range(start, stop):
            first = step % STEPS * BATCH
            for part in range(first, first + BATCH, size):
                yield self.x[part : part + size], self.y[part : part + size]


class Classifier(nn.Module):
    """Cross-entropy of a model, with what a test adds to it."""

    def __init__(self, model, *, spoil=None):
        super().__init__()
        self.model, self.spoil = model, spoil
        self.calls = 0

    def forward(self, images, targets):
        ce = F.cross_entropy(self.model(images), targets)
        penalty = 0.01 * self.model(images).square().mean()
        if self.spoil is not None:
            penalty = self.spoil(self.calls, penalty)
        self.calls += 1
        return {"loss": ce + penalty, "ce": ce, "penalty": penalty}


def schedule(**changes):
    values = {"epochs": 3, "learning_rate": 0.1, "weight_decay": 0.0, "warmup_epochs": 1.0, "clip_norm": 1.0}
    return Schedule(**values | changes)


def make(model, *, trained=None, spoil=None, mix=None, accumulation=1, **changes):
    objective = Classifier(model, spoil=spoil)
    names = dict(objective.named_parameters())
    trained = names if trained is None else {name: names[name] for name in trained}
    phase = Phase(name="test", objective=objective, trained=trained, schedule=schedule(**changes))
    accelerator = make_accelerator("fp32")
    return Run(phase, Points(accumulation), accelerator=accelerator, seed=0, title="distill test", mix=mix)


def mlp(*, dropout=0.0):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.GELU(), nn.Dropout(dropout), nn.Linear(8, 2))


def values(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


def pace(total, *, warm=0, peak=0.1):
    """The learning rate of each step: linear warm-up, then a cosine that reaches zero with the last step."""
    rising = [peak * step / warm for step in range(warm)]
    return rising + [peak * 0.5 * (1 + math.cos(math.pi * step / (total - warm))) for step in range(total - warm)]


def test_the_loss_falls_and_every_epoch_is_reported():
    seen = []
    make(mlp(), epochs=5).train(on_epoch=lambda means: seen.append(means) or 0.0)
    assert len(seen) == 5
    assert seen[-1]["loss"] < 0.5 * seen[0]["loss"]
    terms = {"loss", "ce", "penalty"}
    assert all(row.keys() == terms | {"learning_rate", "images_per_second", "memory_mb"} for row in seen)
    assert all(row["loss"] == pytest.approx(row["ce"] + row["penalty"]) for row in seen)
    assert all(row["memory_mb"] > 1 for row in seen)


def test_the_losses_of_an_epoch_are_means_over_its_steps():
    model = mlp()
    expected = F.cross_entropy(model(Points().x), Points().y).item()  # equal batches: the mean of their means
    seen = []
    make(model, epochs=2, learning_rate=1e-12).train(on_epoch=lambda means: seen.append(means["ce"]) or 0.0)
    assert seen == [pytest.approx(expected)] * 2


@pytest.mark.parametrize("warmup_epochs", [0, 1, 2])
def test_the_learning_rate_rises_in_a_line_and_falls_in_a_cosine(warmup_epochs):
    run = make(mlp(), epochs=5, warmup_epochs=warmup_epochs)
    rates = []
    advance = run._optimizer.step
    run._optimizer.step = lambda: (rates.append(run._optimizer.param_groups[0]["lr"]), advance())
    run.train()
    assert rates == pytest.approx(pace(5 * STEPS, warm=warmup_epochs * STEPS))


def test_only_what_is_named_is_trained():
    model = mlp()
    before = values(model)
    make(model, trained=["model.3.weight"]).train()
    after = values(model)
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert changed == ["3.weight"]
    assert not model[0].weight.requires_grad


def test_a_parameter_used_twice_is_stepped_once():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.one = nn.Linear(4, 2, bias=False)
            self.two = self.one

        def forward(self, x):
            return self.one(x)

    twice, once = Twice(), Twice()
    make(twice).train()
    make(once.one).train()
    assert torch.equal(twice.one.weight, once.one.weight)


def test_biases_and_norms_do_not_decay_and_matrices_do():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    before = values(model)
    run = make(model, weight_decay=0.5)

    class Nothing(nn.Module):
        def forward(self, images, _targets):
            return {"loss": model(images).sum() * 0}

    run._module = Nothing()
    run.train()
    after = values(model)
    kept = [name for name in before if torch.equal(before[name], after[name])]
    assert kept == ["0.bias", "1.weight", "1.bias", "2.bias"]
    # AdamW: p <- p (1 - lr * decay) at every step.
    factor = math.prod(1 - rate * 0.5 for rate in pace(3 * STEPS, warm=STEPS))
    torch.testing.assert_close(after["0.weight"], before["0.weight"] * factor)


def recorded(run, model):
    """Trains, and returns the parameters after every step and at every validation."""
    steps, validated = [], []
    advance = run._advance

    def noting(batches):
        advance(batches)
        steps.append(values(model))

    run._advance = noting
    run.train(on_epoch=lambda _means: validated.append(values(model)) or 0.0)
    return steps, validated


def test_the_average_is_what_the_formula_says_and_is_validated_and_kept():
    model = mlp()
    first = values(model)
    steps, validated = recorded(make(model, ema=0.8), model)
    average, expected = first, []
    for number, step in enumerate(steps):
        average = {name: 0.8 * average[name] + 0.2 * step[name] for name in average}
        if number % STEPS == STEPS - 1:
            expected.append(average)
    for found, wanted in zip(validated, expected, strict=True):
        torch.testing.assert_close(found, wanted)
    assert same(values(model), validated[-1])
    assert not same(values(model), steps[-1])


def test_the_average_does_not_touch_the_training_itself():
    plain, averaged = mlp(), mlp()
    without, _ = recorded(make(plain), plain)
    beside, _ = recorded(make(averaged, ema=0.8), averaged)
    assert same(without[-1], beside[-1])


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_patience_ends_training_and_gives_back_the_best_epoch(ema):
    model = mlp()
    accuracies = iter([10.0, 30.0, 20.0, 30.0, 90.0])
    kept = []

    def judge(_means):
        kept.append(values(model))
        return next(accuracies)

    make(model, epochs=5, ema=ema, patience=2).train(on_epoch=judge)
    assert len(kept) == 4  # the second was best, and an equal fourth is no better
    assert same(values(model), kept[1])
    assert not same(kept[1], kept[3])


@pytest.mark.parametrize("accuracies", [[50.0, 90.0, 60.0], [None, 50.0, None]])  # None was not measured
def test_with_patience_the_best_epoch_is_kept_even_when_all_epochs_run(accuracies):
    model = mlp()
    given, kept = iter(accuracies), []
    make(model, patience=5).train(on_epoch=lambda _: kept.append(values(model)) or next(given))
    assert same(values(model), kept[1])


@pytest.mark.parametrize("ema", [0.0, 0.8])
def test_the_best_epoch_comes_back_with_the_statistics_it_was_judged_with(ema):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2))
    accuracies, kept = iter([50.0, 90.0, 60.0]), []
    make(model, patience=5, ema=ema).train(on_epoch=lambda _: kept.append(values(model)) or next(accuracies))
    assert not torch.equal(kept[1]["1.running_mean"], kept[2]["1.running_mean"])
    assert same(values(model), kept[1])


def test_without_patience_the_last_step_is_kept():
    model = mlp()
    accuracies, kept = iter([50.0, 90.0, 60.0]), []
    make(model).train(on_epoch=lambda _: kept.append(values(model)) or next(accuracies))
    assert same(values(model), kept[2])


@pytest.mark.parametrize("accumulation", [2, 4, 16])
def test_micro_batches_give_the_parameters_of_the_whole_batch(accumulation):
    whole, parts = mlp().double(), mlp().double()
    for model, count in ((whole, 1), (parts, accumulation)):
        run = make(model, accumulation=count, clip_norm=0.05)  # a norm that clips
        run.stream.x = run.stream.x.double()
        run.train()
    for name, value in values(whole).items():
        torch.testing.assert_close(values(parts)[name], value, atol=1e-6, rtol=0)


def test_a_smaller_clipping_norm_changes_the_steps():
    loose, tight = mlp(), mlp()
    make(loose, clip_norm=1e9).train()
    make(tight, clip_norm=1e-9).train()
    assert not same(values(loose), values(tight))


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("at", [0, 5])
def test_a_loss_that_is_not_finite_names_term_step_and_rate(value, at):
    run = make(mlp(), spoil=lambda call, penalty: penalty * value if call == at else penalty, warmup_epochs=0)
    with pytest.raises(ModelError) as caught:
        run.train()
    words = str(caught.value)
    rate = pace(3 * STEPS)[at]
    assert words.startswith(f"distill test: penalty is {value} in epoch {at // STEPS + 1}, step {at + 1}, ")
    assert f"at learning rate {rate:.3g}:" in words
    assert "learning_rate of 0.1" in words
    assert "\n" not in words


def test_a_loss_that_breaks_alone_is_named_as_the_loss():
    run = make(mlp())

    class Broken(nn.Module):
        def forward(self, images, _targets):
            return {"loss": run.phase.objective.model(images).sum() * math.nan, "ce": torch.tensor(1.0)}

    run._module = Broken()
    with pytest.raises(ModelError, match="loss is nan in epoch 1, step 1"):
        run.train()


@pytest.mark.parametrize(("accumulation", "held", "smaller"), [(1, 16, 8), (4, 4, 2), (16, 1, 1)])
def test_a_device_without_enough_memory_is_told_what_to_set(accumulation, held, smaller):
    def full(_call, _penalty):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(ModelError) as caught:
        make(mlp(), spoil=full, accumulation=accumulation).train()
    words = str(caught.value)
    assert f"the memory of cpu does not hold a micro-batch of {held} images" in words
    assert "batch_size of 16 over" in words
    assert f"set `distill.micro_batch` to {smaller}, " in words
    assert "\n" not in words


def interrupted(at, **changes):
    """Trains up to step `at`, takes the state over into a new run of a new model, and ends there."""
    model = mlp(dropout=0.5)
    run = make(model, **changes)
    accuracies = (40.0, 80.0, 60.0, 70.0)
    stopped, states = run.total, []

    class KilledError(RuntimeError):
        pass

    class EveryStep:
        due = True

        def save(self, state):
            states.append(copy.deepcopy(state))
            if run.step == at:
                raise KilledError

    def judge_of(which):
        return lambda _means: accuracies[which.step // STEPS - 1]

    with pytest.raises(KilledError):
        run.train(
            on_epoch=judge_of(run), checkpoints=EveryStep(), around=lambda state: state | {"model": values(model)}
        )
    again = mlp(dropout=0.5)
    nn.init.zeros_(again[0].weight)  # nothing may come from how it began
    second = make(again, **changes)
    again.load_state_dict(states[-1]["model"])
    second.load(states[-1])
    assert second.step == at < stopped
    torch.rand(5)  # what is drawn between must not matter
    second.train(on_epoch=judge_of(second))
    return values(again), second.step


@pytest.mark.parametrize(
    "changes",
    [{}, {"ema": 0.7}, {"patience": 1}, {"ema": 0.7, "patience": 3}, {"accumulation": 4}],
    ids=["plain", "ema", "patience", "both", "accumulation"],
)
@pytest.mark.parametrize("at", [1, 4, 7, 11])
def test_going_on_from_any_step_gives_bit_identical_parameters(at, changes):
    model = mlp(dropout=0.5)
    accuracies = (40.0, 80.0, 60.0, 70.0)
    run = make(model, epochs=4, **changes)
    run.train(on_epoch=lambda _means: accuracies[run.step // STEPS - 1])
    found, steps = interrupted(at, epochs=4, **changes)
    assert steps == run.step == (12 if changes.get("patience") == 1 else 16)
    assert same(found, values(model))


def test_an_epoch_that_was_entered_twice_has_the_same_mean_losses():
    whole, seen = [], []
    make(mlp()).train(on_epoch=lambda means: whole.append(means["loss"]) or 0.0)
    model = mlp()
    run = make(model)
    batches = run.stream.batches(0, run.total)
    for _ in range(6):
        run._advance(batches)
        if run.step % STEPS == 0:
            run._flush()
            run._end_epoch(0, 1.0, lambda _means: 0.0)
    run._flush()
    second = make(model)
    second.load(copy.deepcopy(run.state()))
    second.train(on_epoch=lambda means: seen.append(means["loss"]) or 0.0)
    assert seen == pytest.approx(whole[1:])


def test_what_blends_a_batch_draws_the_same_again():
    def mix(images, targets):
        return images * torch.rand(()), F.one_hot(targets, 2).float()

    one, two = mlp(), mlp()
    for model in (one, two):
        torch.rand(3)
        make(model, mix=mix).train()
    plain = mlp()
    make(plain).train()
    assert same(values(one), values(two))
    assert not same(values(one), values(plain))


@pytest.mark.parametrize(("asked", "given"), [("fp32", "no"), ("bf16", "bf16")])
def test_precision_is_what_was_asked(asked, given):
    assert make_accelerator(asked).mixed_precision == given


def test_auto_is_fp32_without_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert make_accelerator("auto").mixed_precision == "no"


def test_a_divergence_in_the_last_update_is_refused_too():
    run = make(mlp(), epochs=1, learning_rate=1e38, clip_norm=1e38, warmup_epochs=0)
    run.stream.steps = run.total = 1
    with pytest.raises(ModelError, match="last update left parameters that are not finite.*learning_rate of 1e\\+38"):
        run.train()


def test_a_warm_up_as_long_as_the_run_leaves_one_step():
    assert make(mlp(), epochs=1, warmup_epochs=0.99).total > 0


def test_a_run_without_validation_does_not_stop_early():
    run = make(mlp(), epochs=4, patience=1)
    run.train()
    assert run.step == run.total
