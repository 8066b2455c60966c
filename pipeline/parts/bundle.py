"""Writes the bundle: an ONNX file with all that a device needs to use and check it, as data."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from pipeline.base.provenance import sha256_of
from pipeline.parts.predict_onnx import onnx_function

SCHEMA = 1
MODEL = "model.onnx"
GOLDEN = "golden.npz"
# Largest error relative to the largest golden logit, by the precision an engine computes in. bf16 keeps 8 bits of
# mantissa, fp16 11, and int8 engines round differently by runtime; a wrong engine is off by about 1.
TOLERANCE = {"fp32": 1e-3, "bf16": 0.05, "fp16": 0.01, "int8": 0.1, "int8_bf16": 0.1, "int8_fp16": 0.1}


@dataclass(frozen=True, kw_only=True)
class BundleInfo:
    """What a bundle says about its network.

    Attributes:
        name: name of the network.
        variant: name of this variant, such as "int8".
        precision: precision of its linear layers.
        preprocess: preprocessing as plain data.
        labels: names of the classes.
        lineage: where it comes from.
    """

    name: str
    variant: str
    precision: str
    preprocess: Mapping[str, Any]
    labels: Sequence[str]
    lineage: Mapping[str, str | None]


def save_onnx(model: onnx.ModelProto, folder: Path) -> Path:
    """Writes `model.onnx`, the same bytes each time: without stack traces, paths of the machine or other notes."""
    for node in model.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for value in (*model.graph.input, *model.graph.output, *model.graph.value_info, *model.graph.initializer):
        del value.metadata_props[:]
        value.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    model.doc_string = model.graph.doc_string = ""
    onnx.checker.check_model(model, full_check=True)
    path = folder / MODEL
    path.write_bytes(model.SerializeToString(deterministic=True))
    return path


def write_bundle(folder: Path, info: BundleInfo, *, golden: NDArray[np.float32], program: str | None = None) -> None:
    """Adds `golden.npz` and `bundle.json` to a folder that holds `model.onnx`.

    Args:
        folder: the bundle.
        info: what it says about its network.
        golden: preprocessed images of shape (count, 3, height, width); the file's own answers to them are stored.
        program: name of a file in `folder` that holds the same network as torch.export saved it, where there is one.
    """
    run = onnx_function(folder / MODEL)
    outputs = np.concatenate([run(image[None]) for image in golden])
    np.savez(folder / GOLDEN, inputs=golden, outputs=outputs)
    graph = onnx.load(folder / MODEL).graph
    output = _tensor(graph.output[0])
    content = {
        "schema": SCHEMA,
        "name": info.name,
        "variant": info.variant,
        "precision": info.precision,
        "task": "classification" if len(output["shape"]) == 2 else "segmentation",
        "input": {**_tensor(graph.input[0]), "layout": "NCHW"},
        "output": output,
        "preprocess": dict(info.preprocess),
        "labels": list(info.labels),
        "onnx": MODEL,
        **({"program": program} if program else {}),
        "golden": {"file": GOLDEN, "count": len(golden), "tolerance": TOLERANCE},
        "files": {name: _file(folder / name) for name in (MODEL, GOLDEN, *([program] if program else []))},
        "lineage": dict(info.lineage),
    }
    (folder / "bundle.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_bundle(folder: Path) -> dict[str, Any]:
    """Returns the content of a `bundle.json` this pipeline wrote."""
    content: dict[str, Any] = json.loads((folder / "bundle.json").read_text(encoding="utf-8"))
    return content


def _tensor(value: onnx.ValueInfoProto) -> dict[str, Any]:
    return {
        "name": value.name,
        "shape": [dimension.dim_value for dimension in value.type.tensor_type.shape.dim],
        "dtype": "float32",
    }


def _file(path: Path) -> dict[str, Any]:
    return {"sha256": sha256_of(path), "bytes": path.stat().st_size}
