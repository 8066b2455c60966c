"""Small ONNX models, built node by node, that a test breaks in one place."""

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

F32, F16, I8 = np.float32, np.float16, np.int8
SCALE, ZERO = F32(0.1), I8(0)


class Graph:
    """Collects nodes and initialisers of one graph with input `x` and output `y`."""

    def __init__(self, shape=(1, 4, 8), dtype=TensorProto.FLOAT):
        self.shape, self.dtype = shape, dtype
        self.nodes, self.initializers = [], []

    def constant(self, name, array):
        self.initializers.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op, *inputs, output=None, name=None, **attributes):
        output = output or f"t{len(self.nodes)}"
        name = f"{op}_{output}" if name is None else name
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=name, **attributes))
        return output

    def quantised(self, tensor, *, scale=SCALE, zero=ZERO, q=None, dq=None, name=None):
        """Q and DQ on a tensor; `q` and `dq` are attributes, `zero` None leaves the zero point out."""
        key = name or f"{tensor}_q{len(self.nodes)}"
        extra = [self.constant(f"{key}_scale", scale)]
        if zero is not None:
            extra.append(self.constant(f"{key}_zero", zero))
        stored = self.node("QuantizeLinear", tensor, *extra, name=name, **(q or {}))
        return self.node("DequantizeLinear", stored, *extra, **(dq or {}))

    def weights(self, shape, *, axis, dtype=I8, scale=None, scales=None, **attributes):
        """INT8 weights with one scale per element of `axis`, dequantised."""
        key = f"w{len(self.nodes)}"
        count = scales or shape[axis]
        scale = np.full(count, 0.01, F32) if scale is None else scale
        names = [
            self.constant(key, np.ones(shape, dtype)),
            self.constant(f"{key}_scale", scale),
            self.constant(f"{key}_zero", np.zeros(np.shape(scale), dtype)),
        ]
        return self.node("DequantizeLinear", *names, **({"axis": axis} | attributes))

    def model(self, last, *, opset=18, domains=()):
        if last != "y":
            self.node("Identity", last, output="y", name="last")
        graph = helper.make_graph(
            self.nodes,
            "small",
            [helper.make_tensor_value_info("x", self.dtype, self.shape)],
            [helper.make_tensor_value_info("y", self.dtype, [None] * len(self.shape))],
            self.initializers,
        )
        imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
        return helper.make_model(graph, opset_imports=imports, ir_version=10)


def linear(*, opset=18, **activation) -> onnx.ModelProto:
    """One MatMul with INT8 weights; the keywords are those of `Graph.quantised`."""
    graph = Graph()
    x = graph.quantised("x", name="q", **activation)
    return graph.model(graph.node("MatMul", x, graph.weights((8, 6), axis=1)), opset=opset)


def attention(quantised, *, layout_between=True) -> onnx.ModelProto:
    """softmax(Q K^T / s + mask) V, with quantisers on those of the inputs q, k, p, v that are named."""
    graph = Graph((1, 2, 4, 8))
    parts = {name: graph.node("Mul", "x", graph.constant(f"{name}_factor", F32(2))) for name in "qkv"}
    parts = {name: graph.quantised(t) if name in quantised else t for name, t in parts.items()}
    k = graph.node("Transpose", parts["k"], perm=[0, 1, 3, 2])
    if layout_between:
        k = graph.node("Reshape", k, graph.constant("shape", np.array([1, 2, 8, 4])))
    scores = graph.node("MatMul", parts["q"], k, name="qk")
    scores = graph.node("Div", scores, graph.constant("s", F32(3)))
    scores = graph.node("Add", scores, graph.constant("mask", np.zeros((4, 4), F32)))
    weights = graph.node("Softmax", scores)
    weights = graph.quantised(weights) if "p" in quantised else weights
    return graph.model(graph.node("MatMul", weights, parts["v"], name="pv"))


def layer_norm(dtype, *, square="Pow") -> onnx.ModelProto:
    """LayerNorm in single operators, in FP16 or FP32."""
    number = F16 if dtype == TensorProto.FLOAT16 else F32
    graph = Graph((1, 4), dtype)
    mean = graph.node("ReduceMean", "x")
    centred = graph.node("Sub", "x", mean)
    if square == "Pow":
        squares = graph.node("Pow", centred, graph.constant("two", number(2)), name="square")
    else:
        squares = graph.node("Mul", centred, centred, name="square")
    variance = graph.node("Add", graph.node("ReduceMean", squares), graph.constant("epsilon", number(1e-5)))
    return graph.model(graph.node("Div", centred, graph.node("Sqrt", variance)))


def external(model: onnx.ModelProto, location: str) -> onnx.ModelProto:
    """The model with its initialisers described as lying in the file `location`, one after the other."""
    offset = 0
    for tensor in model.graph.initializer:
        size = len(tensor.raw_data)
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", location), ("offset", offset), ("length", size)):
            tensor.external_data.add(key=key, value=str(value))
        offset += size
    return model
