"""The rules that one ONNX file must keep to be legal for every target, each with its reason and its source.

All rules hold for all targets, because this project makes one file for all of them. `Rule.rejected_by` says which
runtimes do not take a file that breaks the rule; the others would run it.
"""

from dataclasses import dataclass

TARGETS = ("tensorrt10", "tensorrt11", "openvino", "onnxruntime")
PRECISIONS = ("int8", "int8_fp16", "fp16", "fp32")

_TENSORRT = ("tensorrt10", "tensorrt11")
_TYPES = "NVIDIA TensorRT documentation, Working with Quantized Types"
_OPERATOR = "NVIDIA TensorRT operators reference, Quantize and Dequantize"
_TYPED = "NVIDIA TensorRT documentation, Strongly Typed Networks"
_RERUN = "let `slad repro` write the file"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule.

    Attributes:
        id: its name, for people and tests.
        reason: what happens to a file that breaks it.
        source: a document or thread that says so.
        fix: what to do.
        rejected_by: targets whose runtime rejects or mishandles such a file.
        effect: what those runtimes do with it, as a participle.
    """

    id: str
    reason: str
    source: str
    fix: str
    rejected_by: tuple[str, ...]
    effect: str = "rejected"


@dataclass(frozen=True)
class Finding:
    """One place where a file breaks a rule.

    Attributes:
        rule: the rule.
        node: where; nodes without a name go by their number.
        detail: what was found there, with the value.
        targets: the targets that were asked about.
    """

    rule: Rule
    node: str
    detail: str
    targets: tuple[str, ...]

    @property
    def text(self) -> str:
        """One line: what, which value, where, for whom, and what to do."""
        return f"{self.place}; {self.advice}"

    @property
    def place(self) -> str:
        """What, which value and where."""
        return f"{self.rule.id}: {self.node}: {self.detail}"

    @property
    def advice(self) -> str:
        """Who does not take such a file, why, and what to do: the same for all findings of a rule."""
        return f"{'; '.join(self._verdicts())}; to do: {self.rule.fix}"

    def _verdicts(self) -> list[str]:
        rule = self.rule
        hit = [target for target in self.targets if target in rule.rejected_by]
        spared = [target for target in self.targets if target not in rule.rejected_by]
        why = f"{rule.effect} by {', '.join(hit or rule.rejected_by)}: {rule.reason} ({rule.source})"
        if not spared:
            return [why]
        allowed = f"{', '.join(spared)} can run it, but the file must be legal everywhere"
        return [why, allowed] if hit else [f"{allowed}, and is {why}"]


UNSIGNED = Rule(
    id="unsigned",
    reason="it quantises to signed INT8 only, reads a UINT8 zero point as INT8 and refuses UINT8 data",
    source=f"{_TYPES}; TensorRT issue 4698",
    fix=f"{_RERUN}, which makes all quantisers signed",
    rejected_by=_TENSORRT,
)
INT32 = Rule(
    id="int32",
    reason="its Dequantize takes no INT32, so biases stay in floating point",
    source=f"{_OPERATOR}; ONNX Runtime issue 14229",
    fix=f"{_RERUN}, which leaves biases in floating point; in ONNX Runtime's quantiser set `QuantizeBias: False`",
    rejected_by=_TENSORRT,
)
NOT_INT8 = Rule(
    id="not-int8",
    reason="types other than INT8 are known to some of the runtimes and versions only",
    source="ONNX operators QuantizeLinear and DequantizeLinear; " + _TYPES,
    fix=f"{_RERUN}, which quantises to INT8 only",
    rejected_by=TARGETS,
    effect="not surely taken",
)
ZERO_POINT = Rule(
    id="zero-point",
    reason="its quantisation is symmetric: 'Non-zero zero point is not supported'",
    source=f"{_TYPES}; TensorRT issue 4698",
    fix=f"{_RERUN}: NNCF's preset PERFORMANCE gives zero points of 0",
    rejected_by=_TENSORRT,
)
SCALE = Rule(
    id="scale",
    reason="other scales mean nothing; TensorRT stops, OpenVINO and ONNX Runtime give unlike numbers",
    source=f"ONNX operator QuantizeLinear; {_OPERATOR}",
    fix="look at the calibration images (`prepare.calibration_size`, constant or broken inputs) and quantise again",
    rejected_by=TARGETS,
    effect="rejected or computed wrongly",
)
CONSTANT = Rule(
    id="constant",
    reason="scale and zero point must be constants when the engine is built",
    source=_OPERATOR,
    fix=f"{_RERUN}; quantisation with scales computed at run time (dynamic quantisation) is of no use here",
    rejected_by=_TENSORRT,
)
SHAPE = Rule(
    id="scale-shape",
    reason="scale and zero point need one value, or one for each element of the axis",
    source="ONNX operators QuantizeLinear and DequantizeLinear, input scale",
    fix=f"set the quantiser's attribute `axis`, whose default is 1, or {_RERUN}",
    rejected_by=TARGETS,
)
ACTIVATION = Rule(
    id="per-channel-activation",
    reason="activations are quantised per tensor; one scale per channel is for weights",
    source=_TYPES,
    fix=f"{_RERUN}, which quantises activations per tensor",
    rejected_by=_TENSORRT,
)
AXIS = Rule(
    id="axis",
    reason="INT8 kernels want one scale per output channel of the weights",
    source=f"{_TYPES}; {_OPERATOR}",
    fix=f"quantise Conv and transposed Gemm weights on axis 0, MatMul weights on the last axis, or {_RERUN}",
    rejected_by=_TENSORRT,
    effect="rejected or run slowly",
)
ATTENTION = Rule(
    id="half-attention",
    reason="attention's fused INT8 kernel needs all inputs of both MatMuls quantised, or none; half costs conversions",
    source="NVIDIA TensorRT documentation, Fused Attention; NVIDIA Model-Optimizer pull request 1289",
    fix="set `layers` of this variant in `quantize.variants` to linear, or to full",
    rejected_by=_TENSORRT,
    effect="run slowly",
)
OPSET = Rule(
    id="opset",
    reason="the declared opset has no such form; ONNX Runtime stops, OpenVINO does so at scales per channel",
    source="ONNX operators changelog: per axis since 13, FP16 scales since 19, block_size and output_dtype since 21",
    fix="set `export.opset` to the number named here, or more, and run `slad repro`",
    rejected_by=("onnxruntime", "openvino"),
)
SCALE_TYPE = Rule(
    id="scale-type",
    reason="a scale has the type of its data; the others that ONNX allows from opset 23 on are not run",
    source=f"ONNX operators QuantizeLinear and DequantizeLinear; {_TYPED}; ONNX Runtime issue 32719",
    fix=f"give data and scale one type by a Cast before the QuantizeLinear, or {_RERUN}",
    rejected_by=TARGETS,
)
CAST = Rule(
    id="cast-behind-dq",
    reason="a DequantizeLinear is fused with the node that reads it; a Cast between them leaves floating point",
    source=f"{_TYPES}; {_TYPED}",
    fix=f"give the DequantizeLinear a scale of the type that the node computes in, or {_RERUN}",
    rejected_by=_TENSORRT,
    effect="not run in INT8",
)
REST = Rule(
    id="fp32-rest",
    reason="it takes every type from the file, so the rest is FP32: attention and all else that is not quantised",
    source=_TYPED,
    fix="set `rest` of this variant in `quantize.variants` to fp16, or do not claim int8_fp16",
    rejected_by=_TENSORRT,
    effect="run slowly",
)
NO_QUANTIZER = Rule(
    id="no-quantizer",
    reason="without a QuantizeLinear everything is computed in floating point",
    source="ONNX operator QuantizeLinear",
    fix="check `quantize.variants` and run `dvc repro quantize` again",
    rejected_by=TARGETS,
    effect="not run in INT8",
)
NORM = Rule(
    id="fp16-layernorm",
    reason="the squares overflow FP16 (65504) when a normalisation is computed in single operators",
    source="TensorRT issues 2781 and 3657; ONNX Runtime pull request 13639",
    fix="export with `export.opset` of 17 or more, so that LayerNormalization stays one node; with RMSNorm leave fp16 "
    "out of `quantize.variants`",
    rejected_by=_TENSORRT,
    effect="computed wrongly",
)
EXTERNAL = Rule(
    id="external-data",
    reason="weights are read only from files that lie in the model's own folder",
    source="ONNX documentation, External Data; advisory CVE-2024-27318",
    fix="keep the weights in the ONNX file, or in a plain file beside it",
    rejected_by=TARGETS,
)
