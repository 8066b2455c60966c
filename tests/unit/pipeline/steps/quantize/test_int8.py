from dataclasses import replace

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper

from pipeline.base.errors import ModelError
from pipeline.parts.friendliness import weighted
from pipeline.parts.groups import group_of, groups_of
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.steps.export import to_onnx
from pipeline.steps.quantize.fold import fold_smoothing
from pipeline.steps.quantize.int8 import Int8, attention_matmuls, not_quantised, to_int8
from pipeline.steps.quantize.lint import TARGETS, lint
from pipeline.steps.quantize.signed import to_signed
from tests import tiny
from tests.unit.pipeline.parts.adapters import families

HOW = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")


def logits(model, images):
    return tiny.stacked(onnx_logits(model.SerializeToString(), images))


def quantised_inputs(model):
    """Names of the nodes that read a DequantizeLinear, by how many of their inputs do."""
    back = {node.output[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    counts = {node.name: len(back & set(node.input)) for node in model.graph.node}
    return {name: count for name, count in counts.items() if count}


EXPECTED = {
    "linear": {"qkv", "proj", "fc1", "fc2", "head", "patch_embed"},
    "full": {"qkv", "proj", "fc1", "fc2", "head", "patch_embed"},
    "mlp": {"fc1", "fc2"},
}


@pytest.mark.parametrize("layers", EXPECTED)
def test_each_variant_quantises_its_layers_and_no_other(network, images, layers):
    made = to_int8(network, Int8(layers=layers, smooth_quant=0.95, bias_correction="fast"), images=images)
    wanted = {
        node: 2
        for group, nodes in groups_of(network).items()
        for node in nodes
        if group.rpartition(".")[2] in EXPECTED[layers]
    }
    if layers == "full":
        wanted |= {node: 2 for pair in attention_matmuls(network) for node in pair}
    assert quantised_inputs(made) == wanted
    assert lint(made, targets=TARGETS, precision="int8") == ()
    relative = np.abs(logits(made, images) - logits(network, images)).max() / np.abs(logits(network, images)).max()
    assert 0 < relative < 0.1


@pytest.mark.parametrize(
    ("smooth_quant", "bias_correction"), [(None, "none"), pytest.param(0.5, "accurate", marks=pytest.mark.slow)]
)
def test_options_change_the_file_and_keep_it_legal(network, images, bias_correction, smooth_quant):
    how = Int8(layers="linear", smooth_quant=smooth_quant, bias_correction=bias_correction)
    made = to_int8(network, how, images=images)
    smoothed = [node for node in made.graph.node if "smooth" in node.name]
    assert bool(smoothed) == (smooth_quant is not None)
    assert lint(made, targets=TARGETS, precision="int8") == ()


@pytest.mark.slow
def test_bias_correction_shifts_biases(network, images):
    made = {
        name: to_int8(network, Int8(layers="linear", smooth_quant=None, bias_correction=name), images=images)
        for name in ("none", "fast")
    }
    biases = {
        name: {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name.endswith("bias")}
        for name, model in made.items()
    }
    assert any(not np.array_equal(biases["none"][name], biases["fast"].get(name)) for name in biases["none"])


def test_groups_that_are_left_out_hold_no_quantiser(network, images):
    made = to_int8(network, HOW, images=images, left_out=("blocks.0.qkv", "head"))
    found = set(quantised_inputs(made))
    assert not found & {"blocks.0.attn.qkv/MatMul", "head/Gemm"}
    assert "blocks.1.attn.qkv/MatMul" in found


def test_attention_of_one_block_can_be_left_out(network, images):
    made = to_int8(network, replace(HOW, layers="full"), images=images, left_out=("blocks.0.attn",))
    found = quantised_inputs(made)
    assert "blocks.0.attn/MatMul" not in found
    assert found["blocks.1.attn/MatMul"] == found["blocks.1.attn/MatMul_2"] == 2
    assert not_quantised(made, network, "full") == ["blocks.0.attn/MatMul", "blocks.0.attn/MatMul_2"]
    assert lint(made, targets=TARGETS, precision="int8") == ()


@pytest.mark.slow
@pytest.mark.parametrize("opset", [pytest.param(17, marks=pytest.mark.slow), 20])
def test_every_opset_that_can_be_exported_runs(images, opset):
    exported = to_onnx(tiny.model(tiny.STUDENT).eval(), torch.from_numpy(images[:1]), opset=opset)
    made = to_int8(exported, replace(HOW, layers="full"), images=images)
    assert np.isfinite(logits(made, images)).all()
    assert lint(made, targets=TARGETS, precision="int8") == ()


def test_weights_that_are_computed_are_refused(network, images):
    changed = onnx.ModelProto()
    changed.CopyFrom(network)
    conv = next(node for node in changed.graph.node if node.op_type == "Conv")
    changed.graph.node.insert(0, onnx.helper.make_node("Sqrt", [conv.input[1]], ["standardised"]))
    conv.input[1] = "standardised"
    with pytest.raises(ModelError, match="weights of 1 convolutions, such as 'patch_embed.proj/Conv', are computed"):
        to_int8(changed, HOW, images=images)


def test_unsigned_quantisers_become_signed_over_the_same_range():
    helper = onnx.helper
    tensors = {"s": np.float32(2 / 255), "z": np.uint8(0), "s2": np.float32(0.5), "z2": np.int8(0), "z3": np.uint8(3)}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["a"]),
        helper.make_node("QuantizeLinear", ["a", "s2", "z2"], ["q2"]),
        helper.make_node("DequantizeLinear", ["q2", "s2", "z2"], ["b"]),
        helper.make_node("QuantizeLinear", ["b", "s2", "z3"], ["q3"]),
        helper.make_node("DequantizeLinear", ["q3", "s2", "z3"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, [1])],
        [helper.make_tensor_value_info(name, 1, [1]) for name in ("a", "y")],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in tensors.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    assert to_signed(model) == 2
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    assert values["s"] == pytest.approx(2 / 127)
    assert values["z"].dtype == np.int8
    assert (values["s2"], values["z3"].dtype) == (0.5, np.uint8)  # signed already; and not symmetric
    top = onnx.reference.ReferenceEvaluator(model).run(["a"], {"x": np.float32([2.0])})[0]
    assert top == pytest.approx(2.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["test_resnet", pytest.param("test_efficientnet", marks=pytest.mark.slow)])
def test_the_groups_of_a_cnn_are_those_of_its_layers(name):
    """A batch norm is folded into its convolution, which keeps its own name."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).eval()
    groups = groups_of(to_onnx(model, torch.zeros(1, 3, 32, 32), opset=18))
    assert set(groups) == {group_of(path) for path in weighted(model)}


def test_the_network_that_is_quantised_is_not_changed(network, images):
    before = network.SerializeToString(deterministic=True)
    to_int8(network, Int8(layers="full", smooth_quant=0.95, bias_correction="fast"), images=images)
    assert network.SerializeToString(deterministic=True) == before


def test_two_runs_give_the_same_bytes(network, images):
    how = Int8(layers="full", smooth_quant=0.95, bias_correction="fast")
    one, other = (to_int8(network, how, images=images).SerializeToString(deterministic=True) for _ in range(2))
    assert one == other


@pytest.mark.parametrize(
    ("how", "left_out", "message"),
    [
        (HOW, ("blocks.7.qkv",), "no group 'blocks.7.qkv' among patch_embed"),
        (HOW, "all", "all 10 groups are left out: nothing is left to quantise"),
    ],
)
def test_nothing_to_quantise_is_refused(network, images, how, left_out, message):
    with pytest.raises(ModelError, match=message):
        to_int8(network, how, images=images, left_out=tuple(groups_of(network)) if left_out == "all" else left_out)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ("mlp", "no MLP of a transformer block"),
        pytest.param("full", "no attention to quantise", marks=pytest.mark.slow),
    ],
)
def test_a_cnn_has_neither_mlp_nor_attention(layers, message):
    torch.manual_seed(0)
    model = timm.create_model("test_efficientnet", num_classes=3).eval()
    graph = to_onnx(model, torch.zeros(1, 3, 32, 32), opset=18)
    images = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    with pytest.raises(ModelError, match=message):
        to_int8(graph, Int8(layers=layers, smooth_quant=None, bias_correction="none"), images=images)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "test_resnet",
        pytest.param("test_efficientnet", marks=pytest.mark.slow),
        pytest.param("mobilenetv4_conv_small", marks=pytest.mark.slow),
    ],
)
def test_cnns_get_quantisers_that_every_runtime_takes(name):
    """Behind a ReLU NNCF makes them unsigned, and those before a depthwise convolution it makes per channel."""
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
    torch.manual_seed(0)
    exported = to_onnx(timm.create_model(name, num_classes=3), torch.from_numpy(images[:1]), opset=18)
    quantised = to_int8(exported, HOW, images=images)
    assert lint(quantised, targets=TARGETS, precision="int8") == ()
    one, other = logits(quantised, images), logits(exported, images)
    assert 0 < np.abs(one - other).max() < 0.3 * np.abs(other).max()


QUICK = ("plain and augreg",)


@pytest.mark.parametrize(
    "family", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in families.FAMILIES]
)
def test_every_family_is_quantised_whole_and_legally(family):
    model = families.small(family, depth=1)
    images = families.images(model, 3).numpy()
    graph = to_onnx(model, families.images(model, 1), opset=18)
    layers = sum(isinstance(module, torch.nn.Linear | torch.nn.Conv2d) for module in model.modules())
    groups = groups_of(graph)
    assert list(groups) == ["patch_embed", *(f"blocks.0.{name}" for name in ("qkv", "proj", "fc1", "fc2")), "head"]
    assert sum(map(len, groups.values())) == layers
    assert len(attention_matmuls(graph)) == 1
    made = to_int8(graph, Int8(layers="full", smooth_quant=0.95, bias_correction="fast"), images=images)
    nodes = [node for names in groups.values() for node in names]
    nodes += [node for pair in attention_matmuls(graph) for node in pair]
    assert quantised_inputs(made) == dict.fromkeys(nodes, 2)
    assert lint(made, targets=TARGETS, precision="int8") == ()
    onnx.checker.check_model(made, full_check=True)
    assert np.isfinite(logits(made, images)).all()


class TestFolding:
    @pytest.fixture
    def smoothed(self):
        """LayerNormalization -> Mul by 2, 3 -> output; gamma is shared with a second LayerNormalization."""
        helper = onnx.helper

        def make(*, read_twice=False):
            tensors = {"gamma": [1.0, 2.0], "beta": [0.5, -1.0], "factor": [2.0, 3.0]}
            nodes = [
                helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["a"], "one"),
                helper.make_node("Mul", ["a", "factor"], ["b"], "smooth"),
                helper.make_node("LayerNormalization", ["a" if read_twice else "b", "gamma", "beta"], ["y"], "two"),
            ]
            graph = helper.make_graph(
                nodes,
                "g",
                [helper.make_tensor_value_info("x", 1, [1, 2])],
                [helper.make_tensor_value_info(name, 1, [1, 2]) for name in ("b", "y")],
                [numpy_helper.from_array(np.float32(value), name) for name, value in tensors.items()],
            )
            return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)

        return make

    @staticmethod
    def run(model):
        session = onnx.reference.ReferenceEvaluator(model)
        return session.run(None, {"x": np.float32([[0.3, -2.0]])})

    def test_values_stay_and_the_operator_goes(self, smoothed):
        model = smoothed()
        expected = self.run(model)
        assert fold_smoothing(model) == 1
        assert [node.op_type for node in model.graph.node] == ["LayerNormalization"] * 2
        for one, other in zip(self.run(model), expected, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-6)
        assert {tensor.name for tensor in model.graph.initializer} >= {"gamma", "beta"}  # of the other one
        assert "factor" not in {tensor.name for tensor in model.graph.initializer}

    def test_an_output_that_others_read_is_left_alone(self, smoothed):
        model = smoothed(read_twice=True)
        assert fold_smoothing(model) == 0
        assert len(model.graph.node) == 3
