"""Logits of many images from a torch network."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

Images = NDArray[np.float32]
Logits = NDArray[np.float32]
BATCH = 256


@torch.inference_mode()
def torch_logits(model: nn.Module, images: Images) -> Logits:
    """Returns logits of shape (images, classes) for images of shape (images, 3, height, width)."""
    device = next(model.parameters()).device
    model.eval()
    parts = [model(torch.from_numpy(part).to(device)).float().cpu().numpy() for part in _chunks(images)]
    return np.concatenate(parts)


def _chunks(images: Images) -> list[Images]:
    return [images[start : start + BATCH] for start in range(0, len(images), BATCH)]
