"""What SmoothQuant multiplied: folded into the LayerNormalization before it, or brought into another type's range."""

import math
from collections import Counter, defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

LAYERS = ("Conv", "Gemm", "MatMul")
HEADROOM = 16  # how far the median scale of a layer is brought above the smallest, where that can be


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


@dataclass(frozen=True, kw_only=True)
class _Smoothed:
    """Names of the constants around one quantiser that SmoothQuant has prepared.

    Attributes:
        norm: whether a LayerNormalization comes before, else a Mul.
        factors: what it multiplies with, or adds.
        inputs: scales of the activations.
        weights: scales of the weights that these are multiplied with.
    """

    norm: bool
    factors: tuple[str, ...]
    inputs: tuple[str, ...]
    weights: tuple[str, ...]


def balance(model: onnx.ModelProto, *, smallest: float) -> int:
    """Moves powers of two from activations to the scales of weights, in place, where these are below `smallest`.

    SmoothQuant makes weights small where activations are. (x / c)(c w) = x w, and 1 / c goes into what the activations
    are multiplied with before their quantiser: no INT8 number changes.

    Returns:
        For how many quantisers.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    values = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    moved = 0
    for group in _smoothed(model.graph, tensors):
        small = [*group.inputs, *(() if group.norm else group.factors)]  # a LayerNormalization may stay in FP32
        power = _power([values[name] for name in group.weights], [values[name] for name in small], smallest)
        if power <= 0:
            continue
        moved += 1
        shares = dict.fromkeys((*group.inputs, *group.factors), -power) | dict.fromkeys(group.weights, power)
        for name, share in shares.items():
            tensors[name].CopyFrom(numpy_helper.from_array(np.ldexp(values[name], share), name))
    return moved


def _power(weights: Sequence[NDArray[Any]], others: Sequence[NDArray[Any]], smallest: float) -> int:
    """The power of two that weights take from activations: as much as they need and the activations allow; 0: none."""
    median = min(float(np.median(scales)) for scales in weights)
    if median <= 0 or min(float(scales.min()) for scales in weights) >= smallest:
        return 0
    room = min(float(np.abs(numbers).min()) for numbers in others)
    power = min(math.ceil(math.log2(HEADROOM * smallest / median)), math.floor(math.log2(max(room / smallest, 1))))
    return power if math.ldexp(median, power) >= smallest else 0


def _smoothed(graph: onnx.GraphProto, constants: Collection[str]) -> Iterator[_Smoothed]:
    """Yields the quantisers behind a Mul or LayerNormalization whose constants nothing else reads."""
    makers = {name: node for node in graph.node for name in node.output}
    readers: defaultdict[str, list[onnx.NodeProto]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    for node in (node for node in graph.node if node.op_type == "QuantizeLinear"):
        before, pairs = makers.get(node.input[0]), readers[node.output[0]]
        back = {each.output[0] for each in pairs}
        layers = [user for name in sorted(back) for user in readers[name]]
        sides = [makers.get(user.input[1]) for user in layers]
        weights = [side for side in sides if side is not None and side.input[0] in constants]
        if before is None or before.op_type not in ("LayerNormalization", "Mul") or len(weights) < len(sides):
            continue
        if not all(user.op_type in LAYERS and user.input[0] in back for user in layers):
            continue
        factors, scales = tuple(before.input[1:]), tuple(each.input[1] for each in weights)
        alone = (*before.output, *factors, *scales)
        inputs = sorted({node.input[1], *(each.input[1] for each in pairs)})
        own = sum(len(readers[name]) for name in inputs) == 1 + len(pairs)
        if own and set(factors) <= set(constants) and all(len(readers[name]) == 1 for name in alone):
            yield _Smoothed(
                norm=before.op_type == "LayerNormalization", factors=factors, inputs=tuple(inputs), weights=scales
            )
