"""The rules on types: scales as their data, no Cast behind a DequantizeLinear, and an FP16 rest where it is claimed."""

import numpy as np
import pytest
from onnx import TensorProto

from pipeline.steps.quantize.lint import TARGETS, check, lint
from tests.unit.pipeline.steps.quantize.graphs import F16, F32, I8, Graph, attention

FLOAT, FLOAT16 = TensorProto.FLOAT, TensorProto.FLOAT16


def mixed_scale(where):
    """FP16 data with the FP32 scale that ONNX allows from opset 23 on: of the quantiser or of its dequantiser."""
    graph = Graph(dtype=FLOAT16)
    full, half, zero = graph.constant("s", F32(0.1)), graph.constant("h", F16(0.1)), graph.constant("z", I8(0))
    stored = graph.node("QuantizeLinear", "x", full if where == "q" else half, zero, name="q")
    if where == "q":
        return graph.model(graph.node("DequantizeLinear", stored, half, zero), opset=23)
    return graph.model(graph.node("DequantizeLinear", stored, full, zero, name="dq", output_dtype=FLOAT16), opset=23)


def cast_between(*, turned=False):
    """FP16 data and weights, and FP16 once more behind the FP32 that the weights' scales give."""
    graph = Graph(dtype=FLOAT16)
    w = graph.weights((6, 8) if turned else (8, 6), axis=0 if turned else 1, name="dq")
    w = graph.node("Transpose", w, perm=[1, 0]) if turned else w
    w = graph.node("Cast", w, to=FLOAT16, name="cast")
    return graph.model(graph.node("MatMul", graph.quantised("x", scale=F16(0.1)), w, name="user"), opset=19)


def half_linear(*, half=True):
    """One MatMul with INT8 weights, in FP16 or FP32."""
    graph = Graph(dtype=FLOAT16 if half else FLOAT)
    number = F16 if half else F32
    weights = graph.weights((8, 6), axis=1, scale=np.full(6, 0.01, number))
    x = graph.quantised("x", scale=number(0.1), name="q")
    return graph.model(graph.node("MatMul", x, weights, name="user"), opset=19)


BREAKS = {
    "FP32 scale of FP16 data": (
        lambda: mixed_scale("q"),
        "scale-type",
        "'q' (QuantizeLinear): scale is FLOAT, its data FLOAT16",
    ),
    "FP16 from an FP32 scale": (lambda: mixed_scale("dq"), "scale-type", "'dq' (DequantizeLinear): scale is FLOAT"),
    "cast weights": (cast_between, "cast-behind-dq", "'cast' (Cast) stands between it and 'user' (MatMul)"),
    "cast and turned weights": (lambda: cast_between(turned=True), "cast-behind-dq", "'dq' (DequantizeLinear)"),
}


@pytest.mark.parametrize(("build", "rule", "words"), BREAKS.values(), ids=BREAKS)
def test_each_rule_on_types_is_found_where_it_is_broken_and_no_other(build, rule, words):
    findings = lint(build(), targets=TARGETS)
    assert {finding.rule.id for finding in findings} == {rule}
    assert any(words in finding.text for finding in findings), findings[0].text


def test_an_fp16_rest_is_one_that_computes_in_fp16():
    check(half_linear(), targets=TARGETS, precision="int8_fp16")
    findings = lint(half_linear(half=False), targets=TARGETS, precision="int8_fp16")
    assert {finding.rule.id for finding in findings} == {"fp32-rest"}
    assert [finding.place.removeprefix("fp32-rest: ") for finding in findings if "'" in finding.node] == [
        "'DequantizeLinear_t0' (DequantizeLinear): its scale is FP32",
        "'q' (QuantizeLinear): its scale is FP32",
        "'DequantizeLinear_t2' (DequantizeLinear): its scale is FP32",
        "'user' (MatMul): it computes in FP32",
    ]
    check(half_linear(half=False), targets=TARGETS, precision="int8")
    plain = lint(attention(""), targets=TARGETS, precision="int8_fp16")
    assert {finding.rule.id for finding in plain} == {"no-quantizer", "fp32-rest"}
