"""The one training loop: every method brings its loss, this brings the optimiser, the schedule and the pace."""

import time
from collections.abc import Callable, Iterable, Mapping, Sized
from dataclasses import dataclass
from typing import Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from pipeline.base.errors import ModelError
from pipeline.base.progress import Reporter

Losses = Mapping[str, Tensor]


class Batches(Iterable[tuple[Tensor, Tensor]], Sized, Protocol):
    """Batches of images (batch, 3, height, width) and labels (batch,), iterated once per epoch."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the training images.
        learning_rate: peak of the cosine schedule.
        weight_decay: AdamW's; biases and norms have none.
        warmup_epochs: epochs of linear warm-up from zero.
        clip_norm: largest norm of the gradient.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    clip_norm: float


def make_accelerator(precision: str) -> Accelerator:
    """Chooses device and precision.

    Args:
        precision: "fp32", "bf16", or "auto": bf16 on a CUDA device that has it, fp32 elsewhere. On CPUs bf16
            autocast was slower than fp32 for small ViTs even with AMX (0.5x to 0.7x, width 96 to 192, 17 tokens).
    """
    if precision == "auto":
        cuda = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if cuda else "fp32"
    # accelerate keeps one state per process and refuses a second precision; each run here chooses its own.
    AcceleratorState._reset_state()
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no")


def fit(
    model: nn.Module,
    batches: Batches,
    *,
    loss: Callable[[Tensor, Tensor], Losses],
    schedule: Schedule,
    accelerator: Accelerator,
    title: str,
    on_epoch: Callable[[int, dict[str, float]], None] | None = None,
) -> None:
    """Trains the parameters of `model` that require a gradient, each of them once however often it is shared.

    Args:
        model: holds everything trained; its `parameters()` never name a tensor twice.
        batches: training images and labels.
        loss: maps images and labels to named losses; the entry "loss" is minimised, the rest is recorded.
        schedule: length and rates.
        accelerator: device and precision; the model must already be on its device.
        title: what the progress display calls this run.
        on_epoch: called after each epoch with its index, the mean losses and the learning rate.

    Raises:
        ModelError: the loss is no longer finite.
    """
    groups = param_groups_weight_decay(model, weight_decay=schedule.weight_decay)
    optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate)
    steps = schedule.epochs * len(batches)
    pace = CosineLRScheduler(
        optimizer,
        t_initial=steps,
        warmup_t=round(schedule.warmup_epochs * len(batches)),
        warmup_prefix=True,
        t_in_epochs=False,
    )
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    update = 0
    with Reporter(title, steps) as reporter:
        for epoch in range(schedule.epochs):
            totals: dict[str, float] = {}
            seen, start = 0, time.perf_counter()
            for images, labels in batches:
                pace.step_update(update)
                with accelerator.autocast():
                    terms = loss(images.to(accelerator.device), labels.to(accelerator.device))
                if not torch.isfinite(terms["loss"]):
                    msg = (
                        f"{title}: the loss is {terms['loss'].item()} in epoch {epoch + 1}, step {update + 1}: "
                        f"the training diverged; lower the schedule's learning_rate of {schedule.learning_rate:g}"
                    )
                    raise ModelError(msg)
                accelerator.backward(terms["loss"])
                accelerator.clip_grad_norm_(trained, schedule.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                for name, value in terms.items():
                    totals[name] = totals.get(name, 0.0) + float(value.detach()) * len(images)
                seen, update = seen + len(images), update + 1
                rate = seen / (time.perf_counter() - start)
                reporter.advance(f"epoch {epoch + 1} loss {totals['loss'] / seen:.3f} {rate:.0f} images/s")
            if on_epoch is not None:
                means = {name: total / seen for name, total in totals.items()}
                on_epoch(epoch, means | {"learning_rate": optimizer.param_groups[0]["lr"]})
