"""Which groups of layers quantisation hurts most: each is quantised alone, and the answers are compared."""

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.base.progress import track
from pipeline.parts.index import Images
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.steps.quantize.insert import insert_quantisers, largest_values, round_weights


def sensitivities(model: onnx.ModelProto, groups: Mapping[str, Sequence[str]], *, images: Images) -> dict[str, float]:
    """Returns the relative noise in the logits that quantising each group alone makes, the largest first.

    The noise is sum (y - y_q)^2 / sum y^2 over the images. Inputs are quantised per tensor by their largest value and
    weights per output channel: no SmoothQuant, no bias correction; they would need a calibration for each group.

    Args:
        model: the FP32 network as it was exported.
        groups: nodes by group; of a node without weights, as attention has them, both inputs are quantised.
        images: some calibration images; their logits are kept in memory.
    """
    nodes = {node.name: node for node in model.graph.node}
    constants = {tensor.name for tensor in model.graph.initializer}
    inputs = {
        (name, place): tensor
        for names in groups.values()
        for name in names
        for place, tensor in enumerate(nodes[name].input[:2])
        if tensor not in constants
    }
    largest = largest_values(model, sorted(set(inputs.values())), images=images)
    exact = [logits.copy() for logits in onnx_logits(model.SerializeToString(), images)]
    energy = sum(float(np.square(logits, dtype=np.float64).sum()) for logits in exact)
    noise = {}
    for group, names in track(groups.items(), title="sensitivity of groups", total=len(groups)):
        ends = {end: largest[tensor] for end, tensor in inputs.items() if end[0] in names}
        quantised = insert_quantisers(model, ends)
        weighted = (nodes[name] for name in names if nodes[name].input[1] in constants)
        _round(quantised, {node.input[1]: _axis(node) for node in weighted})
        found = zip(onnx_logits(quantised.SerializeToString(), images), exact, strict=True)
        noise[group] = sum(float(np.square(one - other, dtype=np.float64).sum()) for one, other in found)
    shares = {group: value / max(energy, 1e-30) for group, value in noise.items()}
    return dict(sorted(shares.items(), key=lambda item: -item[1]))


def _axis(node: onnx.NodeProto) -> int:
    """Returns the axis of a node's weights that its outputs lie along."""
    transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
    return 0 if node.op_type == "Conv" or transposed else -1


def _round(model: onnx.ModelProto, axes: Mapping[str, int]) -> None:
    """Rounds weights to INT8, in place."""
    for tensor in model.graph.initializer:
        if tensor.name in axes:
            weights = numpy_helper.to_array(tensor)
            rounded = round_weights(weights, axis=axes[tensor.name] % weights.ndim)
            tensor.CopyFrom(numpy_helper.from_array(rounded, tensor.name))
