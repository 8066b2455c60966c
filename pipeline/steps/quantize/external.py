"""The rule on external data: weights in other files than the model's must lie, as plain files, in its folder."""

from collections.abc import Iterable, Iterator
from pathlib import Path, PureWindowsPath

import onnx
from onnx.external_data_helper import uses_external_data


def external_faults(model: onnx.ModelProto, folder: Path | None) -> Iterator[tuple[str, str]]:
    """Yields the tensors whose data must not be read, and why; nothing is opened.

    Args:
        model: loaded without its external data.
        folder: of the model's file; None where it came from none.
    """
    seen = set()
    for tensor in _tensors(model):
        if not uses_external_data(tensor):
            continue
        entries = {entry.key: entry.value for entry in tensor.external_data}
        fault = _fault(entries, folder)
        if fault is not None and fault not in seen:  # one file holds many tensors
            seen.add(fault)
            yield f"tensor {tensor.name!r}", fault


def _fault(entries: dict[str, str], folder: Path | None) -> str | None:
    location = entries.get("location", "")
    path = PureWindowsPath(location)  # takes both separators, so a file is judged alike on every system
    if not location or not path.parts:
        return "its data lies in a file without a name"
    if path.anchor:
        return f"its data lies in {location!r}, an absolute path"
    if ".." in path.parts:
        return f"its data lies in {location!r}, which leads out of the folder"
    if folder is None:
        return f"its data lies in {location!r}, and the folder of the model is not known"
    file = folder / location
    if any(step.is_symlink() for step in (file, *file.parents) if folder in step.parents):
        return f"its data lies in {location!r}, which is a symbolic link"
    if not file.is_file():
        return f"its data lies in {location!r}, which is no file in {str(folder)!r}"
    return _span_fault(entries, location, file.stat().st_size)


def _span_fault(entries: dict[str, str], location: str, size: int) -> str | None:
    offset, length = entries.get("offset") or "0", entries.get("length") or "0"
    if not (offset.isdecimal() and length.isdecimal()):
        return f"its data lies in {location!r} at offset {offset!r}, length {length!r}, which are no byte counts"
    if int(offset) + int(length) > size:
        return f"its data ends at byte {int(offset) + int(length)} of {location!r}, which has {size}"
    return None


def _tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    yield from _of_graph(model.graph)
    for function in model.functions:
        yield from _of_nodes(function.node)


def _of_graph(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    yield from _of_sparse(graph.sparse_initializer)
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for item in (item for node in nodes for item in node.attribute):
        yield from (item.t, *item.tensors)
        yield from _of_sparse((item.sparse_tensor, *item.sparse_tensors))
        for graph in (item.g, *item.graphs):
            yield from _of_graph(graph)


def _of_sparse(tensors: Iterable[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in tensors:
        yield from (tensor.values, tensor.indices)
