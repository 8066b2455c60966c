"""Each rule is broken alone by a small model; models that keep all of them pass."""

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from pipeline.base.errors import ModelError, ParamsError
from pipeline.steps.quantize import rules
from pipeline.steps.quantize.lint import TARGETS, check, count_quantizers, lint
from tests.unit.pipeline.steps.quantize.graphs import F16, F32, I8, Graph, attention, layer_norm, linear

INT8, UINT8 = TensorProto.INT8, TensorProto.UINT8


def broken(model, **options) -> set[str]:
    return {finding.rule.id for finding in lint(model, targets=TARGETS, **options)}


def weighted(op, shape, axis, x=(1, 4, 8), *, turned=None, opset=18, weights=None, **attributes):
    """One node with INT8 weights, transposed before it where `turned` is a permutation."""
    graph = Graph(x)
    w = graph.weights(shape, axis=axis, **(weights or {}))
    w = graph.node("Transpose", w, perm=turned) if turned else w
    return graph.model(graph.node(op, "x", w, name="user", **attributes), opset=opset)


def int32_bias():
    graph = Graph((1, 3, 8, 8))
    w, b = graph.weights((5, 3, 3, 3), axis=0), graph.weights((5,), axis=0, dtype=np.int32)
    return graph.model(graph.node("Conv", "x", w, b))


def computed_scale():
    graph = Graph()
    scale, zero = graph.node("ReduceMax", "x", keepdims=0), graph.constant("zero", I8(0))
    stored = graph.node("QuantizeLinear", "x", scale, zero, name="q")
    return graph.model(graph.node("DequantizeLinear", stored, scale, zero))


def computed_zero():
    graph = Graph()
    scale = graph.constant("scale", F32(0.1))
    zero = graph.node("Cast", graph.node("ReduceMin", "x", keepdims=0), to=INT8)
    stored = graph.node("QuantizeLinear", "x", scale, zero, name="q")
    return graph.model(graph.node("DequantizeLinear", stored, scale, zero))


def per_channel_activation():
    axis = {"axis": 2}
    return linear(scale=np.full(8, 0.1, F32), zero=np.zeros(8, I8), q=axis, dq=axis)


def half_precision(opset):
    graph = Graph(dtype=TensorProto.FLOAT16)
    return graph.model(graph.quantised("x", scale=F16(0.1), name="q"), opset=opset)


def uint8_weights():
    graph = Graph()
    w = graph.constant("w", np.ones((8, 6), np.uint8))
    w = graph.node("DequantizeLinear", w, graph.constant("w_scale", F32(0.1)), name="dq")
    return graph.model(graph.node("MatMul", graph.quantised("x"), w))


