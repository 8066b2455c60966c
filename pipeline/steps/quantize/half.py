"""FP16, typed: every tensor of the file says what it is computed in; LayerNormalization and Softmax stay in FP32.

That goes for a whole network, and for what an INT8 one leaves in floating point: TensorRT takes every type from the
file, and attention in FP32 can cost more time than INT8 layers save.
"""

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import onnx.version_converter
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from pipeline.base.errors import ModelError
from pipeline.parts.groups import WEIGHTED
from pipeline.parts.index import Images
from pipeline.parts.predict_onnx import onnx_tensors
from pipeline.steps.quantize.fold import balance
from pipeline.steps.quantize.graph import DEQUANTIZE, QUANTIZE, STANDARD
from pipeline.steps.quantize.quantizers import SCALES_OPSET

KEPT = ("LayerNormalization", "Softmax")  # sums over many values, which overflow or lose their digits in FP16
LARGEST = float(np.finfo(np.float16).max)  # 65504
SMALLEST = float(np.finfo(np.float16).tiny)  # 6.1e-5; below it FP16 loses digits, and has none at 3e-8
REMEDY = "use bf16 or INT8 for this network, and take fp16 out of `quantize.variants`"
REST_REMEDY = "set `rest` of this variant in `quantize.variants` to fp32"


@dataclass(frozen=True, kw_only=True)
class Range:
    """The largest values that a network takes in FP32, against the largest of FP16.

    Attributes:
        node: whose output is largest.
        largest: its largest absolute value.
        norm: the LayerNormalization whose input is largest; None where there is none.
        norm_largest: the largest absolute value of that input.
    """

    node: str
    largest: float
    norm: str | None
    norm_largest: float


