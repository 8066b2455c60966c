import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline.base.errors import ModelError
from pipeline.parts.predict_onnx import onnx_logits, onnx_tensors
from pipeline.steps.quantize.half import check_range, to_fp16
from pipeline.steps.quantize.lint import TARGETS, lint
from tests import tiny

HALF = onnx.TensorProto.FLOAT16


def loud(model, name, largest):
    """A copy with one initialiser scaled to a largest value."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name == name:
            values = numpy_helper.to_array(tensor)
            scaled = (values / np.abs(values).max() * largest).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(scaled, name))
    return copy


@pytest.fixture
def half(network):
    return to_fp16(network)


def test_every_weight_is_half_but_those_of_norms(half):
    kinds = {tensor.name: tensor.data_type for tensor in half.graph.initializer if tensor.data_type in (1, HALF)}
    norms = {name for node in half.graph.node if node.op_type == "LayerNormalization" for name in node.input[1:]}
    assert {name for name, kind in kinds.items() if kind != HALF} == norms
    assert len(norms) >= 2


def test_norms_and_softmax_compute_in_fp32_and_the_rest_in_fp16(half):
    types = {value.name: value.type.tensor_type.elem_type for value in half.graph.value_info}
    for node in half.graph.node:
        if node.op_type in {"LayerNormalization", "Softmax"}:
            assert types[node.output[0]] == onnx.TensorProto.FLOAT
        if node.op_type in {"MatMul", "Gemm", "Erf"}:
            assert types.get(node.output[0], HALF) == HALF
    assert [half.graph.input[0].type.tensor_type.elem_type, half.graph.output[0].type.tensor_type.elem_type] == [1, 1]


def test_the_file_is_valid_and_answers_alike(half, network, images):
    onnx.checker.check_model(half, full_check=True)
    assert lint(half, targets=TARGETS, precision="fp16") == ()
    one, other = (tiny.stacked(onnx_logits(model.SerializeToString(), images)) for model in (half, network))
    assert 0 < np.abs(one - other).max() < 0.01 * np.abs(other).max()


def test_two_runs_give_the_same_bytes(network):
    one, other = (to_fp16(network).SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


def test_the_largest_values_are_named(network, half, images):
    found = check_range(network, half, images=images)
    node = next(node for node in network.graph.node if node.name == found.node)
    largest = max(
        float(np.abs(values[node.output[0]]).max()) for values in onnx_tensors(network, node.output, images=images)
    )
    assert found.largest == largest
    norm = next(node for node in network.graph.node if node.name == found.norm)
    assert norm.op_type == "LayerNormalization"
    assert 0 < found.norm_largest <= found.largest


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"patch_embed.proj.weight": 6e4}, "node 'patch_embed.proj/Conv' gives .* in FP32 beyond the 65504 of FP16"),
        (
            {"pos_embed": 6e4, "patch_embed.proj.weight": 3000},
            "node '/Add' gives .* in FP32, which 'blocks.0.norm1/LayerNormalization' reads, beyond the 65504 of FP16",
        ),
        ({"head.weight": 7e4}, "weights 'head.weight' hold 7e.04, beyond the 65504 of FP16; use bf16 or INT8"),
    ],
    ids=["values", "what a norm reads", "weights"],
)
def test_what_leaves_the_range_of_fp16_is_named(network, images, weights, message):
    changed = network
    for name, largest in weights.items():
        changed = loud(changed, name, largest)
    with pytest.raises(ModelError, match=message):
        check_range(changed, to_fp16(changed), images=images)


def test_a_sum_that_overflows_in_fp16_alone_is_named(network, half, images):
    """Every FP32 value fits, but the FP16 file holds a value that does not: what the second check is for."""
    broken = onnx.ModelProto()
    broken.CopyFrom(half)
    for tensor in broken.graph.initializer:
        if tensor.name == "blocks.1.mlp.fc2.bias":
            tensor.CopyFrom(numpy_helper.from_array(np.full(tensor.dims, np.inf, np.float16), tensor.name))
    with pytest.raises(ModelError, match=r"node 'blocks.1.mlp.fc2/Add' gives \d+ values that are not finite in FP16"):
        check_range(network, broken, images=images)
