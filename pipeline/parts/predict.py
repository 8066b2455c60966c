"""Logits of many images from a torch network."""

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.parts.index import Images

Logits = NDArray[np.float32]
MOST = 256  # images
NUMBERS = 3 * 2**22  # of all of them


def at_once(numbers: int) -> int:
    """Returns how many images are predicted at once.

    Args:
        numbers: of one image, or of its logits where they are more.
    """
    return max(1, min(MOST, NUMBERS // numbers))


@torch.inference_mode()
def _predicted(model: nn.Module, images: NDArray[np.float32]) -> Logits:
    device = next(model.parameters()).device
    logits: Logits = model(torch.from_numpy(images).to(device)).float().cpu().numpy()
    return logits


def torch_logits(model: nn.Module, images: Images) -> Iterator[Logits]:
    """Yields the logits of each image, of shape (classes, ...)."""
    model.eval()
    image = images[:1]
    first = _predicted(model, image)
    yield first[0]
    size = at_once(max(image.size, first.size))
    for start in range(1, len(images), size):
        yield from _predicted(model, images[start : start + size])
