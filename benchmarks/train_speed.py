"""How fast does each method train, and how far is the shared-adapter method from the least it could cost?

One process, one pair of models, the same batches; the contestants take turns in random order, so that the machine's
moods hit all of them alike. A contestant's cost is its seconds per step, that of both stages added for finetune_kd, and
ratios are medians over the rounds of the ratio within a round. Contestants:

- slad, joint_lora, finetune_kd: the project's own methods, objectives and training loop.
- slad upper: adapters in the upper half of the blocks alone (distill.depth=0.5).
- peft: the joint loss with LoRA of the library peft on the fused qkv layer of both models, r alike.
- with --also compiled: slad and finetune_kd through torch.compile, whose minutes of compiling are not counted.
- with --also channels_last: slad with images and weights in that memory format.
- with --also cached: slad upper, its untouched lower blocks not run but their outputs copied from memory: least that
  a cache of them could cost (per image 0.45 MB with the small pair, and the images may never be augmented).
- floor: forward of both frozen models and backward of activations only; no method that trains in front of the last
  block can cost less.

Command: `python -m benchmarks.train_speed` (2 cores: about 12 min; `--pair large` on a GPU). Needs `pip install peft`.
"""

import argparse
import json
import multiprocessing
import random
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from pipeline.parts.adapters.sharing import Sharing
from pipeline.parts.network import Network
from pipeline.parts.training import Phase, Run, Schedule, make_accelerator, memory_peak_mb
from pipeline.steps.distill.joint import JointLora
from pipeline.steps.distill.method import Lora, Method
from pipeline.steps.distill.objective import Joint, Weights
from pipeline.steps.distill.staged import Staged

PAIRS = {
    "small": ("vit_small_patch16_224", "vit_tiny_patch16_224", {}),
    "large": ("vit_large_patch14_dinov2", "vit_small_patch14_dinov2", {"img_size": 224}),
}
CLASSES, RANK, SIZE = 10, 16, 224
SCHEDULE = Schedule(epochs=1000, learning_rate=1e-4, weight_decay=0.01, warmup_epochs=0, clip_norm=1.0)
LORA = Lora(targets=("q", "k", "v"), rank=RANK, alpha=16.0)
NAMES = ("slad", "slad upper", "joint_lora", "finetune_kd", "peft", "floor")
ALSO = {
    "compiled": ("slad compiled", "finetune_kd compiled"),
    "channels_last": ("slad channels_last",),
    "cached": ("slad upper cached",),
}


@dataclass(frozen=True)
class Fixed:
    """The same batch for ever: what is measured is the training, not the loading."""

    images: int
    steps: int = 1000
    accumulation: int = 1
    memory_format: torch.memory_format = torch.contiguous_format

    def batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields one random batch again and again."""
        generator = torch.Generator().manual_seed(0)
        images = torch.randn(self.images, 3, SIZE, SIZE, generator=generator)
        images = images.to(memory_format=self.memory_format)
        labels = torch.randint(CLASSES, (self.images,), generator=generator)
        return repeat((images, labels), stop - start)


def pair(name: str) -> tuple[Network, Network]:
    """Builds teacher and student with random weights."""
    torch.manual_seed(0)
    *models, options = PAIRS[name]
    teacher, student = (timm.create_model(model, num_classes=CLASSES, **options) for model in models)
    return teacher, student


def method(name: str) -> Method:
    """Returns one of the project's methods."""
    if name == "finetune_kd":
        stage = {"teacher_training": "full", "student_training": "full"}
        return Staged(name=name, **stage, weights=Weights(), teacher_schedule=SCHEDULE, schedule=SCHEDULE)
    lora = replace(LORA, depth=0.5 if name == "slad upper" else 1.0)
    sharing = Sharing(share="none" if name == "joint_lora" else "slice")
    return JointLora(name=name, lora=lora, sharing=sharing, weights=Weights(), schedule=SCHEDULE)


def phases(name: str, teacher: Network, student: Network) -> list[Phase]:
    """Prepares a contestant's stages."""
    if name == "peft":
        config = LoraConfig(r=RANK, lora_alpha=16, target_modules=r"blocks\.\d+\.attn\.qkv", modules_to_save=["head"])
        objective = Joint(get_peft_model(teacher, config), get_peft_model(student, config), weights=Weights())
        trained = {n: p for n, p in objective.named_parameters() if p.requires_grad}
        return [Phase(name="peft", objective=objective, trained=trained, schedule=SCHEDULE)]
    return method(name).phases(teacher, student)


