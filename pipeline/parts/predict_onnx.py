"""Logits of many images from an ONNX file."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.parts.index import Images

Logits = NDArray[np.float32]


def onnx_logits(path: Path, images: Images) -> Iterator[Logits]:
    """Yields the logits of each image, of shape (classes, ...), as ONNX Runtime's CPU provider computes them."""
    run = onnx_function(path)
    for place in range(len(images)):
        yield run(images[place : place + 1])[0]


def onnx_function(path: Path) -> Callable[[NDArray[np.float32]], Logits]:
    """Loads an ONNX file of one input and one output as a function."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: notes on graph optimisation are no news to a user
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name

    def run(images: NDArray[np.float32]) -> Logits:
        result: Logits = session.run(None, {name: images})[0]
        return result

    return run
