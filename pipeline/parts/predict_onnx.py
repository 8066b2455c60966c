"""Logits of many images from an ONNX file."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
from numpy.typing import NDArray

from pipeline.parts.index import Images

Logits = NDArray[np.float32]
PROVIDERS = ["CPUExecutionProvider"]
# Quantises the bias of a Conv or Gemm with the product of two scales. ONNX Runtime 1.31 multiplies FP16 scales in FP16,
# where the product may become 0: EfficientNet-B0 in INT8 with an FP16 rest is then off by half its largest logit.
DISABLED = ["WeightBiasQuantization"]


def _options() -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = 3  # errors only: notes on graph optimisation are no news to a user
    return options


def onnx_logits(model: Path | bytes, images: Images) -> Iterator[Logits]:
    """Yields the logits of each image, of shape (classes, ...), as ONNX Runtime's CPU provider computes them."""
    run = onnx_function(model)
    for place in range(len(images)):
        yield run(images[place : place + 1])[0]


def onnx_tensors(
    model: onnx.ModelProto, tensors: Sequence[str], *, images: Images
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yields the values that tensors within a graph take for each image, by their names.

    Nothing is fused, so that every tensor is what the file says it is.
    """
    exposed = onnx.ModelProto()
    exposed.CopyFrom(model)
    fed = {value.name for value in model.graph.input}
    known = {value.name for value in model.graph.output}
    inner = [name for name in tensors if name not in fed]
    exposed.graph.output.extend(onnx.ValueInfoProto(name=name) for name in inner if name not in known)
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(exposed.SerializeToString(), options, providers=PROVIDERS)
    name = session.get_inputs()[0].name
    for place in range(len(images)):
        image = images[place : place + 1]
        values = dict(zip(inner, session.run(inner, {name: image}), strict=True)) if inner else {}
        yield values | {tensor: image for tensor in tensors if tensor in fed}


def onnx_function(model: Path | bytes) -> Callable[[NDArray[np.float32]], Logits]:
    """Loads an ONNX file of one input and one output, or its content, as a function."""
    session = ort.InferenceSession(model, _options(), providers=PROVIDERS, disabled_optimizers=DISABLED)
    name = session.get_inputs()[0].name

    def run(images: NDArray[np.float32]) -> Logits:
        result: Logits = session.run(None, {name: images})[0]
        return result

    return run
