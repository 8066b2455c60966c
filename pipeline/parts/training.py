"""The one training loop: every method brings its objective, this brings the optimiser, the schedule and the pace."""

import contextlib
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, PartialState
from timm.optim import param_groups_weight_decay
from timm.scheduler import CosineLRScheduler
from torch import Tensor, nn

from pipeline.base.errors import ModelError
from pipeline.base.progress import Reporter
from pipeline.base.seeding import derived, draw_from
from pipeline.parts.checkpoints import Checkpoints, State
from pipeline.parts.ema import Ema

FLUSH_STEPS = 20  # losses are read back once in so many steps: each reading makes the host wait for the device
Losses = Mapping[str, Tensor]
Mix = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


class Stream(Protocol):
    """Training batches that can be entered at any step.

    Attributes:
        steps: optimiser steps per epoch.
        images: images per optimiser step, over all processes.
        accumulation: micro-batches per step of one process.
    """

    steps: int
    images: int
    accumulation: int

    def batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields the micro-batches of steps `start` to `stop` - 1: images (n, 3, height, width), labels (n,)."""


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """How long and how fast.

    Attributes:
        epochs: passes over the training images.
        learning_rate: peak of the cosine schedule.
        weight_decay: AdamW's; biases and norms have none.
        warmup_epochs: epochs of linear warm-up from zero.
        clip_norm: largest norm of the gradient.
        ema: decay of the moving average that is validated and kept; 0 keeps the last step's parameters.
        patience: epochs without a better validation accuracy after which training ends, with the best epoch's
            parameters; None trains to the end and keeps the last.
    """

    epochs: int
    learning_rate: float
    weight_decay: float
    warmup_epochs: float
    clip_norm: float
    ema: float = 0.0
    patience: int | None = None


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One stage of a method: what is minimised, over which parameters.

    Attributes:
        name: of the stage, such as "teacher" or "joint".
        objective: maps images and targets to named losses; "loss" is minimised, the rest is recorded. It holds
            every model it needs.
        trained: the parameters that are trained, each once; all others of the objective are frozen.
        schedule: length and rates.
        judged: role whose validation accuracy decides about early stopping.
    """

    name: str
    objective: nn.Module
    trained: Mapping[str, nn.Parameter]
    schedule: Schedule
    judged: str = "student"


def make_accelerator(precision: str) -> Accelerator:
    """Chooses device, precision and, in a process launched for it, the process group.

    Args:
        precision: "fp32", "bf16", or "auto": bf16 on a CUDA device that has it, fp32 elsewhere. On CPUs bf16
            autocast was slower than fp32 for small ViTs even with AMX (0.5x to 0.7x, width 96 to 192, 17 tokens).
    """
    cuda = torch.cuda.is_available()
    if precision == "auto":
        precision = "bf16" if cuda and torch.cuda.is_bf16_supported() else "fp32"
    # accelerate keeps one state per process and refuses a second precision; each run here chooses its own.
    AcceleratorState._reset_state()
    if not torch.distributed.is_initialized():
        PartialState._reset_state()
    return Accelerator(mixed_precision="bf16" if precision == "bf16" else "no", cpu=not cuda)


