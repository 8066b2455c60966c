"""Images that show the same scene: candidates by perceptual hash, confirmed by their pixels."""

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.cluster.hierarchy import DisjointSet
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

DISTANCE = 8  # bits of 64 in which candidates may differ; of the pairs with more, nearly all show different things
SIDE = 16  # pixels of the small pictures that are compared
AT_ONCE = 1 << 20  # distances
HELD = 1 << 15  # small pictures in memory
FLAT = 1.0  # standard deviation, of 255, below which a picture shows nothing

Rows = NDArray[np.int64]
Similar = Callable[[int, int], float]
"""Gives how alike two rows are."""
Links = list[tuple[int, int, float]]
"""Two rows that show one scene, and how alike they are."""


def link(hashes: NDArray[np.uint64], similar: Similar, *, threshold: float) -> Links:
    """Finds links between images, over which all that show one scene are connected.

    Rows whose hashes differ in at most 8 bits are compared, unless links connect them already. Of rows with equal
    hashes those that are linked to one before them are compared with no others: that one stands for them.

    Args:
        hashes: of shape (count,).
        similar: correlation of two rows.
        threshold: correlation from which two rows show one scene.
    """
    _, inverse, counts = np.unique(hashes, return_inverse=True, return_counts=True)
    order = np.argsort(inverse, kind="stable")
    starts = np.cumsum(counts) - counts
    links: Links = []
    rows: list[int] = []
    for place in np.flatnonzero(counts > 1).tolist():
        equal = order[starts[place] : starts[place] + counts[place]]
        rows += _representatives(equal.tolist(), similar, threshold, links)
    nodes = np.sort(np.concatenate([order[starts[counts == 1]], np.array(rows, np.int64)]))
    del inverse, order, starts, counts
    scene, sets, joined = np.arange(len(nodes)), DisjointSet(), len(links)
    for left, right in pairs_within(hashes[nodes], DISTANCE):
        apart = scene[left] != scene[right]
        for one, other in zip(nodes[left[apart]].tolist(), nodes[right[apart]].tolist(), strict=True):
            sets.add(one)
            sets.add(other)
            if not sets.connected(one, other) and (score := similar(one, other)) >= threshold:
                sets.merge(one, other)
                links.append((one, other, score))
        if len(links) > joined:  # the pairs that follow are sorted out all at once
            joined = len(links)
            ends = np.searchsorted(nodes, [link[:2] for link in links if link[0] in sets])
            scene = connected(len(nodes), ends)
    return links


def connected(count: int, ends: NDArray[np.int64]) -> NDArray[np.int64]:
    """Gives rows that are connected one number.

    Args:
        count: of rows.
        ends: of the connections, of shape (connections, 2).
    """
    graph = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(count, count))
    number: NDArray[np.int64] = connected_components(graph, directed=False)[1].astype(np.int64)
    return number


def _representatives(rows: Sequence[int], similar: Similar, threshold: float, links: Links) -> list[int]:
    """Links rows of one hash to the first that they are like; returns those that are like none before them."""
    found: list[int] = []
    for row in rows:
        for representative in found:
            score = similar(representative, row)
            if score >= threshold:
                links.append((representative, row, score))
                break
        else:
            found.append(row)
    return found


def pairs_within(hashes: NDArray[np.uint64], distance: int) -> Iterator[tuple[Rows, Rows]]:
    """Yields the places of hashes that differ in at most `distance` bits, many pairs at once, some more than once.

    Of hashes that differ in d bits, cut into d + 1 bands, one band at least is equal: only those are compared.

    Args:
        hashes: of shape (count,).
        distance: 0 to 63.
    """
    edges = np.linspace(0, 64, distance + 2).astype(int)
    for low, high in pairwise(edges):
        band = (hashes >> np.uint64(low)) & np.uint64((1 << int(high - low)) - 1)
        order = np.argsort(band, kind="stable")
        for bucket in np.split(order, np.flatnonzero(np.diff(band[order])) + 1):
            # Some rows at a time: all distances at once may not fit into memory.
            rows = max(1, AT_ONCE // max(1, len(bucket)))
            for start in range(0, len(bucket) - 1, rows):
                few, rest = bucket[start : start + rows], bucket[start + 1 :]
                near = np.bitwise_count(hashes[few][:, None] ^ hashes[rest]) <= distance
                left, right = np.nonzero(np.triu(near))  # each row with what follows it
                if len(left):
                    yield few[left], rest[right]


def similarity(decode: Callable[[int], Image.Image]) -> Similar:
    """Returns what gives Pearson's correlation of two images shrunk to 16 x 16 RGB pixels, in -1..1.

    Flat ones have 1 or 0. An image is decoded once as long as no more than 32,768 others came after it.

    Args:
        decode: gives the image of a row, in RGB.
    """

    @lru_cache(maxsize=HELD)
    def small(row: int) -> NDArray[np.uint8]:
        return np.asarray(decode(row).resize((SIDE, SIDE), Image.Resampling.BOX))

    def similar(one: int, other: int) -> float:
        left, right = (small(row).astype(np.float64) for row in (one, other))
        spread = left.std(), right.std()
        if min(spread) < FLAT:
            return float(max(spread) < FLAT and abs(left.mean() - right.mean()) < FLAT)
        return float(np.corrcoef(left.ravel(), right.ravel())[0, 1])

    return similar
