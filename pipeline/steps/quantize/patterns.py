"""The rules on groups of nodes: attention that is half quantised, normalisations and what else is of the wrong type."""

import contextlib
from collections.abc import Iterable, Iterator

import onnx

from pipeline.steps.quantize.graph import DEQUANTIZE, QUANTIZE, Node, View

# Operators that only move numbers: a quantiser before one is as good as one behind it.
LAYOUT = {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze"}
# What lies between Q K^T and the softmax: scale, mask, bias, and quantisers.
SCORES = LAYOUT | {"Add", "Cast", "Clip", "Div", "Max", "Min", "Mul", "Sub", "Tanh", "Where", QUANTIZE, DEQUANTIZE}
# What lies between the softmax and its product with V.
WEIGHTS = LAYOUT | {"Cast", "Dropout", QUANTIZE, DEQUANTIZE}
FLOAT, FLOAT16 = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16
MULTIPLIERS = {"Conv", "ConvTranspose", "Gemm", "MatMul"}


def half_quantised(view: View) -> Iterator[tuple[str, str]]:
    """Yields the two MatMuls of each attention of which some inputs are quantised and some not, and which."""
    for pair in attentions(view):
        quantised = [_is_dequantised(view, name) for node in pair for name in node.inputs]
        if any(quantised) and not all(quantised):
            counts = f"{sum(quantised[:2])} of 2 inputs of Q K^T, {sum(quantised[2:])} of 2 of softmax V"
            yield f"{pair[0].label} and {pair[1].label}", f"quantised are {counts}"


def attentions(view: View) -> Iterator[tuple[Node, Node]]:
    """Yields the two MatMuls of each attention, Q K^T and softmax V."""
    for softmax in view.nodes:
        if softmax.op == "Softmax":
            first, second = _matmuls(view, _behind(view, softmax)), _matmuls(view, _ahead(view, softmax))
            yield from ((one, other) for one in first for other in second)


def _matmuls(view: View, nodes: Iterable[Node]) -> list[Node]:
    """Those that multiply two activations; others multiply with weights."""
    found = [node for node in nodes if node.op == "MatMul" and len(node.inputs) == 2]
    return [node for node in found if not view.fixed & set(node.inputs)]


def _behind(view: View, start: Node) -> Iterator[Node]:
    """Yields the first nodes before `start` that are none of SCORES."""
    todo, seen = list(start.inputs), set()
    while todo:
        name = todo.pop()
        node = view.makers.get(name)
        if node is None or node in seen:
            continue
        seen.add(node)
        if node.op in SCORES:
            todo += node.inputs
        else:
            yield node


def _ahead(view: View, start: Node) -> Iterator[Node]:
    """Yields the first nodes after `start` that are none of WEIGHTS."""
    todo, seen = list(start.outputs), set()
    while todo:
        for node in view.users.get(todo.pop(), ()):
            if node in seen:
                continue
            seen.add(node)
            if node.op in WEIGHTS:
                todo += node.outputs
            else:
                yield node


def _is_dequantised(view: View, name: str) -> bool:
    node = view.source(name, lambda node: node.op in LAYOUT)
    return node is not None and node.op == DEQUANTIZE


def squares_of_norms(view: View) -> Iterator[Node]:
    """Yields the squaring node of each normalisation in single operators: sqrt(mean(square(x)) + epsilon).

    That is LayerNorm, with a Sub of the mean before the square, and RMSNorm, without.
    """
    for root in view.nodes:
        if root.op != "Sqrt":
            continue
        added = view.makers.get(root.input(0))
        names = added.inputs if added is not None and added.op == "Add" else (root.input(0),)
        means = [node for node in map(view.makers.get, names) if node is not None and node.op == "ReduceMean"]
        for mean in means:
            square = view.source(mean.input(0), lambda node: node.op == "Identity")
            if square is not None and _is_square(square):
                yield square


def _is_square(node: Node) -> bool:
    return node.op == "Pow" or (node.op == "Mul" and len(set(node.inputs)) == 1)


def element_types(model: onnx.ModelProto) -> dict[str, int]:
    """Returns the element type of each tensor of all graphs, as far as it is declared or can be inferred."""
    with contextlib.suppress(onnx.shape_inference.InferenceError):  # then what the file itself declares has to do
        model = onnx.shape_inference.infer_shapes(model)
    return dict(_declared(model.graph))


def _declared(graph: onnx.GraphProto) -> Iterator[tuple[str, int]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor.data_type
    for value in (*graph.input, *graph.output, *graph.value_info):
        yield value.name, value.type.tensor_type.elem_type
    for node in graph.node:
        for item in node.attribute:
            for body in (item.g, *item.graphs):
                yield from _declared(body)


def overflows(square: Node, types: dict[str, int], precision: str | None) -> str | None:
    """Says why a normalisation is computed in FP16; None where it is not.

    A file that holds FP16 tensors says itself what is computed in which type; one that holds none is computed in
    FP16 as a whole where that is its precision.
    """
    if types.get(square.outputs[0]) == FLOAT16 or types.get(square.input(0)) == FLOAT16:
        return "squares FP16 numbers, in a normalisation of single operators"
    if precision == "fp16" and FLOAT16 not in types.values():
        return "squares in a normalisation of single operators, in a file that is to run in FP16"
    return None


def in_fp32(view: View, types: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Yields the nodes of an INT8 file, said to be FP16 else, that multiply or scale in FP32, and what was found."""
    for node in view.nodes:
        if node.op in MULTIPLIERS and types.get(node.outputs[0]) == FLOAT:
            yield node.label, "it computes in FP32"
        elif node.op in {QUANTIZE, DEQUANTIZE} and types.get(node.input(1)) == FLOAT:
            yield node.label, "its scale is FP32"