BLOCKS = {"scale": np.full((4, 6), 0.01, F32), "block_size": 2}
FLOAT16, FLOAT = TensorProto.FLOAT16, TensorProto.FLOAT
# (model, the one rule it breaks, words of the finding)
BREAKS = {
    "uint8": (lambda: linear(zero=np.uint8(0)), "unsigned", "'q' (QuantizeLinear): zero point is UINT8, not INT8"),
    "absent zero point": (lambda: linear(zero=None), "unsigned", "absent, which means UINT8"),
    "output_dtype": (
        lambda: linear(zero=None, q={"output_dtype": UINT8}, opset=21),
        "unsigned",
        "`output_dtype` is UINT8",
    ),
    "uint8 weights": (uint8_weights, "unsigned", "'dq' (DequantizeLinear): data is UINT8"),
    "int32 bias": (int32_bias, "int32", "zero point is INT32"),
    "int16": (lambda: linear(zero=np.int16(0), opset=21), "not-int8", "zero point is INT16"),
    "asymmetric": (lambda: linear(zero=I8(-84)), "zero-point", "zero point is -84, not 0"),
    "zero scale": (lambda: linear(scale=F32(0)), "scale", "scale 0 is not positive and finite (1 of 1)"),
    "negative scale": (lambda: linear(scale=F32(-0.5)), "scale", "scale -0.5 is not positive"),
    "infinite scale": (lambda: linear(scale=F32(np.inf)), "scale", "scale inf"),
    "scale that is no number": (lambda: linear(scale=F32(np.nan)), "scale", "scale nan"),
    "computed scale": (computed_scale, "constant", "scale 't0' is no constant"),
    "computed zero point": (computed_zero, "constant", "is no constant"),
    "per channel": (per_channel_activation, "per-channel-activation", "8 scales on 'x', which is no weight"),
    "conv": (
        lambda: weighted("Conv", (5, 3, 3, 3), 1, (1, 3, 8, 8)),
        "axis",
        "'user' (Conv) have scales on axis 1, not 0",
    ),
    "matmul": (lambda: weighted("MatMul", (8, 6), 0), "axis", "axis 0, not 1"),
    "gemm": (lambda: weighted("Gemm", (8, 6), 0, (4, 8)), "axis", "axis 0, not 1"),
    "gemm transB": (lambda: weighted("Gemm", (6, 8), 1, (4, 8), transB=1), "axis", "axis 1, not 0"),
    "transposed conv": (lambda: weighted("ConvTranspose", (3, 5, 3, 3), 0, (1, 3, 8, 8)), "axis", "axis 0, not 1"),
    "behind a transpose": (lambda: weighted("MatMul", (6, 8), 1, turned=[1, 0]), "axis", "axis 0, not 1"),
    "blocks": (lambda: weighted("MatMul", (8, 6), 0, weights=BLOCKS, opset=21), "axis", "in blocks"),
    "count": (lambda: weighted("MatMul", (8, 6), 1, weights={"scales": 5}), "scale-shape", "5 scales on axis 1"),
    "no axis": (lambda: weighted("MatMul", (8, 6), 2, weights={"scales": 6}), "scale-shape", "axis 2 is outside"),
    "zero points": (
        lambda: linear(scale=F32(0.1), zero=np.zeros(3, I8)),
        "scale-shape",
        "scale has shape (), zero point (3,)",
    ),
    "scores only": (lambda: attention("qk"), "half-attention", "2 of 2 inputs of Q K^T, 0 of 2 of softmax V"),
    "values only": (lambda: attention("pv"), "half-attention", "'qk' (MatMul) and 'pv' (MatMul)"),
    "no softmax": (lambda: attention("qkv"), "half-attention", "1 of 2 of softmax V"),
    "keys only": (lambda: attention("k"), "half-attention", "1 of 2 inputs of Q K^T"),
    "axis of opset 13": (lambda: linear(opset=12), "opset", "needs opset 13, the file declares 12"),
    "FP16 scale": (lambda: half_precision(18), "opset", "FP16 scale needs opset 19"),
    "output_dtype of opset 21": (
        lambda: linear(q={"output_dtype": INT8}, opset=19),
        "opset",
        "attribute `output_dtype` needs opset 21",
    ),
    "FP16 norm": (lambda: layer_norm(FLOAT16), "fp16-layernorm", "'square' (Pow): squares FP16"),
    "FP16 norm by Mul": (lambda: layer_norm(FLOAT16, square="Mul"), "fp16-layernorm", "'square' (Mul)"),
}


@pytest.mark.parametrize(("build", "rule", "words"), BREAKS.values(), ids=BREAKS)
def test_each_rule_is_found_where_it_is_broken_and_no_other(build, rule, words):
    findings = lint(build(), targets=TARGETS)
    assert {finding.rule.id for finding in findings} == {rule}
    assert any(words in finding.text for finding in findings), findings[0].text


