"""Refuses an ONNX file that not every runtime takes as it is meant: the rules stand in `rules.py`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import onnx
import onnx.inliner

from pipeline.base.errors import ModelError, ParamsError
from pipeline.steps.quantize import rules
from pipeline.steps.quantize.external import external_faults
from pipeline.steps.quantize.graph import DEQUANTIZE, QUANTIZE, STANDARD, View, views
from pipeline.steps.quantize.patterns import element_types, half_quantised, in_fp32, overflows, squares_of_norms
from pipeline.steps.quantize.quantizers import SCALES_OPSET, cast_faults, quantizer_faults, scale_type_fault
from pipeline.steps.quantize.rules import PRECISIONS, TARGETS, Finding, Rule

__all__ = ["TARGETS", "Finding", "Rule", "check", "count_quantizers", "lint"]

SHOWN = 5


def lint(
    model: onnx.ModelProto, *, targets: Sequence[str], precision: str | None = None, folder: Path | None = None
) -> tuple[Finding, ...]:
    """Returns every place where a model breaks a rule; the model is not changed.

    Args:
        model: with or without its external data loaded.
        targets: those asked about, of `TARGETS`. Every rule holds for all of them; the findings say whose runtime
            rejects what.
        precision: what the file claims to be: "int8", "int8_fp16" (the rest is typed FP16), "fp16", "fp32"; None: none.
        folder: of the model's file; external data is looked for there, and scales and zero points are read from it
            only when all of it lies there.

    Raises:
        ParamsError: a target or the precision is unknown.
        ModelError: a scale or zero point cannot be read.
    """
    _check_known(targets, precision)
    asked = tuple(target for target in TARGETS if target in targets)
    outside = list(external_faults(model, folder))
    faults = [(rules.EXTERNAL, where, fault) for where, fault in outside]
    faults += _graph_faults(_flat(model), precision, None if outside else folder)
    return tuple(Finding(rule, where, fault, asked) for rule, where, fault in faults)


def check(
    model: onnx.ModelProto, *, targets: Sequence[str], precision: str | None = None, folder: Path | None = None
) -> None:
    """Refuses a model that breaks a rule; the arguments are those of `lint`.

    Raises:
        ModelError: with the number of findings and the first of them.
        ParamsError: a target or the precision is unknown.
    """
    findings = lint(model, targets=targets, precision=precision, folder=folder)
    if findings:
        shown = findings[:SHOWN]
        more = f" | and {len(findings) - SHOWN} more" if len(findings) > SHOWN else ""
        advice = dict.fromkeys(f"{finding.rule.id} is {finding.advice}" for finding in shown)
        msg = f"the ONNX file breaks rules of its targets in {len(findings)} place(s): "
        msg += " | ".join(finding.place for finding in shown) + f"{more}. {'. '.join(advice)}"
        raise ModelError(msg)


def count_quantizers(model: onnx.ModelProto) -> int:
    """Counts QuantizeLinear and DequantizeLinear nodes, in all graphs."""
    return sum(node.op in {QUANTIZE, DEQUANTIZE} for view in views(_flat(model), None) for node in view.nodes)


def _check_known(targets: Sequence[str], precision: str | None) -> None:
    unknown = [target for target in targets if target not in TARGETS]
    if unknown or not targets:
        msg = f"target {unknown[0]!r} is unknown" if unknown else "no target is given"
        msg += f"; choose of {', '.join(TARGETS)}"
        raise ParamsError(msg)
    if precision not in (None, *PRECISIONS):
        msg = f"precision {precision!r} is unknown; choose of {', '.join(PRECISIONS)}"
        raise ParamsError(msg)


def _flat(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model with its own functions written out, as runtimes do."""
    return onnx.inliner.inline_local_functions(model) if model.functions else model


def _graph_faults(
    model: onnx.ModelProto, precision: str | None, folder: Path | None
) -> Iterator[tuple[Rule, str, str]]:
    graphs = views(model, folder)
    opset = next((item.version for item in model.opset_import if item.domain in STANDARD), 1)
    operators = {node.op for view in graphs for node in view.nodes}
    if precision in ("int8", "int8_fp16") and QUANTIZE not in operators:
        yield rules.NO_QUANTIZER, f"graph {model.graph.name!r}", "it claims INT8 and holds no QuantizeLinear node"
    for view in graphs:
        for node in view.nodes:
            if node.op in {QUANTIZE, DEQUANTIZE}:
                for rule, fault in quantizer_faults(view, node, opset):
                    yield rule, node.label, fault
        for where, fault in half_quantised(view):
            yield rules.ATTENTION, where, fault
    yield from _type_faults(model, graphs, precision, opset)


def _type_faults(
    model: onnx.ModelProto, graphs: Sequence[View], precision: str | None, opset: int
) -> Iterator[tuple[Rule, str, str]]:
    """What the types of tensors tell; they are found only where they matter, as that takes a copy of the model."""
    squares = [square for view in graphs for square in squares_of_norms(view)]
    quantizers = [(view, node) for view in graphs for node in view.nodes if node.op in {QUANTIZE, DEQUANTIZE}]
    types = element_types(model) if squares or quantizers or precision == "int8_fp16" else {}
    for square in squares:
        fault = overflows(square, types, precision)
        if fault is not None:
            yield rules.NORM, square.label, fault
    for view, node in quantizers:
        fault = scale_type_fault(node, types) if opset >= SCALES_OPSET else None  # before, scales are FP32 alone
        if fault is not None:
            yield rules.SCALE_TYPE, node.label, fault
        for fault in cast_faults(view, node):
            yield rules.CAST, node.label, fault
    if precision == "int8_fp16":
        for view in graphs:
            for where, fault in in_fp32(view, types):
                yield rules.REST, where, fault
