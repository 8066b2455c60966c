"""Does training wait for its images? Images per second that the loader gives, and that training takes.

Loaders and trainings take turns, in random order; a rate is the median over the rounds, a ratio the median of the ratio
within a round. The loader decodes, crops, augments and stacks batches as training does, with `distill.workers` and
`distill.pixels` as named; its first epoch, in which pixels are kept, is not counted. Training takes one batch for ever,
so that it never waits. Where both run at once they share the cores: twice what training takes is little.

Command: `python -m benchmarks.loader`, or with `--images PATH` (any folder) for photographs of one's own instead of the
drawn ones of 640 x 480 and 4000 x 3000 pixels. About 4 minutes on 2 cores.
"""

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import repeat
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import Tensor

from deploy.bundle import Preprocess
from deploy.files import sha256_file
from deploy.preprocess import fit_image, load_image, load_mask, normalised
from pipeline.parts.adapters.sharing import Sharing
from pipeline.parts.data import Augment, Images, ImageStream
from pipeline.parts.index import Item, Items, Load
from pipeline.parts.network import Network
from pipeline.parts.pixels import KeptPixels
from pipeline.parts.sources.listing import is_image
from pipeline.parts.training import Phase, Run, Schedule, make_accelerator
from pipeline.steps.distill.alone import StudentOnly
from pipeline.steps.distill.joint import JointLora
from pipeline.steps.distill.method import Lora
from pipeline.steps.distill.objective import Weights

SIZE, BATCH, CLASSES, ROUNDS = 224, 16, 10, 5
RECIPE = Preprocess(
    resize=SIZE,
    resize_mode="shortest",
    crop=(SIZE, SIZE),
    interpolation="bicubic",
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    color="RGB",
)
SCHEDULE = Schedule(epochs=10**6, learning_rate=1e-4, weight_decay=0.01, warmup_epochs=0, clip_norm=1.0)
SIZES = {"640 x 480": (640, 480, 128), "4000 x 3000": (4000, 3000, 32)}
STEPS = 3

Rate = Callable[[], float]


def draw(folder: Path, width: int, height: int, count: int) -> list[Path]:
    """Writes smooth random JPEG files, with noise, which take as long to decode as photographs."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    files = [folder / f"{number}.jpg" for number in range(count)]
    for file in files:
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        fine = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC), np.int16)
        noisy = fine + generator.integers(-8, 9, fine.shape, dtype=np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(file, quality=90)
    return files


def loading(root: Path, files: list[Path], *, workers: int, kept: Path | None) -> Rate:
    """Returns what gives the images per second of one epoch."""
    pixels = None
    if kept is not None:
        fit, normalise = partial(fit_image, preprocess=RECIPE), partial(normalised, preprocess=RECIPE)
        pixels = KeptPixels(kept, fit=fit, normalise=normalise, recipe="benchmark")
    items = Items.of(Item(file.relative_to(root).as_posix(), 0, sha256_file(file)) for file in files)
    transform = Augment(degrees=10.0, translate=0.05, scale=(0.9, 1.2), flip=True).transform((-1.0, -1.0, -1.0))
    load = Load.by(load_image, load_mask, preprocess=RECIPE)
    images = Images(root, items, load=load, kept=pixels, transform=transform)
    stream = ImageStream(images, batch_size=BATCH, workers=workers, seed=0)
    if kept is not None:
        list(stream.batches(0, stream.steps))

    def measure() -> float:
        batches = iter(stream.batches(0, 4 * stream.steps))
        for _ in range(stream.steps):  # the processes start, and fill their queues
            next(batches)
        started = time.perf_counter()
        taken = sum(len(images) for images, _ in batches)
        return taken / (time.perf_counter() - started)

    return measure


class Fixed:
    """The same batch for ever."""

    steps, images, accumulation = 10**6, BATCH, 1

    def batches(self, start: int, stop: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yields it for each step."""
        batch = torch.randn(BATCH, 3, SIZE, SIZE), torch.randint(0, CLASSES, (BATCH,))
        return repeat(batch, stop - start)


def training(name: str) -> Rate:
    """Returns what gives the images per second that a method takes."""
    teacher: Network = timm.create_model("vit_small_patch16_224", num_classes=CLASSES)
    student: Network = timm.create_model("vit_tiny_patch16_224", num_classes=CLASSES)
    lora = Lora(targets=("q", "k", "v", "proj", "fc1", "fc2"), rank=32, alpha=32.0, norms=True)
    phase: Phase
    if name == "slad":
        sharing = Sharing(share="slice")
        (phase,) = JointLora(lora=lora, sharing=sharing, weights=Weights(), schedule=SCHEDULE).phases(teacher, student)
    else:
        (phase,) = StudentOnly(training="full", schedule=SCHEDULE).phases(None, student)
    run = Run(phase, Fixed(), accelerator=make_accelerator("fp32"), seed=0, title=name)
    batches = Fixed().batches(0, 10**6)
    phase.objective.train()

    def measure() -> float:
        started = time.perf_counter()
        for _ in range(STEPS):
            run._advance(batches)
            run._pending.clear()
        return STEPS * BATCH / (time.perf_counter() - started)

    measure()
    return measure


def main() -> None:
    """Measures in rounds, and prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=Path)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    args = parser.parse_args()
    trainings = {name: training(name) for name in ("student_only, full", "slad")}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.images is None:
            sets = {name: draw(folder / name, *size) for name, size in SIZES.items()}
        else:
            sets = {str(args.images): sorted(file for file in args.images.rglob("*") if is_image(file))[:512]}
        loaders = {
            (name, workers, keeps): loading(
                args.images or folder / name, files, workers=workers, kept=folder / "kept" / name if keeps else None
            )
            for name, files in sets.items()
            for workers in (0, 2)
            for keeps in (False, True)
        }
        rates: dict[object, list[float]] = {key: [] for key in [*trainings, *loaders]}
        for _ in range(args.rounds):
            for key, measure in random.sample(sorted((trainings | loaders).items(), key=str), len(rates)):
                rates[key].append(measure())
    for name in trainings:
        print(f"training takes {statistics.median(rates[name]):.0f} images/s: {name}")
    print(
        f"{'images':14}{'workers':>8}{'pixels':>8}{'images/s':>10}"
        + "".join(f"{f'of {name}':>24}" for name in trainings)
    )
    for key in loaders:
        name, workers, keeps = key
        ratios = [
            statistics.median(mine / theirs for mine, theirs in zip(rates[key], rates[other], strict=True))
            for other in trainings
        ]
        row = f"{name:14}{workers:>8}{'kept' if keeps else '':>8}{statistics.median(rates[key]):>10.0f}"
        print(row + "".join(f"{f'{ratio:.1f} x':>24}" for ratio in ratios))


if __name__ == "__main__":
    main()