@pytest.mark.parametrize("case", BREAKS)
def test_onnxruntime_takes_what_the_rules_say_it_takes(case):
    build, rule, _ = BREAKS[case]
    rejected_by = next(r for r in vars(rules).values() if isinstance(r, rules.Rule) and r.id == rule).rejected_by
    if rule == "opset":
        with pytest.raises(Exception, match="INVALID_GRAPH"):
            session(build())
    elif "onnxruntime" not in rejected_by:  # what else it rejects, it rejects when it runs, or computes wrongly
        session(build())


def session(model):
    options = ort.SessionOptions()
    options.log_severity_level = 4
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def legal():
    """A network of Conv (grouped), Gemm, MatMul, LayerNormalization and fully quantised scores of attention."""
    graph = Graph((1, 4, 8, 8))
    x = graph.quantised("x")
    x = graph.node("Conv", x, graph.weights((6, 2, 3, 3), axis=0), group=2, pads=[1, 1, 1, 1])
    x = graph.node("ConvTranspose", graph.quantised(x), graph.weights((6, 4, 1, 1), axis=1))
    x = graph.node("LayerNormalization", x, graph.constant("gain", np.ones(8, F32)))
    x = graph.node("MatMul", graph.quantised(x), graph.weights((8, 8), axis=-1))
    x = graph.node("Reshape", x, graph.constant("flat", np.array([4, 64])))
    x = graph.node("Gemm", graph.quantised(x), graph.weights((16, 64), axis=0), transB=1)
    x = graph.node("Gemm", graph.quantised(x), graph.weights((16, 8), axis=1))
    turned = graph.node("Transpose", graph.weights((8, 8), axis=0), perm=[1, 0])
    return graph.model(graph.node("Softmax", graph.node("MatMul", graph.quantised(x), turned)))


LEGAL = {
    "all operators": legal,
    "one layer": linear,
    "attention in full": lambda: attention("qkvp"),
    "attention in full, transposed once": lambda: attention("qkvp", layout_between=False),
    "attention in floating point": lambda: attention(""),
    "FP16 scale, opset 19": lambda: half_precision(19),
    "output_dtype INT8": lambda: linear(zero=None, q={"output_dtype": INT8}, opset=21),
    "norm in FP32": lambda: layer_norm(FLOAT),
}


@pytest.mark.parametrize("build", LEGAL.values(), ids=LEGAL)
def test_what_keeps_every_rule_passes(build):
    model = build()
    session(model)  # else it would be no proof
    check(model, targets=TARGETS)


def test_every_quantizer_is_counted():
    assert count_quantizers(linear()) == 3
    assert count_quantizers(layer_norm(FLOAT)) == 0


@pytest.mark.parametrize("build", [lambda: layer_norm(FLOAT), lambda: weighted("MatMul", (8, 6), 1)])
def test_int8_without_quantised_activations_is_no_int8(build):
    assert broken(build(), precision="int8") == {"no-quantizer"}
    assert broken(build(), precision="fp32") == set()


def test_a_norm_in_fp32_overflows_where_the_whole_file_is_to_run_in_fp16():
    assert broken(layer_norm(FLOAT), precision="fp16") == {"fp16-layernorm"}
    model = layer_norm(FLOAT)  # a file that holds FP16 tensors says itself that this norm stays in FP32
    model.graph.node.append(helper.make_node("Cast", ["y"], ["z"], to=FLOAT16))
    model.graph.output.append(helper.make_tensor_value_info("z", FLOAT16, (1, 4)))
    assert broken(model, precision="fp16") == set()


def test_operators_that_nothing_is_known_of_are_no_obstacle():
    model = layer_norm(FLOAT)
    model.graph.node.append(helper.make_node("Unknown", ["y"], ["z"], domain="nowhere"))
    assert broken(model, precision="fp16") == {"fp16-layernorm"}


def test_constant_nodes_and_identities_are_constants():
    graph = Graph()
    scale = graph.node("Identity", graph.node("Constant", value_float=0.1))
    zero = graph.node("Constant", value=onnx.numpy_helper.from_array(I8(3)))
    stored = graph.node("QuantizeLinear", "x", scale, zero)
    assert broken(graph.model(graph.node("DequantizeLinear", stored, scale, zero))) == {"zero-point"}


