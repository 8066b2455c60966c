"""Refuses an ONNX file whose quantisers not every runtime takes.

TensorRT rejects unsigned and asymmetric quantisers; a file without any is not INT8 whatever its name says.
"""

import numpy as np
import onnx
from onnx import numpy_helper

from pipeline.base.errors import ModelError


def check_quantizers(model: onnx.ModelProto) -> int:
    """Checks that every quantiser is signed 8-bit with zero point 0 and a positive constant scale.

    Returns:
        The number of QuantizeLinear and DequantizeLinear nodes.

    Raises:
        ModelError: naming each offending node, or that there is no quantiser at all.
    """
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    if not any(node.op_type == "QuantizeLinear" for node in nodes):
        msg = "the model holds no QuantizeLinear node: nothing was quantised; check `quantize.variants`"
        raise ModelError(msg)
    faults = [f"{node.name}: {fault}" for node in nodes if (fault := _fault(node, constants))]
    if faults:
        msg = f"{len(faults)} quantiser(s) are not symmetric signed INT8: {'; '.join(faults[:5])}"
        raise ModelError(msg)
    return len(nodes)


def _fault(node: onnx.NodeProto, constants: dict[str, np.ndarray]) -> str | None:
    scale = constants.get(node.input[1])
    if scale is None:
        return f"scale {node.input[1]!r} is no constant"
    if not (scale > 0).all():
        return f"scale {scale.min()} is not positive"
    if len(node.input) < 3:
        return "zero point is absent, which means UINT8"
    zero = constants.get(node.input[2])
    if zero is None:
        return f"zero point {node.input[2]!r} is no constant"
    if zero.dtype not in (np.int8, np.int32):  # int32: biases
        return f"zero point is {zero.dtype}, not int8"
    return f"zero point is {int(zero.flat[np.abs(zero).argmax()])}, not 0" if zero.any() else None
