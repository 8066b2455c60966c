"""An ONNX model as the rules look at it: its graphs with constants, and who makes and who reads each tensor."""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper
from onnx.external_data_helper import uses_external_data

from pipeline.base.errors import ModelError

QUANTIZE, DEQUANTIZE = "QuantizeLinear", "DequantizeLinear"
STANDARD = ("", "ai.onnx")


@dataclass(frozen=True, eq=False)
class Node:
    """One node.

    Attributes:
        op: its operator.
        name: its own name, which may be empty.
        domain: of the operator.
        label: its name, or its number in the graph, with the operator.
        inputs: names of tensors; "" for those left out.
        outputs: names of tensors.
        attributes: values by name.
    """

    op: str
    name: str
    domain: str
    label: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    def input(self, place: int) -> str:
        """Returns the name of an input, "" where there is none."""
        return self.inputs[place] if place < len(self.inputs) else ""


@dataclass(frozen=True)
class View:
    """One graph, with what it sees of the graphs around it.

    Attributes:
        nodes: its own nodes.
        constants: initialisers, what Constant nodes give, and Identity of these.
        fixed: names of all tensors that are computed from constants alone.
        makers: node by the tensor it makes.
        users: nodes by a tensor they read, also those of graphs within.
        folder: where external data may be read from; None: nowhere.
    """

    nodes: tuple[Node, ...]
    constants: Mapping[str, onnx.TensorProto]
    fixed: frozenset[str]
    makers: Mapping[str, Node]
    users: Mapping[str, list[Node]]
    folder: Path | None

    def value(self, name: str) -> NDArray[Any] | None:
        """Reads a constant; None where its data lies in a file that must not be read.

        Raises:
            ModelError: the data does not fit the constant's type and shape.
        """
        tensor = self.constants[name]
        if uses_external_data(tensor) and self.folder is None:
            return None
        try:
            array: NDArray[Any] = numpy_helper.to_array(tensor, base_dir=str(self.folder or ""))
            return array.astype(np.float64)
        except (ValueError, TypeError, KeyError, OSError) as cause:
            words = str(cause).splitlines()[0]
            msg = f"constant {name!r} of the ONNX file cannot be read ({words}); export and quantise it again"
            raise ModelError(msg) from cause

    def source(self, name: str, through: Callable[[Node], bool]) -> Node | None:
        """Returns the node that makes a tensor, going back over the first input of nodes that `through` accepts."""
        node, seen = self.makers.get(name), set()
        while node is not None and through(node):
            if node in seen:
                msg = f"{node.label} of the ONNX file reads its own output; export it again"
                raise ModelError(msg)
            seen.add(node)
            node = self.makers.get(node.input(0))
        return node


def views(model: onnx.ModelProto, folder: Path | None) -> list[View]:
    """Returns the main graph, then every graph within it."""
    return list(_views(model.graph, None, folder))


def _views(graph: onnx.GraphProto, outer: View | None, folder: Path | None) -> Iterator[View]:
    where = "" if outer is None else f" of graph {graph.name!r}"
    nodes = tuple(_node(proto, number, where) for number, proto in enumerate(graph.node))
    constants = dict(outer.constants if outer else {})
    constants |= {tensor.name: tensor for tensor in graph.initializer}
    fixed = set(outer.fixed if outer else ()) | set(constants)
    fixed |= {tensor.values.name for tensor in graph.sparse_initializer}
    for node in nodes:
        _add_constants(node, constants, fixed)
    users: defaultdict[str, list[Node]] = defaultdict(list)
    inner = []
    makers = dict(outer.makers if outer else {}) | {name: node for node in nodes for name in node.outputs}
    for node in nodes:
        for name in node.inputs:
            users[name].append(node)
    own = View(nodes, constants, frozenset(fixed), makers, users, folder)
    for node in nodes:
        for body in graphs_of(node):
            inner += list(_views(body, own, folder))
    for view in inner:
        for node in view.nodes:
            for name in node.inputs:
                users[name].append(node)
    yield own
    yield from inner


def graphs_of(node: Node) -> list[onnx.GraphProto]:
    """Returns the graphs that a node holds, such as the branches of If."""
    values = [value for item in node.attributes.values() for value in (item if isinstance(item, list) else [item])]
    return [value for value in values if isinstance(value, onnx.GraphProto)]


def _node(proto: onnx.NodeProto, number: int, where: str) -> Node:
    label = repr(proto.name) if proto.name else f"node {number}"
    own = (item for item in proto.attribute if item.type and not item.ref_attr_name)  # others are of a function
    attributes = {item.name: onnx.helper.get_attribute_value(item) for item in own}
    inputs, outputs = tuple(proto.input), tuple(proto.output)
    return Node(
        proto.op_type, proto.name, proto.domain, f"{label} ({proto.op_type}){where}", inputs, outputs, attributes
    )


def _add_constants(node: Node, constants: dict[str, onnx.TensorProto], fixed: set[str]) -> None:
    """Adds what a node makes, where that is constant."""
    if node.op == "Constant":
        fixed.update(node.outputs)
        for key, value in node.attributes.items():
            tensor = value if isinstance(value, onnx.TensorProto) else _plain(key, value)
            if tensor is not None:
                constants[node.outputs[0]] = tensor
    elif node.op == "Identity" and node.input(0) in constants:
        constants[node.outputs[0]] = constants[node.input(0)]
    if node.inputs and all(name == "" or name in fixed for name in node.inputs) and not graphs_of(node):
        fixed.update(node.outputs)


def _plain(key: str, value: Any) -> onnx.TensorProto | None:
    """The tensor of a Constant node that gives numbers instead of one."""
    kinds = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    return numpy_helper.from_array(np.array(value, dtype=kinds[key])) if key in kinds else None
