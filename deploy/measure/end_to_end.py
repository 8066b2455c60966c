"""From an image file to an answer, step by step and as a whole."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Preprocess
from deploy.preprocess import decode_image, prepare_image
from deploy.runtime import Engine

STEPS = ("decode", "preprocess", "copy", "inference", "postprocess")
TOTAL = "total"
FEWEST, LIMIT_NS, EVERY_NS = 8, 30_000_000_000, 2_000_000_000
Clock = Callable[[], int]


def end_to_end(
    engine: Engine,
    images: Sequence[Path],
    preprocess: Preprocess,
    *,
    rounds: int,
    on_progress: Callable[[str], None],
    clock: Clock = time.perf_counter_ns,
) -> dict[str, list[int]]:
    """Time each step of each image, and the whole way of the same image without a look at the clock between.

    The files are in the system's cache: what is timed is decoding, not the disk. The order of the two alternates, so
    that neither always finds the file's pages and the engine's weights in the processor's caches.

    Args:
        engine: the engine.
        images: files.
        preprocess: of the engine's bundle.
        rounds: how often all images are taken, as far as half a minute allows.
        on_progress: called with one line about every two seconds.
        clock: nanoseconds from a fixed point.

    Returns:
        Nanoseconds by step, and `total`. `inference` is a query less the copies, which are timed alone; without `copy`
        the engine works on the caller's arrays.

    Raises:
        ImageError: a file is missing, or is no image.
        EngineError: the engine failed.
    """
    found: dict[str, list[int]] = {name: [] for name in (*STEPS, TOTAL)}
    for path in images[:1]:  # unrecorded: Pillow loads its plug-ins with the first image
        _apart(engine, path, preprocess, clock)
    began = last = clock()
    for turn, path in enumerate([path for _ in range(rounds) for path in images]):
        if turn >= FEWEST and clock() - began > LIMIT_NS:
            break
        if clock() - last >= EVERY_NS:
            last = clock()
            on_progress(f"from file to answer: {turn} images")
        for apart in (turn % 2 == 0, turn % 2 == 1):
            if apart:
                for name, value in _apart(engine, path, preprocess, clock).items():
                    found[name].append(value)
            else:
                start = clock()
                answer(engine.run(prepare_image(decode_image(path), preprocess)[None])[0])
                found[TOTAL].append(clock() - start)
    return {name: values for name, values in found.items() if values}


def _apart(engine: Engine, path: Path, preprocess: Preprocess, clock: Clock) -> dict[str, int]:
    start = clock()
    image = decode_image(path)
    decoded = clock()
    prepared = prepare_image(image, preprocess)[None]
    ready = clock()
    copies = engine.copy(prepared)
    copied = clock()
    logits = engine.run(prepared)
    run = clock()
    answer(logits[0])
    steps = {"decode": decoded - start, "preprocess": ready - decoded, "postprocess": clock() - run}
    copy = copied - ready if copies else 0
    return steps | {"inference": max(0, run - copied - copy)} | ({"copy": copy} if copies else {})


def answer(logits: NDArray[np.float32]) -> Any:
    """Turn logits of shape (classes, ...) into the label and its probability, or the labels of all pixels."""
    if logits.ndim > 1:
        return logits.argmax(axis=0).astype(np.uint8)
    odds = np.exp(logits.astype(np.float64) - logits.max())
    best = int(odds.argmax())
    return best, float(odds[best] / odds.sum())
