"""Quantize: INT8 by NNCF on the ONNX file, with quantisers that every runtime takes, then checked."""

import logging
import os
from functools import partial
from pathlib import Path

os.environ.setdefault("NNCF_CI", "1")  # NNCF sends telemetry unless this is set before it is imported

import nncf
import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.base.errors import DataError
from pipeline.base.parity import Parity, compare
from pipeline.parts.bundle import MODEL, BundleInfo, read_bundle, save_onnx, write_bundle
from pipeline.parts.index import Load, Loaded, Targets, read_index
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.parts.scores import score_of
from pipeline.steps.quantize.lint import check_quantizers


def quantize(
    output: Path,
    *,
    variant: str,
    exported: Path,
    data: Path,
    subset_size: int,
    attention: bool,
    load: Load,
) -> Parity:
    """Writes a bundle with the quantised network, and `parity.json`, to `output`.

    Args:
        output: existing folder to write to.
        variant: name of the bundle.
        exported: the FP32 bundle.
        data: folder of the index; its calibration list feeds the quantisers, its validation split is compared on.
        subset_size: calibration images used, at most.
        attention: whether the two MatMuls of attention (Q K^T and softmax V) are quantised as well.
        load: decodes and preprocesses one file.

    Raises:
        DataError: the calibration list is empty.
        ModelError: the result holds a quantiser that is not symmetric signed INT8, or none.
    """
    index, root = read_index(data)
    if not len(index.parts["calibration"]):
        msg = f"the calibration list of {str(data)!r} is empty; raise `prepare.calibration_size`"
        raise DataError(msg)
    calibration = Loaded(root, index.parts["calibration"], load=load.image)[:subset_size]
    float_model = onnx.load(exported / MODEL)
    ignored = [] if attention else attention_matmuls(float_model)
    quantised = post_training_int8(float_model, calibration, ignored=ignored)
    check_quantizers(quantised)
    path = save_onnx(quantised, output)

    validation = index.parts["validation"]
    images = Loaded(root, validation, load=load.image)
    parity = compare(
        ("onnx", onnx_logits(exported / MODEL, images)),
        (variant, onnx_logits(path, images)),
        targets=Targets(root, validation, load=load.mask, ignore=index.ignore),
        score=partial(score_of, index),
        tolerance=None,
    )
    parity.write(output / "parity.json")
    parent = read_bundle(exported)
    lineage = parent["lineage"] | {"parent_sha256": parent["files"][MODEL]["sha256"]}
    info = BundleInfo(
        name=parent["name"],
        variant=variant,
        precision="int8",
        preprocess=parent["preprocess"],
        labels=parent["labels"],
        lineage=lineage,
    )
    with np.load(exported / parent["golden"]["file"], allow_pickle=False) as golden:
        write_bundle(output, info, golden=golden["inputs"])
    return parity


def attention_matmuls(model: onnx.ModelProto) -> list[str]:
    """Names the MatMul nodes whose two inputs both are computed: Q K^T and softmax V of every block.

    Quantising one of the two and not the other blocks TensorRT's fused attention kernel, so they go together.
    """
    constants = {tensor.name for tensor in model.graph.initializer}
    return [node.name for node in model.graph.node if node.op_type == "MatMul" and not constants & set(node.input)]


def post_training_int8(
    model: onnx.ModelProto, calibration: NDArray[np.float32], *, ignored: list[str]
) -> onnx.ModelProto:
    """Quantises weights per channel and activations per tensor, all symmetric and signed.

    NNCF gives nonzero zero points under TRANSFORMER's own preset (MIXED) and unsigned quantisers under the default
    model type; TRANSFORMER with PERFORMANCE gives neither.

    Args:
        model: the FP32 network, of batch 1.
        calibration: images of shape (images, 3, height, width).
        ignored: names of nodes that stay in FP32.
    """
    nncf.set_log_level(logging.ERROR)
    name = model.graph.input[0].name
    samples = [{name: image[None]} for image in calibration]
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(samples),
        ignored_scope=nncf.IgnoredScope(names=ignored, validate=True) if ignored else None,
    )
