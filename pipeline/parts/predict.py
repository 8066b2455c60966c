"""Logits of many images from a torch network."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pipeline.parts.index import Images

Logits = NDArray[np.float32]
BATCH = 256


@torch.inference_mode()
def torch_logits(model: nn.Module, images: Images) -> Logits:
    """Returns logits of shape (images, classes), and takes no more than 256 images at once."""
    device = next(model.parameters()).device
    model.eval()
    parts = (images[start : start + BATCH] for start in range(0, len(images), BATCH))
    return np.concatenate([model(torch.from_numpy(part).to(device)).float().cpu().numpy() for part in parts])
