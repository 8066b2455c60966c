"""Labelled images drawn from iterated function systems: free of licences, unlimited, and enough to pretrain on.

Kataoka et al., "Pre-training without Natural Images" (ACCV 2020). A class is one iterated function system: ``n``
affine maps ``x -> A_k x + b_k`` with entries uniform in [-1, 1], map ``k`` being drawn with probability
proportional to ``|det A_k|``. The attractor of that random walk is the image. Instances of a class scale the
parameters by a few percent and flip the picture.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

MAX_MAPS = 6
WALKERS = 256  # parallel random walks per image
BURN_IN = 20  # steps before a walk has reached the attractor
STEPS = 8  # recorded steps per walk: 2048 points an image
EDGE = 24  # points left outside the frame on each side, about 1 percent
MIN_FILL = 0.12  # share of cells that must be hit; emptier systems are specks without structure
MAX_FILL = 0.75  # fuller ones are clouds


@dataclass(frozen=True)
class Systems:
    """A batch of iterated function systems.

    Attributes:
        affine: maps of shape (systems, MAX_MAPS, 2, 3): the matrix A in the first two columns, b in the last.
        probability: cumulative draw probabilities of shape (systems, MAX_MAPS); unused maps have none.
    """

    affine: NDArray[np.float32]
    probability: NDArray[np.float32]


def _cumulative(affine: NDArray[np.float32], used: NDArray[np.bool_]) -> NDArray[np.float32]:
    determinant = np.abs(affine[..., 0, 0] * affine[..., 1, 1] - affine[..., 0, 1] * affine[..., 1, 0])
    weight = np.where(used, determinant + 1e-3, 0.0)
    return np.cumsum(weight / weight.sum(axis=1, keepdims=True), axis=1).astype(np.float32)


def render(systems: Systems, *, size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """Draws each system once.

    Args:
        systems: the systems to draw.
        size: side of the square image in pixels.
        generator: source of the random walks.

    Returns:
        Grey images of shape (systems, size, size); a system that diverges gives an image of zeros.
    """
    count = len(systems.affine)
    rows = np.arange(count)[:, None]
    points = np.zeros((count, WALKERS, 2), dtype=np.float32)
    track = np.empty((count, STEPS, WALKERS, 2), dtype=np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # divergence is expected and handled below
        for step in range(BURN_IN + STEPS):
            draw = generator.random((count, WALKERS, 1), dtype=np.float32)
            chosen = np.minimum((draw > systems.probability[:, None]).sum(axis=2), MAX_MAPS - 1)
            maps = systems.affine[rows, chosen]
            points = np.einsum("swij,swj->swi", maps[..., :2], points) + maps[..., 2]
            if step >= BURN_IN:
                track[:, step - BURN_IN] = points
    visited = track.reshape(count, -1, 2)
    finite = np.isfinite(visited).all(axis=(1, 2)) & (np.abs(np.nan_to_num(visited)).max(axis=(1, 2)) < 1e3)
    visited[~finite] = 0
    # The frame spans the bulk of the points: a few strays would otherwise shrink the picture to a speck.
    low, high = np.partition(visited, [EDGE, -EDGE - 1], axis=1)[:, [EDGE, -EDGE - 1]].swapaxes(0, 1)[..., None, :]
    cell = np.clip((visited - low) / np.maximum(high - low, 1e-6) * (size - 1), 0, size - 1).astype(np.int64)
    flat = (rows * size + cell[..., 1]) * size + cell[..., 0]
    hits = np.bincount(flat.ravel(), minlength=count * size * size).reshape(count, size, size)
    hits[~finite] = 0
    # A logarithm keeps thin branches visible beside dense cores.
    grey = np.log1p(hits) / np.maximum(np.log1p(hits).max(axis=(1, 2), keepdims=True), 1e-6)
    pixels: NDArray[np.uint8] = (grey * 255).astype(np.uint8)
    return pixels


def draw_systems(classes: int, *, size: int, generator: np.random.Generator) -> Systems:
    """Draws random systems until `classes` of them fill between MIN_FILL and MAX_FILL of an image."""
    affine, probability, found = [], [], 0
    while found < classes:
        candidate = generator.uniform(-1, 1, (512, MAX_MAPS, 2, 3)).astype(np.float32)
        used = np.arange(MAX_MAPS) < generator.integers(2, MAX_MAPS + 1, (512, 1))
        systems = Systems(candidate, _cumulative(candidate, used))
        fill = (render(systems, size=size, generator=generator) > 0).mean(axis=(1, 2))
        good = (fill > MIN_FILL) & (fill < MAX_FILL)
        affine.append(candidate[good])
        probability.append(systems.probability[good])
        found += int(good.sum())
    return Systems(np.concatenate(affine)[:classes], np.concatenate(probability)[:classes])


def fractal_images(
    *, classes: int, instances: int, size: int, seed: int
) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draws a labelled set of fractal images.

    Args:
        classes: number of systems, each a class.
        instances: images per class.
        size: side of the square images in pixels.
        seed: fixes every draw.

    Returns:
        Grey images of shape (classes * instances, size, size), and labels of shape (classes * instances,).
    """
    generator = np.random.default_rng(seed)
    systems = draw_systems(classes, size=size, generator=generator)
    images = []
    for _ in range(instances):
        jitter = generator.uniform(0.9, 1.1, systems.affine.shape).astype(np.float32)
        drawn = render(Systems(systems.affine * jitter, systems.probability), size=size, generator=generator)
        images.append(drawn[:, :: generator.choice([-1, 1]), :: generator.choice([-1, 1])])
    return np.concatenate(images), np.tile(np.arange(classes, dtype=np.int64), instances)
