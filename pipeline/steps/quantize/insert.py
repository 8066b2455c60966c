"""Quantisers of ours, put into an ONNX graph: for what NNCF leaves out, and to try one group of layers alone."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from pipeline.parts.index import Images
from pipeline.parts.predict_onnx import onnx_tensors

LEVELS = 127  # of symmetric signed INT8 on either side of 0; -128 is not used

Ends = Mapping[tuple[str, int], float]
"""Inputs of nodes, by the node's name and the input's place, with the largest absolute value they take."""


def insert_quantisers(model: onnx.ModelProto, ends: Ends) -> onnx.ModelProto:
    """Returns a copy with a QuantizeLinear and DequantizeLinear before each of `ends`: symmetric, signed, per tensor.

    The scale is the largest value / 127; one that is 0 throughout has scale 1, which keeps it 0.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    places = {node.name: node for node in copy.graph.node}
    added: dict[str, list[onnx.NodeProto]] = {}
    for (name, place), largest in ends.items():
        node = places[name]
        prefix = f"{name}/input_{place}"
        scale, zero, low, back = (f"{prefix}/{what}" for what in ("scale", "zero_point", "int8", "dequantised"))
        copy.graph.initializer.extend(
            [
                numpy_helper.from_array(np.float32(largest / LEVELS or 1.0), scale),
                numpy_helper.from_array(np.int8(0), zero),
            ]
        )
        added.setdefault(name, []).extend(
            [
                helper.make_node("QuantizeLinear", [node.input[place], scale, zero], [low], f"{prefix}/QuantizeLinear"),
                helper.make_node("DequantizeLinear", [low, scale, zero], [back], f"{prefix}/DequantizeLinear"),
            ]
        )
        node.input[place] = back
    nodes = [each for node in copy.graph.node for each in (*added.get(node.name, ()), node)]
    del copy.graph.node[:]
    copy.graph.node.extend(nodes)
    return copy


def round_weights(weights: NDArray[np.float32], *, axis: int) -> NDArray[np.float32]:
    """Returns weights as symmetric signed INT8 keeps them, with one scale along `axis`, of outputs."""
    others = tuple(place for place in range(weights.ndim) if place != axis)
    scales = np.abs(weights).max(axis=others, keepdims=True) / LEVELS
    rounded: NDArray[np.float32] = (np.rint(weights / np.where(scales, scales, 1)) * scales).astype(np.float32)
    return rounded


def largest_values(model: onnx.ModelProto, tensors: Sequence[str], *, images: Images) -> dict[str, float]:
    """Returns the largest absolute value that each of `tensors` takes over the images."""
    largest = dict.fromkeys(tensors, 0.0)
    for values in onnx_tensors(model, tensors, images=images):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max()))
    return largest