def test_quantisers_on_constants_are_those_of_weights():
    graph = Graph()
    w = graph.node("Transpose", graph.constant("w", np.ones((6, 8), F32)), perm=[1, 0])
    parts = [graph.constant("s", np.full(6, 0.1, F32)), graph.constant("z", np.zeros(6, I8))]
    w = graph.node("DequantizeLinear", graph.node("QuantizeLinear", w, *parts, axis=1), *parts, axis=1)
    assert broken(graph.model(graph.node("MatMul", graph.quantised("x"), w))) == set()


def test_a_quantiser_and_its_dequantiser_are_one_finding():
    assert [finding.node for finding in lint(linear(zero=I8(1)), targets=TARGETS)] == ["'q' (QuantizeLinear)"]


@pytest.mark.parametrize(("zero", "nodes"), [(I8(0), []), (np.uint8(0), ["q", "dq"])])
def test_a_dequantiser_with_parameters_of_its_own_is_judged_by_itself(zero, nodes):
    graph = Graph()
    stored = graph.node("QuantizeLinear", "x", graph.constant("s", F32(0.1)), graph.constant("z", zero), name="q")
    model = graph.model(graph.node("DequantizeLinear", stored, graph.constant("other", F32(0.2)), name="dq"))
    assert [finding.node.split("'")[1] for finding in lint(model, targets=TARGETS)] == nodes
    model.graph.initializer[-1].CopyFrom(onnx.numpy_helper.from_array(F32(-1), "other"))
    assert "scale" in broken(model)


def test_a_node_without_a_name_goes_by_its_number():
    model = linear(zero=I8(1))
    model.graph.node[0].name = ""
    assert lint(model, targets=TARGETS)[0].node == "node 0 (QuantizeLinear)"


def branched(nodes, graph, *, dtype=FLOAT):
    """A model with `nodes`, which end in `o`, in both branches of an If behind those of `graph`."""
    body = helper.make_graph(nodes, "body", [], [helper.make_tensor_value_info("o", dtype, None)])
    condition = graph.constant("condition", np.array(True))
    return graph.model(graph.node("If", condition, then_branch=body, else_branch=body))


def test_branches_are_looked_into_and_see_the_constants_around_them():
    graph = Graph()
    parts = [graph.constant("s", F32(0.1)), graph.constant("z", np.uint8(0))]
    inner = [
        helper.make_node("QuantizeLinear", ["x", *parts], ["i"]),
        helper.make_node("DequantizeLinear", ["i", *parts], ["o"]),
    ]
    model = branched(inner, graph)
    assert {finding.node for finding in lint(model, targets=TARGETS)} == {"node 0 (QuantizeLinear) of graph 'body'"}
    assert broken(model) == {"unsigned"}
    assert count_quantizers(model) == 4


def test_weights_are_followed_into_branches():
    graph = Graph()
    node = helper.make_node("MatMul", ["x", graph.weights((8, 6), axis=0)], ["o"])
    assert broken(branched([node], graph)) == {"axis"}


def test_norms_in_branches_are_found():
    inner = layer_norm(FLOAT16)
    graph = Graph((1, 4), FLOAT16)
    graph.initializers = list(inner.graph.initializer)
    nodes = [*inner.graph.node, helper.make_node("Identity", ["y"], ["o"])]
    for node in nodes:  # "y" is the name of the model's own output
        node.input[:] = ["inner" if name == "y" else name for name in node.input]
        node.output[:] = ["inner" if name == "y" else name for name in node.output]
    assert broken(branched(nodes, graph, dtype=FLOAT16)) == {"fp16-layernorm"}


