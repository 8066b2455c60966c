"""INT8 by NNCF on the ONNX file, with quantisers that every runtime takes."""

import logging
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Literal

os.environ.setdefault("NNCF_CI", "1")  # NNCF sends telemetry unless this is set before it is imported

import nncf
import onnx
from nncf.quantization.advanced_parameters import (
    AdvancedQuantizationParameters,
    AdvancedSmoothQuantParameters,
    QuantizationParameters,
)

from pipeline.base.errors import ModelError
from pipeline.parts.groups import groups_of, module_of
from pipeline.parts.index import Images
from pipeline.steps.quantize.fold import fold_smoothing
from pipeline.steps.quantize.graph import views
from pipeline.steps.quantize.insert import insert_quantisers, largest_values
from pipeline.steps.quantize.patterns import attentions
from pipeline.steps.quantize.signed import to_signed

Layers = Literal["linear", "full", "mlp"]
BiasCorrection = Literal["none", "fast", "accurate"]
MLP = ("fc1", "fc2")
OFF = -1.0  # NNCF's way of saying that nothing is smoothed


@dataclass(frozen=True, kw_only=True)
class Int8:
    """How a network is quantised.

    Attributes:
        layers: "linear": all layers with weights, attention's two MatMuls left out; "full": those too; "mlp": the
            MLPs of the blocks only.
        smooth_quant: how much of the outliers of activations SmoothQuant moves into the weights, from 0 to 1 (Xiao et
            al., "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language Models", ICML 2023);
            None for not at all.
        bias_correction: "fast" and "accurate" shift biases by the mean error that quantisation made; "none".
    """

    layers: Layers
    smooth_quant: float | None
    bias_correction: BiasCorrection


def to_int8(model: onnx.ModelProto, how: Int8, *, images: Images, left_out: Collection[str] = ()) -> onnx.ModelProto:
    """Quantises weights per channel and activations per tensor, all symmetric and signed.

    NNCF gives nonzero zero points under TRANSFORMER's own preset (MIXED) and unsigned quantisers under the default
    model type; TRANSFORMER with PERFORMANCE gives neither, but for unsigned ones behind the ReLU of a CNN.

    Args:
        model: the FP32 network, of batch 1; not changed.
        how: what is quantised and by which methods.
        images: calibration images.
        left_out: groups of `groups_in` that stay in FP32.

    Raises:
        ModelError: there is nothing to quantise, or weights are computed.
    """
    _check_weights(model)
    groups = groups_in(model, how.layers)
    _check_left_out(left_out, groups)
    wanted = {node for group, nodes in groups.items() if group not in left_out for node in nodes}
    free = weightless_matmuls(model)
    ignored = [*free, *(node for nodes in groups_of(model).values() for node in nodes if node not in wanted)]
    scales = AdvancedSmoothQuantParameters(
        matmul=OFF if how.smooth_quant is None else how.smooth_quant, convolution=OFF
    )
    nncf.set_log_level(logging.ERROR)
    name = model.graph.input[0].name
    quantised: onnx.ModelProto = nncf.quantize(
        model,
        nncf.Dataset(range(len(images)), lambda place: {name: images[place : place + 1]}),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(images),
        fast_bias_correction=how.bias_correction != "accurate",
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=True) if ignored else None,
        advanced_parameters=AdvancedQuantizationParameters(
            disable_bias_correction=how.bias_correction == "none",
            smooth_quant_alphas=scales,
            # Else the input of a depthwise convolution has a scale per channel, which TensorRT does not take.
            activations_quantization_params=QuantizationParameters(per_channel=False),
        ),
    )
    fold_smoothing(quantised)
    to_signed(quantised)
    attention = wanted & set(free)
    return _with_inputs(quantised, attention, model=model, images=images) if attention else quantised


def groups_in(model: onnx.ModelProto, layers: Layers) -> dict[str, list[str]]:
    """Returns the groups of nodes that a variant quantises, in the order of the graph.

    They are those of `groups_of`; with "full" every attention's two MatMuls are one more, by its path in the network.

    Raises:
        ModelError: there are none.
    """
    groups = groups_of(model)
    if layers == "mlp":
        groups = {group: nodes for group, nodes in groups.items() if group.rpartition(".")[2] in MLP}
    attention = attention_matmuls(model) if layers == "full" else []
    groups |= {module_of(first): [first, second] for first, second in attention}
    if not groups or (layers == "full" and not attention):
        what = {"mlp": "MLP of a transformer block", "full": "attention"}.get(layers, "layer with weights")
        msg = f"the network has no {what} to quantise; choose a variant with other `layers`"
        raise ModelError(msg)
    return groups


def not_quantised(made: onnx.ModelProto, model: onnx.ModelProto, layers: Layers) -> list[str]:
    """Names the nodes of a variant's layers that read nothing quantised: left out on purpose, or by NNCF."""
    back = {node.output[0] for node in made.graph.node if node.op_type == "DequantizeLinear"}
    quantised = {node.name for node in made.graph.node if back & set(node.input)}
    return [node for nodes in groups_in(model, layers).values() for node in nodes if node not in quantised]


def _check_left_out(left_out: Collection[str], groups: Mapping[str, list[str]]) -> None:
    unknown = sorted(set(left_out) - set(groups))
    if unknown:
        msg = f"no group {unknown[0]!r} among {', '.join(groups)}"
        raise ModelError(msg)
    if len(set(left_out)) == len(groups):
        msg = f"all {len(groups)} groups are left out: nothing is left to quantise"
        raise ModelError(msg)


def _check_weights(model: onnx.ModelProto) -> None:
    """Refuses what NNCF cannot read."""
    constants = {tensor.name for tensor in model.graph.initializer}
    computed = [node.name for node in model.graph.node if node.op_type == "Conv" and node.input[1] not in constants]
    if computed:
        msg = f"weights of {len(computed)} convolutions, such as {computed[0]!r}, are computed; choose another student"
        raise ModelError(msg)


def weightless_matmuls(model: onnx.ModelProto) -> list[str]:
    """Names the MatMul nodes whose inputs both are computed, as attention's two are.

    NNCF would quantise Q K^T and not softmax V, and TensorRT has no fused kernel for an attention quantised by half.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and not constants & set(node.input)]


def attention_matmuls(model: onnx.ModelProto) -> list[tuple[str, str]]:
    """Returns the two MatMul nodes of every attention by name: Q K^T and softmax V."""
    return [(one.name, other.name) for one, other in attentions(views(model, None)[0])]


def _with_inputs(
    quantised: onnx.ModelProto, names: Collection[str], *, model: onnx.ModelProto, images: Images
) -> onnx.ModelProto:
    """Adds quantisers to all inputs of some nodes; their scales come from the largest values in the FP32 network."""
    ends = {
        (node.name, place): tensor
        for node in model.graph.node
        if node.name in names
        for place, tensor in enumerate(node.input)
    }
    largest = largest_values(model, sorted(set(ends.values())), images=images)
    return insert_quantisers(quantised, {end: largest[tensor] for end, tensor in ends.items()})