def to_fp16(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy that computes in FP16 but for `KEPT`; its inputs and outputs stay FP32."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    with warnings.catch_warnings():
        # The converter tells of every weight that is nearly 0 and becomes a subnormal; large ones are checked here.
        warnings.simplefilter("ignore")
        half = convert_float_to_float16(copy, keep_io_types=True, op_block_list=[*DEFAULT_OP_BLOCK_LIST, *KEPT])
    # The converter puts its casts last, and leaves behind types of tensors that it has changed.
    OnnxModel(half).topological_sort()
    del half.graph.value_info[:]
    _restore_weights(half, model)
    return onnx.shape_inference.infer_shapes(half, strict_mode=True)


def with_half_scales(model: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of the opset that FP16 scales need, or the model itself where its own is that or later.

    Scales must be FP16 as their data is: ONNX allows FP32 ones beside FP16 data from opset 23 on only, and ONNX Runtime
    1.31 runs none such (its issue 32719).
    """
    own = next(item.version for item in model.opset_import if item.domain in STANDARD)
    return model if own >= SCALES_OPSET else onnx.version_converter.convert_version(model, SCALES_OPSET)


def rest_to_fp16(quantised: onnx.ModelProto) -> onnx.ModelProto:
    """Returns a copy of an INT8 network whose floating-point rest, scales and biases are FP16 but for `KEPT`.

    Weights stay INT8 initialisers. Casts stand at the network's ends and beside `KEPT`, nowhere else.

    Args:
        quantised: INT8 with an FP32 rest, of an opset that `with_half_scales` gives.

    Raises:
        ModelError: a scale is not in FP16's range, naming its node.
    """
    copy = onnx.ModelProto()
    copy.CopyFrom(quantised)
    balance(copy, smallest=SMALLEST)
    _lift_small_scales(copy)
    _check_scales(copy)
    return to_fp16(copy)


def _lift_small_scales(model: onnx.ModelProto) -> None:
    """Rounds channels of weights anew, in place, whose scale FP16 would keep by few digits or lose: to its smallest.

    That is for channels that hardly say anything, where the median channel of the same layer is rounded more coarsely
    still; a layer of such channels is left for `_check_scales` to refuse.
    """
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    readers = Counter(name for node in model.graph.node for name in node.input)
    for node in model.graph.node:
        if (
            node.op_type != DEQUANTIZE
            or node.input[0] not in tensors
            or any(readers[name] > 1 for name in node.input[:2])
        ):
            continue
        weights, scales = (_array(tensors[name]) for name in node.input[:2])
        if scales.min() >= SMALLEST or np.median(scales) < SMALLEST:
            continue
        lifted = np.maximum(scales, np.float32(SMALLEST))
        axis = next((item.i for item in node.attribute if item.name == "axis"), 1) % weights.ndim
        ratio = (scales / lifted).reshape([-1 if place == axis else 1 for place in range(weights.ndim)])
        for name, values in zip(node.input, (np.rint(weights * ratio).astype(weights.dtype), lifted), strict=False):
            tensors[name].CopyFrom(numpy_helper.from_array(values, name))


def _check_scales(model: onnx.ModelProto) -> None:
    """Refuses scales that FP16 rounds to 0 or to infinity, or keeps by a few digits."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type in (QUANTIZE, DEQUANTIZE):
            scales = _array(tensors[node.input[1]])
            wrong = scales[(scales < SMALLEST) | (scales > LARGEST)]
            if wrong.size:
                what = f"scale {wrong.flat[0]:.2g}, and FP16 holds {SMALLEST:.2g} to {LARGEST:g} in full"
                msg = f"node {node.name!r} has {what}; {REST_REMEDY}"
                raise ModelError(msg)


def _array(tensor: onnx.TensorProto) -> NDArray[Any]:
    array: NDArray[Any] = numpy_helper.to_array(tensor)
    return array


def _restore_weights(half: onnx.ModelProto, model: onnx.ModelProto) -> None:
    """Gives FP32 nodes their FP32 weights: the converter rounds them to FP16 and casts them back."""
    exact = {tensor.name: tensor for tensor in model.graph.initializer if tensor.data_type == TensorProto.FLOAT}
    casts = [node for node in half.graph.node if node.op_type == "Cast" and node.input[0] in exact]
    for name, weights in {node.output[0]: node.input[0] for node in casts}.items():  # several nodes may share weights
        tensor = half.graph.initializer.add()
        tensor.CopyFrom(exact[weights])
        tensor.name = name
    for node in casts:
        half.graph.node.remove(node)
    used = {name for node in half.graph.node for name in node.input}
    for tensor in [tensor for tensor in half.graph.initializer if tensor.name not in used]:
        half.graph.initializer.remove(tensor)


def check_range(model: onnx.ModelProto, half: onnx.ModelProto, *, images: Images, remedy: str = REMEDY) -> Range:
    """Checks that nothing overflows in FP16.

    Two things are looked at: the values of the FP32 network, those that LayerNormalization reads above all, which are
    its residual stream and its largest; and the FP16 network's own values, whose sums may overflow although no FP32
    value does.

    Args:
        model: the FP32 network, or the INT8 one with its FP32 rest.
        half: what `to_fp16` or `rest_to_fp16` made of it.
        images: calibration images.
        remedy: what to do about an overflow.

    Raises:
        ModelError: naming the first node that overflows, and the value it takes.
    """
    read = {name for node in model.graph.node if node.op_type in WEIGHTED for name in node.input[1:]}
    for tensor in (tensor for tensor in model.graph.initializer if tensor.name in read):
        most = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
        if most > LARGEST:
            msg = f"weights {tensor.name!r} hold {most:.4g}, beyond the {LARGEST:g} of FP16; {remedy}"
            raise ModelError(msg)
    makers = {name: node for node in model.graph.node for name in node.output}
    norms = {node.input[0]: node.name for node in model.graph.node if node.op_type == "LayerNormalization"}
    largest = dict.fromkeys(_floats(model, TensorProto.FLOAT), 0.0)
    for values in onnx_tensors(model, list(largest), images=images):
        for name, value in values.items():
            largest[name] = max(largest[name], float(np.abs(value).max()))
    for name, most in largest.items():
        if most > LARGEST:
            reads = f", which {norms[name]!r} reads," if name in norms else ""
            msg = f"node {makers[name].name!r} gives {most:.4g} in FP32{reads} beyond the {LARGEST:g} of FP16; {remedy}"
            raise ModelError(msg)
    _check_finite(half, images=images, remedy=remedy)
    top = max(largest, key=lambda name: largest[name])
    norm = max((name for name in norms if name in largest), key=lambda name: largest[name], default=None)
    return Range(
        node=makers[top].name,
        largest=largest[top],
        norm=None if norm is None else norms[norm],
        norm_largest=0.0 if norm is None else largest[norm],
    )


def _check_finite(half: onnx.ModelProto, *, images: Images, remedy: str) -> None:
    """Refuses values that are not finite, naming the first node in the order of the graph that gives one."""
    makers = {name: node for node in half.graph.node for name in node.output}
    names = [*_floats(half, TensorProto.FLOAT16), *(value.name for value in half.graph.output)]
    for place, values in enumerate(onnx_tensors(half, names, images=images)):
        for name in names:
            strange = int((~np.isfinite(values[name])).sum())
            if strange:
                words = f"gives {strange} values that are not finite in FP16 for calibration image {place}"
                msg = f"node {makers[name].name!r} {words}; {remedy}"
                raise ModelError(msg)


def _floats(model: onnx.ModelProto, kind: int) -> Sequence[str]:
    """Names all tensors of a type that nodes give, in the order of the graph."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return [name for node in model.graph.node for name in node.output if kinds.get(name) == kind]