class Run:
    """The training of one phase, from any step on.

    Args:
        phase: what is trained.
        stream: training batches.
        accelerator: device, precision, processes; the objective must already be on its device.
        seed: of everything drawn inside the models and by `mix`.
        title: what the progress display calls this run.
        mix: blends a batch and makes soft targets; None leaves it.
    """

    def __init__(
        self,
        phase: Phase,
        stream: Stream,
        *,
        accelerator: Accelerator,
        seed: int,
        title: str,
        mix: Mix | None = None,
    ) -> None:
        self.phase, self.stream, self.accelerator, self.title = phase, stream, accelerator, title
        self._seed, self._mix = seed, mix
        phase.objective.requires_grad_(False)
        for parameter in phase.trained.values():
            parameter.requires_grad_(True)
        self._parameters = list(phase.trained.values())
        schedule = phase.schedule
        groups = param_groups_weight_decay(phase.objective, weight_decay=schedule.weight_decay)
        self._optimizer = torch.optim.AdamW(groups, lr=schedule.learning_rate, fused=True)
        self.total = schedule.epochs * stream.steps
        warmup = min(round(schedule.warmup_epochs * stream.steps), self.total - 1)
        self._pace = CosineLRScheduler(
            self._optimizer,
            t_initial=self.total
            - warmup,  # the cosine begins after the warm-up and would reach zero one step after the last
            warmup_t=warmup,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        self._ema = Ema(self._parameters, decay=schedule.ema) if schedule.ema else None
        alone = accelerator.num_processes == 1
        self._module = phase.objective if alone else accelerator.prepare_model(phase.objective)
        self._pending: list[tuple[int, float, dict[str, Tensor]]] = []
        self.step = 0
        self._totals: dict[str, float] = {}
        self._loss: float | None = None
        self._accuracy: float | None = None
        self._best: dict[str, Any] = {"accuracy": -1.0, "epoch": -1, "tensors": []}

    def train(
        self,
        *,
        on_epoch: Callable[[dict[str, float]], float | None] | None = None,
        checkpoints: Checkpoints | None = None,
        around: Callable[[State], State] = lambda state: state,
    ) -> None:
        """Runs from the present step to the last.

        Args:
            on_epoch: called after each epoch with the mean losses, `learning_rate`, `images_per_second` and
                `memory_mb`, the peak; returns the accuracy that early stopping goes by, or None
                where it was not measured.
            checkpoints: where the state is saved; None saves nothing.
            around: adds to the state what lies outside of this run.

        Raises:
            ModelError: a loss is no longer finite, or the device's memory does not hold a batch.
        """
        batches = self.stream.batches(self.step, self.total)
        alone = self.accelerator.num_processes == 1
        quiet = not self.accelerator.is_main_process
        with Reporter(self.title, self.total, done=self.step, quiet=quiet) as reporter:
            clock, since = time.perf_counter(), self.step
            while self.step < self.total and not self._stopped():
                self._advance(batches)
                epoch, place = divmod(self.step, self.stream.steps)
                due = checkpoints is not None and checkpoints.due
                # Reading losses back is a collective operation: clocks, which differ, must not decide about it.
                if place == 0 or len(self._pending) >= FLUSH_STEPS or (due and alone):
                    self._flush()
                rate = (self.step - since) * self.stream.images / (time.perf_counter() - clock)
                reporter.advance(self._note(rate))
                if place == 0:
                    self._end_epoch(epoch - 1, rate, on_epoch)
                    clock, since = time.perf_counter(), self.step
                if checkpoints is not None and due and not self._pending:
                    checkpoints.save(around(self.state()))
        self._finish()

    def _advance(self, batches: Iterator[tuple[Tensor, Tensor]]) -> None:
        accelerator, count = self.accelerator, self.stream.accumulation
        self._pace.step_update(self.step)
        draw_from(derived(self._seed, self.phase.name, self.step, accelerator.process_index))
        sums: dict[str, Tensor] = {}
        images = None
        try:
            for part in range(count):
                images, targets = (x.to(accelerator.device, non_blocking=True) for x in next(batches))
                if self._mix is not None:
                    images, targets = self._mix(images, targets)
                last = part == count - 1
                with contextlib.nullcontext() if last else accelerator.no_sync(self._module):
                    with accelerator.autocast():
                        terms = self._module(images, targets)
                    accelerator.backward(terms["loss"] / count)
                for name, value in terms.items():
                    sums[name] = sums.get(name, 0) + value.detach() / count
            accelerator.clip_grad_norm_(self._parameters, self.phase.schedule.clip_norm)
            self._optimizer.step()
            self._optimizer.zero_grad(set_to_none=True)
        except torch.OutOfMemoryError as error:
            held = 0 if images is None else len(images)
            msg = (
                f"{self.title}: the memory of {accelerator.device} does not hold a micro-batch of {held} images (the "
                f"batch_size of {held * count * accelerator.num_processes} over processes and accumulation); "
                f"set `distill.micro_batch` to {max(1, held // 2)}, which only changes what mixup and cutmix pair"
            )
            raise ModelError(msg) from error
        if self._ema is not None:
            self._ema.update()
        self._pending.append((self.step, float(self._optimizer.param_groups[0]["lr"]), sums))
        self.step += 1

    def _flush(self) -> None:
        """Reads the losses of the last steps back, in one transfer, and refuses to go on when one is not finite."""
        if not self._pending:
            return
        names = list(self._pending[0][2])
        table = torch.stack([torch.stack([terms[name].float() for name in names]) for _, _, terms in self._pending])
        table = self.accelerator.reduce(table, reduction="mean")
        for (step, rate, _), row in zip(self._pending, table.tolist(), strict=True):
            values = dict(zip(names, row, strict=True))
            terms = sorted(names, key=lambda name: name == "loss")  # the sum last: a term says more
            broken = [name for name in terms if not math.isfinite(values[name])]
            if broken:
                msg = (
                    f"{self.title}: {broken[0]} is {values[broken[0]]} in epoch {step // self.stream.steps + 1}, step "
                    f"{step + 1}, at learning rate {rate:.3g}: the training diverged; lower the schedule's "
                    f"learning_rate of {self.phase.schedule.learning_rate:g}"
                )
                raise ModelError(msg)
            for name, value in values.items():
                self._totals[name] = self._totals.get(name, 0.0) + value
            self._loss = values["loss"]
        self._pending.clear()

    def _note(self, rate: float) -> str:
        """Epoch, last loss read back, last accuracy, images/s: what a user wants to see."""
        parts = [f"epoch {(self.step - 1) // self.stream.steps + 1}"]
        parts += [f"loss {self._loss:.3f}"] if self._loss is not None else []
        parts += [f"{self.phase.judged} {self._accuracy:.1f} %"] if self._accuracy is not None else []
        return " ".join([*parts, f"{rate:.0f} images/s"])

    def _end_epoch(self, epoch: int, rate: float, on_epoch: Callable[[dict[str, float]], float | None] | None) -> None:
        means = {name: total / self.stream.steps for name, total in self._totals.items()}
        self._totals = {}
        self._agree()
        if on_epoch is None:
            return
        means |= {
            "learning_rate": float(self._optimizer.param_groups[0]["lr"]),
            "images_per_second": rate,
            "memory_mb": memory_peak_mb(),
        }
        with contextlib.nullcontext() if self._ema is None else self._ema.applied():
            accuracy = on_epoch(means)
            self._accuracy = self._accuracy if accuracy is None else accuracy
            patient = self.phase.schedule.patience is not None
            if patient and accuracy is not None and accuracy > self._best["accuracy"]:
                kept = [tensor.detach().cpu().clone() for tensor in self._kept()]
                self._best = {"accuracy": accuracy, "epoch": epoch, "tensors": kept}
        self.phase.objective.train()

    @torch.no_grad()
    def _agree(self) -> None:
        """Averages batch norms' statistics over the processes, each of which has seen its share of the images."""
        if self.accelerator.num_processes > 1:
            for buffer in self.phase.objective.buffers():
                if buffer.is_floating_point():
                    buffer.copy_(self.accelerator.reduce(buffer.clone(), reduction="mean"))

    def _kept(self) -> list[Tensor]:
        """What belongs to the best epoch: batch norms' statistics as well as parameters."""
        return [*self._parameters, *self.phase.objective.buffers()]

    def _stopped(self) -> bool:
        patience = self.phase.schedule.patience
        epochs, place = divmod(self.step, self.stream.steps)
        judged = patience is not None and self._best["epoch"] >= 0
        return judged and place == 0 and epochs - 1 - int(self._best["epoch"]) >= (patience or 0)

    @torch.no_grad()
    def _finish(self) -> None:
        # The losses that were checked are those before the last update.
        if not all(torch.isfinite(parameter).all() for parameter in self._parameters):
            msg = (
                f"{self.title}: the last update left parameters that are not finite: the training diverged; "
                f"lower the schedule's learning_rate of {self.phase.schedule.learning_rate:g}"
            )
            raise ModelError(msg)
        if self._best["tensors"]:
            for tensor, kept in zip(self._kept(), self._best["tensors"], strict=True):
                tensor.copy_(kept)
        elif self._ema is not None:
            self._ema.swap()
        if self.accelerator.num_processes > 1:
            self.accelerator.unwrap_model(self._module, keep_fp32_wrapper=False)

    def state(self) -> State:
        """Returns everything, besides the parameters, that going on from this step needs."""
        return {
            "step": self.step,
            "optimizer": self._optimizer.state_dict(),
            "ema": [] if self._ema is None else self._ema.average,
            "totals": self._totals,
            "best": self._best,
        }

    @torch.no_grad()
    def load(self, state: State) -> None:
        """Takes up what `state` returned; the parameters must already be those of that step."""
        self.step, self._totals, self._best = state["step"], state["totals"], state["best"]
        self._optimizer.load_state_dict(state["optimizer"])
        if self._ema is not None:
            for average, saved in zip(self._ema.average, state["ema"], strict=True):
                average.copy_(saved)


def memory_peak_mb() -> float:
    """Returns the most memory this process has held: the CUDA device's where there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 1e6
    status = Path("/proc/self/status")
    if not status.is_file():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # macOS counts bytes
    # Linux hands getrusage's peak on from parent to child; VmHWM is this process's own.
    line = next(line for line in status.read_text(encoding="ascii").splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 / 1e6
