"""Turns unsigned quantisers, which NNCF puts behind a ReLU, into signed ones, which every runtime takes."""

import numpy as np
import onnx
from onnx import numpy_helper

UNSIGNED_LEVELS, SIGNED_LEVELS = 255, 127


def to_signed(model: onnx.ModelProto) -> int:
    """Makes UINT8 quantisers with zero point 0 INT8 ones over the same range, in place; others stay.

    The scale grows by 255 / 127: values that are never negative lose one of their eight bits.

    Returns:
        How many QuantizeLinear and DequantizeLinear nodes were changed.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = [node for node in model.graph.node if node.op_type in {"QuantizeLinear", "DequantizeLinear"}]
    unsigned = [node for node in nodes if len(node.input) == 3 and _is_unsigned(constants.get(node.input[2]))]
    for name in {node.input[1] for node in unsigned}:
        scale = numpy_helper.to_array(constants[name])
        wider = (scale * (UNSIGNED_LEVELS / SIGNED_LEVELS)).astype(scale.dtype)
        constants[name].CopyFrom(numpy_helper.from_array(wider, name))
    for name in {node.input[2] for node in unsigned}:
        zeros = np.zeros(numpy_helper.to_array(constants[name]).shape, np.int8)
        constants[name].CopyFrom(numpy_helper.from_array(zeros, name))
    for value in model.graph.value_info:
        if value.type.tensor_type.elem_type == onnx.TensorProto.UINT8:
            value.type.tensor_type.elem_type = onnx.TensorProto.INT8
    return len(unsigned)


def _is_unsigned(zero: onnx.TensorProto | None) -> bool:
    return zero is not None and zero.data_type == onnx.TensorProto.UINT8 and not numpy_helper.to_array(zero).any()
