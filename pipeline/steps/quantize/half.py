"""FP16, typed: every tensor of the file says what it is computed in; LayerNormalization and Softmax stay in FP32."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from onnxruntime.transformers.onnx_model import OnnxModel

from pipeline.base.errors import ModelError
from pipeline.parts.groups import WEIGHTED
from pipeline.parts.index import Images
from pipeline.parts.predict_onnx import onnx_tensors

KEPT = ("LayerNormalization", "Softmax")  # sums over many values, which overflow or lose their digits in FP16
LARGEST = float(np.finfo(np.float16).max)  # 65504
REMEDY = "use bf16 or INT8 for this network, and take fp16 out of `quantize.variants`"


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


def check_range(model: onnx.ModelProto, half: onnx.ModelProto, *, images: Images) -> Range:
    """Checks that nothing overflows in FP16.

    Two things are looked at: the values of the FP32 network, those that LayerNormalization reads above all, which are
    its residual stream and its largest; and the FP16 network's own values, whose sums may overflow although no FP32
    value does.

    Args:
        model: the FP32 network.
        half: what `to_fp16` made of it.
        images: calibration images.

    Raises:
        ModelError: naming the first node that overflows, and the value it takes.
    """
    read = {name for node in model.graph.node if node.op_type in WEIGHTED for name in node.input[1:]}
    for tensor in (tensor for tensor in model.graph.initializer if tensor.name in read):
        most = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0))
        if most > LARGEST:
            msg = f"weights {tensor.name!r} hold {most:.4g}, beyond the {LARGEST:g} of FP16; {REMEDY}"
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
            msg = _refusal(makers[name].name, f"gives {most:.4g} in FP32{reads} beyond the {LARGEST:g} of FP16")
            raise ModelError(msg)
    _check_finite(half, images=images)
    top = max(largest, key=lambda name: largest[name])
    norm = max((name for name in norms if name in largest), key=lambda name: largest[name], default=None)
    return Range(
        node=makers[top].name,
        largest=largest[top],
        norm=None if norm is None else norms[norm],
        norm_largest=0.0 if norm is None else largest[norm],
    )


def _check_finite(half: onnx.ModelProto, *, images: Images) -> None:
    """Refuses values that are not finite, naming the first node in the order of the graph that gives one."""
    makers = {name: node for node in half.graph.node for name in node.output}
    names = [*_floats(half, TensorProto.FLOAT16), *(value.name for value in half.graph.output)]
    for place, values in enumerate(onnx_tensors(half, names, images=images)):
        for name in names:
            strange = int((~np.isfinite(values[name])).sum())
            if strange:
                words = f"gives {strange} values that are not finite in FP16 for calibration image {place}"
                raise ModelError(_refusal(makers[name].name, words))


def _refusal(node: str, words: str) -> str:
    return f"node {node!r} {words}; {REMEDY}"


def _floats(model: onnx.ModelProto, kind: int) -> Sequence[str]:
    """Names all tensors of a type that nodes give, in the order of the graph."""
    inferred = onnx.shape_inference.infer_shapes(model)
    values = (*inferred.graph.value_info, *inferred.graph.output)
    kinds = {value.name: value.type.tensor_type.elem_type for value in values}
    return [name for node in model.graph.node for name in node.output if kinds.get(name) == kind]
