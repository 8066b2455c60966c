"""One seed for everything that draws."""

import hashlib
import random

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seeds Python, NumPy and torch, and asks torch for deterministic kernels."""
    draw_from(seed)
    torch.backends.cudnn.benchmark = False
    torch.use_deterministic_algorithms(True, warn_only=True)


def draw_from(seed: int) -> None:
    """Seeds Python's, NumPy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derived(seed: int, *place: int | str) -> int:
    """Returns a seed for one place, such as an epoch and an image: below 2^63, and unlike that of any other place.

    What is drawn at a place then depends on nothing that was drawn before: not on the number of worker processes, and
    not on whether the run was interrupted.
    """
    text = ":".join(str(part) for part in (seed, *place))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big") >> 1
