import numpy as np
import onnx
import onnx.version_converter
import openvino
import pytest
import torch
from onnx import numpy_helper

from pipeline.base.errors import ModelError
from pipeline.parts.predict_onnx import onnx_function, onnx_logits, onnx_tensors
from pipeline.steps.export import to_onnx
from pipeline.steps.quantize.half import (
    KEPT,
    REST_REMEDY,
    SMALLEST,
    check_range,
    rest_to_fp16,
    to_fp16,
    with_half_scales,
)
from pipeline.steps.quantize.int8 import Int8, to_int8
from pipeline.steps.quantize.lint import TARGETS, lint
from tests import tiny
from tests.unit.pipeline.steps.quantize.graphs import Graph

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


QUANTISERS = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(scope="module")
def quantised(network, images):
    """INT8 with an FP32 rest, ready for FP16 scales; the network is of opset 18."""
    how = Int8(layers="full", smooth_quant=0.95, bias_correction="fast")
    return to_int8(with_half_scales(network), how, images=images)


@pytest.fixture
def typed(quantised):
    return rest_to_fp16(quantised)


def constants(model):
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def replaced(model, **values):
    """A copy with other initialisers."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        if tensor.name in values:
            tensor.CopyFrom(numpy_helper.from_array(values[tensor.name], tensor.name))
    return copy


def weights_of(model, layer):
    """Names of the INT8 weights and of the scales that a layer reads."""
    makers = {node.output[0]: node for node in model.graph.node}
    user = next(node for node in model.graph.node if node.name == layer)
    return makers[user.input[1]].input[:2]


class TestRest:
    def test_scales_are_half_weights_int8_and_the_rest_is_half_but_for_norms(self, typed, quantised):
        values = constants(typed)
        norms = {name for node in typed.graph.node if node.op_type == KEPT[0] for name in node.input[1:]}
        for node in typed.graph.node:
            if node.op_type in QUANTISERS:
                assert values[node.input[1]].dtype == np.float16
        floats = {name for name, value in values.items() if value.dtype == np.float32}
        assert floats == norms
        assert values["blocks.0.attn.qkv.bias"].dtype == np.float16
        stored = {name: value for name, value in constants(quantised).items() if value.dtype == np.int8}
        assert len(stored) > 20
        assert all(np.array_equal(values[name], value) for name, value in stored.items())

    def test_casts_stand_at_the_ends_and_beside_what_stays_in_fp32(self, typed):
        makers = {name: node for node in typed.graph.node for name in node.output}
        users = {name: node for node in typed.graph.node for name in node.input}
        casts = [node for node in typed.graph.node if node.op_type == "Cast"]
        ends = {typed.graph.input[0].name, typed.graph.output[0].name}
        inner = [node for node in casts if not ends & {node.input[0], node.output[0]}]
        assert len(casts) - len(inner) == 2
        for node in inner:
            sides = makers[node.input[0]].op_type, users[node.output[0]].op_type
            assert set(sides) & set(KEPT)
        for node in typed.graph.node:
            if node.op_type == "MatMul":
                assert {makers[name].op_type for name in node.input} == {"DequantizeLinear"}

    def test_the_file_is_legal_and_both_runtimes_answer_as_for_int8(self, typed, quantised, network, images):
        onnx.checker.check_model(typed, full_check=True)
        assert lint(typed, targets=TARGETS, precision="int8_fp16") == ()
        assert typed.opset_import[0].version == 19
        exact, before, after = (
            tiny.stacked(onnx_logits(model.SerializeToString(), images)) for model in (network, quantised, typed)
        )
        compiled = openvino.Core().compile_model(
            openvino.Core().read_model(typed.SerializeToString()), "CPU", {"INFERENCE_PRECISION_HINT": "f32"}
        )
        other = np.concatenate([compiled(image[None])[0] for image in images])
        for logits in (before, after, other):
            assert 0 < np.abs(logits - exact).max() < 0.1 * np.abs(exact).max()

    def test_two_runs_give_the_same_bytes_and_leave_the_network_alone(self, quantised):
        before = quantised.SerializeToString(deterministic=True)
        one, other = (rest_to_fp16(quantised).SerializeToString(deterministic=True) for _ in range(2))
        assert one == other
        assert quantised.SerializeToString(deterministic=True) == before

    def test_channels_too_small_for_fp16_are_rounded_to_its_smallest_scale(self, quantised):
        weights, scales = weights_of(quantised, "blocks.0.mlp.fc1/MatMul")
        values = constants(quantised)
        stored, small = values[weights].copy(), values[scales].copy()
        stored[:, 0] = 0
        stored[:, 1] = 100
        small[:2] = 1.2e-7, SMALLEST / 4  # of a channel that is 0 throughout, and one of small weights
        found = constants(rest_to_fp16(replaced(quantised, **{weights: stored, scales: small})))
        assert found[scales][:2].tolist() == [SMALLEST, SMALLEST]
        assert not found[weights][:, 0].any()
        assert set(found[weights][:, 1]) == {25}
        np.testing.assert_array_equal(found[weights][:, 2:], stored[:, 2:])
        np.testing.assert_array_equal(found[scales][2:], small[2:].astype(np.float16))

    @pytest.mark.parametrize(
        ("place", "scale"),
        [(0, 1e-9), (0, SMALLEST / 2), (0, 7e4), (1, 1e-9), (1, 7e4)],
        ids=lambda value: ("activations", "weights")[value] if isinstance(value, int) else f"{value:.0e}",
    )
    def test_a_scale_that_fp16_cannot_hold_is_refused(self, quantised, place, scale):
        node = next(node for node in quantised.graph.node if node.name == "blocks.0.mlp.fc1/MatMul")
        back = next(each for each in quantised.graph.node if each.output[0] == node.input[place])
        shape = constants(quantised)[back.input[1]].shape
        broken = replaced(quantised, **{back.input[1]: np.full(shape, scale, np.float32)})
        with pytest.raises(
            ModelError, match=r"^node '.*' has scale .*, and FP16 holds 6.1e-05 to 65504 in full"
        ) as raised:
            rest_to_fp16(broken)
        assert f"{scale:.2g}" in str(raised.value)
        assert str(raised.value).endswith("set `rest` of this variant in `quantize.variants` to fp32")

    def test_the_range_is_that_of_the_int8_network(self, typed, quantised, images):
        found = check_range(quantised, typed, images=images, remedy=REST_REMEDY)
        assert 0 < found.norm_largest <= found.largest
        loudest = replaced(quantised, pos_embed=np.full_like(constants(quantised)["pos_embed"], 7e4))
        with pytest.raises(ModelError, match="which 'blocks.0.norm1/LayerNormalization' reads, beyond") as raised:
            check_range(loudest, rest_to_fp16(loudest), images=images, remedy=REST_REMEDY)
        assert str(raised.value).endswith(REST_REMEDY)

    def test_small_weights_behind_small_activations_are_brought_into_range(self, quantised, images):
        """In one layer behind a Mul and one behind a LayerNormalization; every INT8 number stays."""
        changed = {}
        for layer in ("blocks.0.mlp.fc2/MatMul", "blocks.1.attn.qkv/MatMul"):
            scales = weights_of(quantised, layer)[1]
            changed[scales] = constants(quantised)[scales] / np.float32(64)
        small = replaced(quantised, **changed)
        assert min(scales.min() for scales in changed.values()) < SMALLEST
        typed = rest_to_fp16(small)
        found = constants(typed)
        assert all(found[name].min() >= SMALLEST for name in changed)
        stored = {name: value for name, value in constants(small).items() if value.dtype == np.int8}
        assert all(np.array_equal(found[name], value) for name, value in stored.items())
        one, other = (tiny.stacked(onnx_logits(model.SerializeToString(), images)) for model in (small, typed))
        assert np.abs(one - other).max() < 0.02 * np.abs(one).max()

    def test_the_opset_is_raised_to_that_of_fp16_scales_and_never_lowered(self, network):
        ready = with_half_scales(network)
        assert [(item.domain, item.version) for item in ready.opset_import] == [("", 19)]
        assert [node.name for node in ready.graph.node] == [node.name for node in network.graph.node]
        assert network.opset_import[0].version == 18
        later = onnx.version_converter.convert_version(network, 20)
        assert with_half_scales(later) is later

    @pytest.mark.slow
    @pytest.mark.parametrize(("own", "opset"), [(17, 19), (20, 20)])
    def test_every_opset_that_can_be_exported_is_typed(self, images, own, opset):
        """The weights are as they are drawn, small: scales of some layers have to be brought into range."""
        exported = to_onnx(tiny.model(tiny.STUDENT).eval(), torch.from_numpy(images[:1]), opset=own)
        how = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")
        typed = rest_to_fp16(to_int8(with_half_scales(exported), how, images=images))
        assert typed.opset_import[0].version == opset
        assert lint(typed, targets=TARGETS, precision="int8_fp16") == ()
        one, other = (tiny.stacked(onnx_logits(model.SerializeToString(), images)) for model in (typed, exported))
        assert 0 < np.abs(one - other).max() < 0.1 * np.abs(other).max()

    def test_the_bias_of_a_convolution_is_not_lost(self):
        """Where ONNX Runtime quantises biases, its product of two FP16 scales is 0 here."""
        graph = Graph((1, 3, 8, 8), onnx.TensorProto.FLOAT16)
        scales = np.full(5, 1e-4, np.float16)
        x = graph.quantised("x", scale=np.float16(1e-4))
        bias = graph.constant("bias", np.full(5, 0.005, np.float16))
        convolved = graph.node("Conv", x, graph.weights((5, 3, 3, 3), axis=0, scale=scales), bias)
        model = graph.model(graph.quantised(convolved, scale=np.float16(1e-4)), opset=19)
        answer = onnx_function(model.SerializeToString())(np.zeros((1, 3, 8, 8), np.float16))
        np.testing.assert_allclose(answer, 0.005, rtol=0.01)
