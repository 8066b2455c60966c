"""Export: one ONNX file of fixed batch 1, LayerNormalization kept as one operator, equal to the merged student.

Where it is wanted, the same network is written as torch.export saves it too, and is held equal to the ONNX file.
"""

import ast
import hashlib
import warnings
from collections import Counter
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from pipeline.base.errors import ModelError
from pipeline.base.parity import Parity, compare
from pipeline.base.provenance import git_revision
from pipeline.parts.bundle import BundleInfo, save_onnx, write_bundle
from pipeline.parts.index import Index, Load, Loaded, Targets, evenly, kept_places, read_index
from pipeline.parts.models import ModelSpec, load_merged
from pipeline.parts.predict import torch_logits
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.parts.program import PROGRAM, program_logits, save_program
from pipeline.parts.scores import score_of

SCOPES = "pkg.torch.onnx.name_scopes"  # key of the exporter's note on where a node comes from


def export(
    output: Path,
    *,
    merged: Path,
    data: Path,
    student: ModelSpec,
    preprocess: Mapping[str, Any],
    opset: int,
    tolerance: float,
    golden_count: int,
    program: bool,
    params: Path,
    load: Load,
) -> Parity:
    """Writes a bundle, and `parity.json`, to `output`.

    Args:
        output: existing folder to write to.
        merged: what `merge` wrote.
        data: folder of the index; the validation split is compared on and gives the golden inputs.
        student: architecture of the student.
        preprocess: preprocessing as plain data, stored in the bundle.
        opset: of the ONNX file; 17 or later keeps LayerNormalization one operator.
        tolerance: largest difference of a logit allowed between torch and ONNX Runtime.
        golden_count: number of golden inputs, at most: their answers take no more than 64 MiB.
        program: whether to write `program.pt2`, and `program_parity.json`, too.
        params: `params.yaml`, whose hash is recorded.
        load: decodes and preprocesses one file.

    Raises:
        ModelError: the graph decomposes LayerNormalization.
        ParityError: the ONNX file, or the program, answers differently.
    """
    index, root = read_index(data)
    validation = index.parts["validation"]
    images = Loaded(root, validation, load=load.image)
    model, names = load_merged(merged, "student", student)
    image = torch.from_numpy(images[:1])
    graph = to_onnx(model, image, opset=opset)
    _check_layer_norms(graph, model)
    path = save_onnx(graph, output)
    checked = partial(
        compare,
        targets=Targets(root, validation, load=load.mask, ignore=index.ignore),
        score=partial(score_of, index),
        tolerance=tolerance,
    )
    parity = checked(("merged", torch_logits(model, images)), ("onnx", onnx_logits(path, images)))
    parity.write(output / "parity.json")
    if program:
        saved = save_program(model, image, output)
        same = checked(("onnx", onnx_logits(path, images)), ("program", program_logits(saved, images)))
        same.write(output / "program_parity.json")
    lineage = _lineage(params, index)
    info = BundleInfo(
        name=student.model, variant="fp32", precision="fp32", preprocess=preprocess, labels=names, lineage=lineage
    )
    shape = [dimension.dim_value for dimension in graph.graph.output[0].type.tensor_type.shape.dim]
    count = min(golden_count, len(kept_places(len(validation), shape)))
    chosen = Loaded(root, validation[evenly(len(validation), count)], load=load.image)
    write_bundle(output, info, golden=chosen[:], program=PROGRAM if program else None)
    return parity


def _lineage(params: Path, index: Index) -> dict[str, str | None]:
    return {
        "git_revision": git_revision(Path.cwd()),
        "params_sha256": hashlib.sha256(params.read_bytes()).hexdigest(),
        "data_sha256": index.sha256,
        "parent_sha256": None,
    }


def to_onnx(model: nn.Module, image: torch.Tensor, *, opset: int) -> onnx.ModelProto:
    """Exports `model` for inputs of the shape of `image`, (1, 3, height, width); names are `image` and `logits`."""
    # Traced with a fused kernel, attention that takes a mask (BEiT) has strides that its decomposition has not.
    with warnings.catch_warnings(), sdpa_kernel(SDPBackend.MATH):
        # torch's exporter warns about its own internals (deprecated tree specs), nothing a user could act on.
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            model.eval(),
            (image,),
            dynamo=True,
            opset_version=opset,
            input_names=["image"],
            output_names=["logits"],
            verbose=False,
        )
    if program is None:
        msg = "torch.onnx.export returned no program"
        raise ModelError(msg)
    graph = program.model_proto
    _name_nodes(graph)
    return graph


def _name_nodes(model: onnx.ModelProto) -> None:
    """Names every node by the layer it belongs to and its operator, "blocks.3.attn.qkv/MatMul".

    Whoever looks at the file, a runtime's profile or an error then knows where it is. The path stands in the exporter's
    notes, which the file that is kept has not.
    """
    counts: Counter[str] = Counter()
    for node in model.graph.node:
        notes = {note.key: note.value for note in node.metadata_props}
        scopes = ast.literal_eval(notes.get(SCOPES, "['', '']"))  # from the whole network to the call itself
        owner = scopes[-2]
        if node.op_type == "Conv" and node.input[1].endswith(".weight"):
            owner = node.input[1].removesuffix(".weight")  # with a batch norm folded in, it would go by that one's name
        name = f"{owner}/{node.op_type}"
        counts[name] += 1
        node.name = name if counts[name] == 1 else f"{name}_{counts[name]}"


def _check_layer_norms(graph: onnx.ModelProto, model: nn.Module) -> None:
    found = Counter(node.op_type for node in graph.graph.node)["LayerNormalization"]
    expected = sum(isinstance(module, nn.LayerNorm) for module in model.modules())
    if found != expected:
        msg = (
            f"the ONNX graph holds {found} LayerNormalization operators, the student {expected}; "
            f"decomposed ones overflow in FP16: raise `export.opset` to 17 or later"
        )
        raise ModelError(msg)
