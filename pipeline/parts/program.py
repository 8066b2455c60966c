"""The network as torch.export saves it: what compilers of torch's own graphs take, on a device without its code."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.export import ExportedProgram
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.parts.index import Images

Logits = NDArray[np.float32]
PROGRAM = "program.pt2"


def save_program(model: nn.Module, image: torch.Tensor, folder: Path) -> Path:
    """Writes `program.pt2` in FP32 for inputs of exactly the shape of `image`, the same bytes each time.

    No pickle is in the file, and none is read with it. torch stores weights and constants as plain bytes, but for
    subclasses of tensors, which no network here has: those it would load with `weights_only=False`. Sample inputs it
    stores by `torch.save` and loads with `weights_only=True` first but, should that fail, without: they are left out.

    Args:
        model: the network.
        image: of shape (1, 3, height, width).
        folder: the bundle.
    """
    with sdpa_kernel(SDPBackend.MATH):  # as the ONNX file is traced
        program = torch.export.export(model.eval(), (image,), strict=False)
    for module in program.graph_module.modules():
        if isinstance(module, torch.fx.GraphModule):
            for node in module.graph.nodes:
                node.meta.pop("stack_trace", None)  # paths of this machine
    program.example_inputs = None
    path = folder / PROGRAM
    torch.export.save(program, path)
    return path


def load_program(path: Path) -> ExportedProgram:
    """Loads what `save_program` wrote."""
    return torch.export.load(path)


def program_logits(path: Path, images: Images) -> Iterator[Logits]:
    """Yields the logits of each image, of shape (classes, ...), as the saved file computes them."""
    run = load_program(path).module()
    with torch.inference_mode():
        for place in range(len(images)):
            logits: Logits = run(torch.from_numpy(images[place : place + 1])).numpy()
            yield logits[0]
