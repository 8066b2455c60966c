"""One small network as an ONNX file, and images that it gives different answers for."""

import numpy as np
import pytest
import torch

from pipeline.steps.export import to_onnx
from tests import tiny


def photographs(count=6, size=tiny.SIZE, seed=0):
    """Images whose neighbouring pixels are alike, of shape (count, 3, size, size)."""
    generator = np.random.default_rng(seed)
    coarse = generator.normal(size=(count, 3, 4, 4))
    return np.kron(coarse, np.ones((1, 1, size // 4, size // 4))).astype(np.float32)


@pytest.fixture(scope="session")
def network():
    model = tiny.model(tiny.STUDENT).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # equal weights would become one initialiser
            parameter.add_(0.1 * torch.randn(parameter.shape))
    return to_onnx(model, torch.zeros(1, 3, tiny.SIZE, tiny.SIZE), opset=18)


@pytest.fixture(scope="session")
def images():
    return photographs()