def test_functions_of_the_model_are_looked_into():
    nodes = [
        helper.make_node("QuantizeLinear", ["a", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["b"]),
    ]
    graph = Graph()
    parts = [graph.constant("s", F32(0.1)), graph.constant("z", I8(5))]
    model = graph.model(graph.node("Fake", "x", *parts, domain="own"), domains=("own",))
    model.functions.append(helper.make_function("own", "Fake", ["a", "s", "z"], ["b"], nodes, model.opset_import[:1]))
    assert broken(model) == {"zero-point"}


TYPES = TensorProto.DataType.keys()


@pytest.mark.parametrize("name", [name for name in TYPES if name[:4] in {"FLOA", "INT4", "UINT", "BFLO"}])
def test_a_zero_point_of_any_type_is_judged(name):
    model = linear(opset=23)
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "q_zero")
    zero.CopyFrom(TensorProto(name="q_zero", data_type=TensorProto.DataType.Value(name), raw_data=bytes(8)))
    zero.dims.append({"FLOAT": 2, "UINT32": 2}.get(name, 1))
    try:
        onnx.numpy_helper.to_array(zero)
    except ValueError:
        with pytest.raises(ModelError, match="constant 'q_zero' of the ONNX file cannot be read"):
            lint(model, targets=TARGETS)
    else:
        assert broken(model) & {"unsigned", "not-int8"}


def test_quantisers_of_another_domain_are_not_the_standards():
    model = linear()
    model.graph.node[0].domain = "com.microsoft"
    assert broken(model) == {"opset"}


def texts(rule, targets):
    return rules.Finding(rule, "node", "detail", targets).text


def test_a_finding_says_who_rejects_the_file_and_who_would_run_it():
    both = texts(rules.UNSIGNED, TARGETS)
    assert both.startswith("unsigned: node: detail; rejected by tensorrt10, tensorrt11: it quantises")
    assert "openvino, onnxruntime can run it, but the file must be legal everywhere" in both
    assert f"to do: {rules.UNSIGNED.fix}" in both
    assert "can run it" not in texts(rules.UNSIGNED, ("tensorrt10",))
    alone = texts(rules.UNSIGNED, ("openvino",))
    assert "openvino can run it, but the file must be legal everywhere, and is rejected by tensorrt10" in alone
    assert "onnxruntime" not in texts(rules.UNSIGNED, ("openvino",))


def test_every_rule_has_a_reason_a_source_and_a_remedy():
    known = [rule for rule in vars(rules).values() if isinstance(rule, rules.Rule)]
    assert len({rule.id for rule in known}) == len(known) == 17
    for rule in known:
        assert rule.reason
        assert rule.source
        assert rule.fix
        assert rule.rejected_by
        assert set(rule.rejected_by) <= set(TARGETS)
        assert "\n" not in texts(rule, TARGETS)


def test_the_error_counts_all_findings_and_shows_five():
    graph = Graph()
    x = "x"
    for place in range(7):
        x = graph.quantised(x, zero=I8(1), name=f"q{place}")
    with pytest.raises(ModelError, match=r"in 7 place\(s\): zero-point: 'q0'.*'q4'.* and 2 more. zero-") as error:
        check(graph.model(x), targets=TARGETS)
    assert "q5" not in str(error.value)
    assert str(error.value).count(rules.ZERO_POINT.fix) == 1
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"targets": ("openvino", "tpu")}, "target 'tpu' is unknown; choose of tensorrt10"),
        ({"targets": ()}, "no target is given"),
        ({"targets": TARGETS, "precision": "int4"}, "precision 'int4' is unknown; choose of int8"),
    ],
)
def test_unknown_targets_and_precisions_are_refused(options, words):
    with pytest.raises(ParamsError, match=words):
        lint(linear(), **options)


def test_the_model_stays_as_it_is():
    model = legal()
    before = model.SerializeToString(deterministic=True)
    lint(model, targets=TARGETS, precision="int8")
    assert model.SerializeToString(deterministic=True) == before