def floor(teacher: Network, student: Network, accelerator: Accelerator, batch: int) -> Callable[[], None]:
    """Returns a step that pulls gradients through both networks and trains nothing."""
    objective = Joint(teacher, student, weights=Weights(detach=False)).to(accelerator.device).requires_grad_(False)

    def start(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output.requires_grad_()

    for model in (teacher, student):
        model.patch_embed.register_forward_hook(start)
    batches = Fixed(batch).batches(0, 10**9)

    def step() -> None:
        images, labels = (x.to(accelerator.device) for x in next(batches))
        with accelerator.autocast():
            loss = objective(images, labels)["loss"]
        loss.backward()

    return step


def keep_lower(model: Network, images: Tensor) -> None:
    """Runs the lower half of the blocks once, and from then on copies what came out."""
    half = len(model.blocks) // 2
    kept: list[Tensor] = []
    hook = model.blocks[half].register_forward_pre_hook(lambda _module, inputs: kept.append(inputs[0].detach()))
    with torch.no_grad():
        model(images)
    hook.remove()
    model.forward_features = lambda _images, **_masks: model.norm(model.blocks[half:](kept[0].clone()))


def contestant(name: str, which: str, batch: int, accelerator: Accelerator) -> Callable[[], None]:
    """Returns one step of training: of every stage, where there are several."""
    teacher, student = pair(which)
    if name == "floor":
        return floor(teacher, student, accelerator, batch)
    way = next((way for way in ALSO if name.endswith(way)), "")
    feed = Fixed(batch, memory_format=torch.channels_last if way == "channels_last" else torch.contiguous_format)
    steps = []
    for phase in phases(name.removesuffix(way).strip(), teacher, student):
        phase.objective.to(accelerator.device, memory_format=feed.memory_format)
        run = Run(phase, feed, accelerator=accelerator, seed=0, title=name)
        phase.objective.train()
        if way == "compiled":
            phase.objective.compile()
        if way == "cached":
            images, _ = next(feed.batches(0, 1))
            for model in (teacher, student):
                keep_lower(model, images.to(accelerator.device))
        steps.append((phase, run, feed.batches(0, 10**9)))

    def step() -> None:
        for phase, run, batches in steps:
            for parameter in phase.objective.parameters():
                parameter.requires_grad_(False)
            for parameter in phase.trained.values():
                parameter.requires_grad_(True)
            run._advance(batches)
            run._pending.clear()

    return step


def sync() -> None:
    """Waits for the device."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_mb(name: str, which: str, batch: int, precision: str) -> float:
    """Memory that three steps need beyond what the process held before the models: in a process of their own."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_peak_mb, (name, which, batch, precision))


def _peak_mb(name: str, which: str, batch: int, precision: str) -> float:
    accelerator = make_accelerator(precision)
    before = memory_peak_mb()
    step = contestant(name, which, batch, accelerator)
    for _ in range(3):
        step()
    return memory_peak_mb() - before


def main() -> None:
    """Prints one line per contestant, and writes all samples where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pair", choices=PAIRS, default="small")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--images", type=int, default=1000, help="images per epoch, to state seconds per epoch")
    parser.add_argument("--precision", default="auto")
    parser.add_argument(
        "--also", nargs="*", choices=ALSO, default=[], help="more ways; compiled takes a C++ compiler on a CPU"
    )
    parser.add_argument("--json", help="file for all samples")
    args = parser.parse_args()
    names = (*NAMES, *(name for way in args.also for name in ALSO[way]))
    accelerator = make_accelerator(args.precision)
    steps = {name: contestant(name, args.pair, args.batch, accelerator) for name in names}
    times: dict[str, list[float]] = {name: [] for name in names}
    order = list(names)
    for turn in range(args.rounds + 1):
        random.Random(turn).shuffle(order)
        for name in order:
            sync()
            start = time.perf_counter()
            steps[name]()
            sync()
            if turn:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    steps.clear()
    memory = {name: peak_mb(name, args.pair, args.batch, args.precision) for name in names}
    print(
        f"{PAIRS[args.pair][0]} -> {PAIRS[args.pair][1]}, {SIZE} px, batch {args.batch}, {accelerator.device}, "
        f"{accelerator.mixed_precision}, {torch.get_num_threads()} threads, {args.rounds} rounds"
    )
    print(
        f"{'contestant':<20} {'s/epoch':>8} {'of slad':>8} {'of floor':>9} {'MB':>7}   ({args.images} images an epoch)"
    )
    for name, samples in times.items():
        epoch = statistics.median(samples) * args.images / args.batch
        of_slad, of_floor = (
            statistics.median(own / base for own, base in zip(samples, times[other], strict=True))
            for other in ("slad", "floor")
        )
        print(f"{name:<20} {epoch:8.1f} {of_slad:8.2f} {of_floor:9.2f} {memory[name]:7.0f}")
    if args.json:
        samples = {"arguments": vars(args), "seconds_per_step": times, "memory_mb": memory}
        Path(args.json).write_text(json.dumps(samples, indent=1))


if __name__ == "__main__":
    main()
