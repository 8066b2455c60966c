"""What do the checks of the data cost? Images per second, first and again, and memory for a million of them.

The images are photographs of one's own (`--images`, a folder with one subfolder per class) or drawn: JPEG files of
224 x 224 pixels. All of `prepare` is timed, with the search for near copies. The million are entries without files:
what was seen of each is made up, and everything else is the real thing, from the list to the written index and its
reading. Each runs in a process of its own, whose peak of resident memory (Linux) is read at its end.

Command: `python -m benchmarks.data_checks`. About 4 minutes on 2 cores.
"""

import argparse
import hashlib
import multiprocessing
import os
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from deploy.errors import ImageError
from deploy.preprocess import count_frames, decode_image, decode_mask
from pipeline.parts.checks.cache import Cache
from pipeline.parts.checks.look import Seen
from pipeline.parts.checks.survey import Survey
from pipeline.parts.index import Item, Items, read_index
from pipeline.parts.sources.folders import list_classes
from pipeline.parts.sources.listing import ALL, Listing
from pipeline.steps.prepare.step import Decoders, Draw, prepare

CLASSES, EACH, SIDE = 10, 400, 224
ENTRIES = 1_000_000
DRAW = Draw(validation_fraction=0.15, test_fraction=0.15, calibration_size=256, per_class=None, split_seed=0, seed=0)
NEAR = 0.95
DECODERS = Decoders(image=decode_image, count_frames=count_frames, mask=decode_mask, broken=ImageError)


def policy() -> dict[str, str]:
    """The default one, but nothing is refused."""
    names = ("broken", "animated", "unpaired", "names", "copies", "near_copies")
    return dict.fromkeys(names, "keep") | {"broken": "drop", "unpaired": "drop"}


def draw_images(folder: Path) -> None:
    """Writes smooth random pictures, which compress about as photographs do."""
    generator = np.random.default_rng(0)
    for label in range(CLASSES):
        (folder / str(label)).mkdir(parents=True)
        for number in range(EACH):
            coarse = Image.fromarray(generator.integers(0, 256, (14, 14, 3), dtype=np.uint8))
            fine = np.asarray(coarse.resize((SIDE, SIDE), Image.Resampling.BICUBIC), np.int16)
            noisy = (fine + generator.integers(-12, 13, fine.shape)).clip(0, 255).astype(np.uint8)
            Image.fromarray(noisy).save(folder / str(label) / f"{number}.jpg", quality=85)


def check(images: Path, cache: Path, output: Path) -> None:
    """Prepares a folder of images, and says how long it took."""
    output.mkdir()
    started = time.perf_counter()
    listing = list_classes(images)
    count = sum(map(len, listing.parts.values()))
    with Cache(cache) as known:
        prepare(
            output,
            listing,
            source="folder",
            decoders=DECODERS,
            survey=Survey(known, workers=0),
            policy=policy(),
            near_similarity=NEAR,
            ignore=None,
            draws=DRAW,
        )
    seconds = time.perf_counter() - started
    print(f"{count} images: {seconds:.1f} s, {count / seconds:.0f} images/s")


class MadeUp(Survey):
    """Sees what no file holds."""

    def look(self, paths: Iterable[Path], look: object, *, count: int, title: str) -> Iterator[Seen]:  # noqa: ARG002
        """Yields a different picture for each path."""
        generator = np.random.default_rng(0)
        for path in paths:
            sha256 = hashlib.sha256(os.fsencode(path)).hexdigest()
            yield Seen(sha256, SIDE, SIDE, phash=int(generator.integers(0, 2**63, dtype=np.uint64)))


def peak_mb() -> int:
    """The most memory this process has held."""
    status = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024 // 1_000_000


def listed(root: Path) -> Listing:
    """A million entries of a thousand classes."""
    items = Items.of(Item(f"class_{n % 1000:03d}/image_{n:07d}.jpg", n % 1000, "") for n in range(ENTRIES))
    return Listing(labels=tuple(f"class_{number:03d}" for number in range(1000)), root=root, parts={ALL: items})


def handle_million(output: Path) -> None:
    """Prepares entries without files, reads the index, and says what it took."""
    output.mkdir()
    before = peak_mb()
    started = time.perf_counter()
    with Cache(None) as nothing:
        prepare(
            output,
            listed(output / "images"),
            source="made up",
            decoders=replace(DECODERS, image=lambda _: Image.new("RGB", (8, 8))),
            survey=MadeUp(nothing, workers=1),
            policy=policy(),
            near_similarity=NEAR,
            ignore=None,
            draws=DRAW,
        )
    prepared = time.perf_counter()
    index, _ = read_index(output)
    read = time.perf_counter()
    total = sum(len(index.parts[name]) for name in ("train", "validation", "test"))
    print(
        f"{total} entries: prepared in {prepared - started:.0f} s, read in {read - prepared:.0f} s, "
        f"peak {peak_mb()} MB ({before} MB of it before: Python and the libraries)"
    )


def main() -> None:
    """Runs both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=Path)
    args = parser.parse_args()
    alone = multiprocessing.get_context("spawn")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if args.images is None:
            draw_images(folder / "images")
        images = args.images or folder / "images"
        for run, arguments in (
            (check, (images, folder / "cache.sqlite", folder / "first")),
            (check, (images, folder / "cache.sqlite", folder / "again")),
            (handle_million, (folder / "million",)),
        ):
            process = alone.Process(target=run, args=arguments)
            process.start()
            process.join()
            if process.exitcode:
                raise SystemExit(process.exitcode)


if __name__ == "__main__":
    main()
