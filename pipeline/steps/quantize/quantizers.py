"""The rules on single quantisers: type, zero point, scale, axis, opset, and what stands behind them."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from pipeline.steps.quantize import rules
from pipeline.steps.quantize.graph import DEQUANTIZE, QUANTIZE, STANDARD, Node, View
from pipeline.steps.quantize.patterns import LAYOUT, MULTIPLIERS
from pipeline.steps.quantize.rules import Rule

INT8, INT32 = onnx.TensorProto.INT8, onnx.TensorProto.INT32
UNSIGNED = ("UINT2", "UINT4", "UINT8", "UINT16")
HALF = {onnx.TensorProto.FLOAT16: "FP16", onnx.TensorProto.BFLOAT16: "BF16"}
SCALES_OPSET = 19  # the first with FP16 scales
# The opset that first knows an attribute of either operator.
SINCE = {
    QUANTIZE: {"axis": 13, "saturate": 19, "block_size": 21, "output_dtype": 21, "precision": 23},
    DEQUANTIZE: {"axis": 13, "block_size": 21, "output_dtype": 23},
}

Faults = Iterator[tuple[Rule, str]]


def quantizer_faults(view: View, node: Node, opset: int) -> Faults:
    """Yields every rule that a QuantizeLinear or DequantizeLinear breaks, with what was found."""
    before = view.makers.get(node.input(0))
    if node.op == QUANTIZE or before is None or before.op != QUANTIZE or before.inputs[1:] != node.inputs[1:]:
        # A DequantizeLinear with the parameters of its QuantizeLinear has the faults of that one.
        yield from _type_faults(view, node)
        yield from _zero_faults(view, node)
        yield from _scale_faults(view, node)
        yield from _per_channel_faults(view, node)
    if node.op == DEQUANTIZE:
        yield from _axis_faults(view, node)
    yield from _opset_faults(view, node, opset)


def _type_faults(view: View, node: Node) -> Faults:
    code, where = _stored_type(view, node)
    if code in (INT8, None):
        return
    name = onnx.TensorProto.DataType.Name(code)
    if name in UNSIGNED:
        yield rules.UNSIGNED, f"{where} {name}, not INT8"
    elif code == INT32:
        yield rules.INT32, f"{where} INT32, not INT8"
    else:
        yield rules.NOT_INT8, f"{where} {name}, not INT8"


def _stored_type(view: View, node: Node) -> tuple[int | None, str]:
    """The type that a quantiser stores, None where the file does not say, and where it is written."""
    zero = view.constants.get(node.input(2))
    if zero is not None:
        return zero.data_type, "zero point is"
    if node.op == QUANTIZE:
        code = node.attributes.get("output_dtype", 0)
        if code:
            return code, "`output_dtype` is"
        return (None, "") if node.input(2) else (onnx.TensorProto.UINT8, "zero point is absent, which means")
    stored = view.constants.get(node.input(0))
    if stored is not None:
        return stored.data_type, "data is"
    before = view.makers.get(node.input(0))
    return _stored_type(view, before) if before is not None and before.op == QUANTIZE else (None, "")


def _zero_faults(view: View, node: Node) -> Faults:
    name = node.input(2)
    if not name:
        return
    if name not in view.constants:
        yield rules.CONSTANT, f"zero point {name!r} is no constant"
        return
    zero = view.value(name)
    if zero is not None and zero.any():
        yield rules.ZERO_POINT, f"zero point is {zero.flat[np.abs(zero).argmax()]:g}, not 0"


def _scale_faults(view: View, node: Node) -> Faults:
    name = node.input(1)
    if name not in view.constants:
        yield rules.CONSTANT, f"scale {name!r} is no constant"
        return
    scale = view.value(name)
    if scale is None:
        return
    wrong = scale[~(np.isfinite(scale) & (scale > 0))]
    if wrong.size:
        yield rules.SCALE, f"scale {wrong.flat[0]:g} is not positive and finite ({wrong.size} of {scale.size})"


def _per_channel_faults(view: View, node: Node) -> Faults:
    """Scales per channel: of weights only, one per element of the axis, as many zero points as scales."""
    shape = _parameter_shape(view, node, 1)
    if shape is None:
        return
    zeros = _parameter_shape(view, node, 2)
    if zeros is not None and zeros != shape and (_size(zeros) != 1 or _size(shape) != 1):
        yield rules.SHAPE, f"scale has shape {shape}, zero point {zeros}"
    if _size(shape) == 1:
        return
    if node.input(0) not in view.fixed:
        yield rules.ACTIVATION, f"{_size(shape)} scales on {node.input(0)!r}, which is no weight"
        return
    data, axis = shape_of(view, node.input(0)), _axis(node)
    if data is None or len(shape) != 1:  # blocks are a matter of the axis
        return
    if not -len(data) <= axis < len(data):
        yield rules.SHAPE, f"axis {axis} is outside the weights' shape {data}"
    elif data[axis] != shape[0]:
        yield rules.SHAPE, f"{shape[0]} scales on axis {axis} of weights of shape {data}"


def _axis_faults(view: View, node: Node) -> Faults:
    """Scales of weights: one per output channel of each node that multiplies with them."""
    shape = _parameter_shape(view, node, 1)
    if shape is None or _size(shape) == 1 or node.input(0) not in view.fixed:
        return
    data, axis = shape_of(view, node.input(0)), _axis(node)
    if len(shape) != 1:
        yield rules.AXIS, f"scales of shape {shape}, in blocks instead of one per output channel"
    elif data is not None and -len(data) <= axis < len(data):
        for user, place, found in _multipliers(view, node.outputs[0], axis % len(data), len(data)):
            wanted = _output_axis(user, place, len(data))
            if wanted is not None and found != wanted:
                yield rules.AXIS, f"weights of {user.label} have scales on axis {found}, not {wanted}"


def _multipliers(view: View, name: str, axis: int, rank: int) -> Iterator[tuple[Node, int, int]]:
    """Yields the nodes that read weights, the input they read them by, and where the axis has gone by then."""
    for user in view.users.get(name, ()):
        if user.op in {"Identity", "Cast"}:
            yield from _multipliers(view, user.outputs[0], axis, rank)
        elif user.op == "Transpose":
            order = list(user.attributes.get("perm", range(rank - 1, -1, -1)))
            yield from _multipliers(view, user.outputs[0], order.index(axis) if axis in order else axis, rank)
        else:
            yield user, user.inputs.index(name), axis


def _output_axis(user: Node, place: int, rank: int) -> int | None:
    """The axis of output channels in the weights of a node; None where no rule is known."""
    if user.op == "MatMul" and rank > 1:
        return rank - 1 if place == 1 else rank - 2
    if place != 1:
        return None
    gemm = 0 if user.attributes.get("transB", 0) else 1
    return {"Conv": 0, "ConvTranspose": 1, "Gemm": gemm}.get(user.op)


def _opset_faults(view: View, node: Node, opset: int) -> Faults:
    if node.domain not in STANDARD:
        yield rules.OPSET, f"operator of domain {node.domain!r}, which not every runtime knows"
        return
    needs = [(number, f"attribute `{key}`") for key, number in SINCE[node.op].items() if key in node.attributes]
    scale = view.constants.get(node.input(1))
    if scale is not None and scale.data_type in HALF:
        needs.append((SCALES_OPSET, f"{HALF[scale.data_type]} scale"))
    if scale is not None and _size(tuple(scale.dims)) > 1:
        needs.append((13, "one scale per channel"))
    broken = [need for need in needs if need[0] > opset]
    if broken:
        number, what = max(broken)
        yield rules.OPSET, f"{what} needs opset {number}, the file declares {opset}"


def scale_type_fault(node: Node, types: Mapping[str, int]) -> str | None:
    """Says how the type of a scale differs from that of the data; None where it does not, or one is not known."""
    data = node.input(0) if node.op == QUANTIZE else next(iter(node.outputs))
    found, wanted = types.get(node.input(1), 0), types.get(data, 0)
    if found == wanted or not found or not wanted:
        return None
    name = onnx.TensorProto.DataType.Name
    return f"scale is {name(found)}, its data {name(wanted)}"


def cast_faults(view: View, node: Node) -> Iterator[str]:
    """Yields what is found of nodes that multiply with what a DequantizeLinear gives behind a Cast."""
    if node.op == DEQUANTIZE:
        for cast in _behind(view, node.outputs[0]):
            for user in _behind(view, cast.outputs[0]) if cast.op == "Cast" else ():
                if user.op in MULTIPLIERS:
                    yield f"{cast.label} stands between it and {user.label}"


def _behind(view: View, name: str) -> Iterator[Node]:
    """Yields the readers of a tensor, going on over operators that only move numbers."""
    for user in view.users.get(name, ()):
        if user.op in LAYOUT:
            yield from _behind(view, user.outputs[0])
        else:
            yield user


def shape_of(view: View, name: str) -> tuple[int, ...] | None:
    """The shape of a tensor that a constant becomes by quantisers and changes of layout; None: unknown."""
    if name in view.constants:
        return tuple(view.constants[name].dims)
    node = view.makers.get(name)
    if node is None or node.op not in {QUANTIZE, DEQUANTIZE, "Identity", "Cast", "Transpose"}:
        return None
    shape = shape_of(view, node.input(0))
    if shape is None or node.op != "Transpose":
        return shape
    order = list(node.attributes.get("perm", range(len(shape) - 1, -1, -1)))
    return tuple(shape[place] for place in order) if sorted(order) == list(range(len(shape))) else None


def _parameter_shape(view: View, node: Node, place: int) -> tuple[int, ...] | None:
    """The shape of scale (1) or zero point (2); None where it is no constant or absent."""
    tensor = view.constants.get(node.input(place))
    return None if tensor is None else tuple(tensor.dims)


def _axis(node: Node) -> int:
    return int(node.attributes.get("axis", 1))


def _size(shape: Sequence[int]) -> int:
    return int(np.prod(shape, dtype=np.int64))
