"""Folds SmoothQuant's multiplications into the LayerNormalization before them: the same values, one operator less."""

from collections import Counter

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper


def fold_smoothing(model: onnx.ModelProto) -> int:
    """Multiplies scale and bias of a LayerNormalization instead of its output, in place: (x g + b) s = x (g s) + (b s).

    NNCF leaves a Mul by a constant before every quantised layer. Two of a block's four follow a LayerNormalization,
    whose output nothing else reads.

    Returns:
        How many were folded.
    """
    graph = model.graph
    constants = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in graph.node for name in node.input)
    norms = {node.output[0]: node for node in graph.node if node.op_type == "LayerNormalization"}
    folded = []
    for node in graph.node:
        if node.op_type != "Mul" or node.input[0] not in norms or node.input[1] not in constants:
            continue
        norm = norms[node.input[0]]
        factor = numpy_helper.to_array(constants[node.input[1]])
        width = numpy_helper.to_array(constants[norm.input[1]]).shape
        if readers[node.input[0]] > 1 or factor.shape[-1:] != width or factor.size != width[0]:
            continue
        for place in range(1, len(norm.input)):  # equal weights of several layers may be one initialiser
            values: NDArray[np.float32] = numpy_helper.to_array(constants[norm.input[place]]) * factor.reshape(-1)
            name = f"{norm.input[place]}/{node.name}"
            graph.initializer.append(numpy_helper.from_array(values, name))
            norm.input[place] = name
        norm.output[0] = node.output[0]
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    _drop_unused(graph)
    return len(folded)


def _drop_unused(graph: onnx.GraphProto) -> None:
    used = {name for node in graph.node for name in node.input}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in used]:
        graph.initializer.remove(tensor)
