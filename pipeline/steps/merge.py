"""Merge: folds the adapters of teacher and student into their weights and proves that nothing else changed."""

from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.torch import load_file
from timm.models import VisionTransformer

from pipeline.base.errors import ModelError
from pipeline.base.parity import Parity, compare
from pipeline.parts.adapters import LoraQkv, inject_saved, merge
from pipeline.parts.data import LoadImage, labels_of, stacked
from pipeline.parts.index import read_index
from pipeline.parts.models import ModelSpec, build_model, save_merged
from pipeline.parts.predict import torch_logits

SAVED_TOLERANCE = 0.02  # training may have run in bf16 or on a GPU


def merge_pair(
    output: Path,
    *,
    distilled: Path,
    data: Path,
    foundation: Path,
    teacher: ModelSpec,
    student: ModelSpec,
    tolerance: float,
    load: LoadImage,
) -> Parity:
    """Writes plain networks as `teacher.safetensors` and `student.safetensors`, and the student's `parity.json`.

    Args:
        output: existing folder to write to.
        distilled: what `distill` wrote.
        data: folder of the index; the validation split is compared on.
        foundation: folder with the foundation weights, for weights "foundation".
        teacher: architecture and weights the teacher's adapters were trained on.
        student: architecture and weights the student's adapters were trained on.
        tolerance: largest difference of a logit allowed between an adapted and a merged network, in fp32.
        load: decodes and preprocesses one image.

    Returns:
        The student's parity.

    Raises:
        ModelError: the adapters do not fit, or one is left after merging.
        ParityError: a merged network answers differently from the trained one.
    """
    index, root = read_index(data)
    images = stacked(root, index.splits["validation"], load=load)
    labels = labels_of(index.splits["validation"])
    with np.load(distilled / "validation_logits.npz", allow_pickle=False) as stored:
        trained = dict(stored)
    for role, spec in (("teacher", teacher), ("student", student)):
        model = build_model(spec, num_classes=len(index.labels), role=role, foundation=foundation)
        _adapt(model, distilled, role)
        before = torch_logits(model, images)
        # What was saved must be what was trained: another backbone, head or scale answers quite differently.
        compare((f"trained {role}", trained[role]), (f"saved {role}", before), labels=labels, tolerance=SAVED_TOLERANCE)
        merge(model)
        left = [name for name, module in model.named_modules() if isinstance(module, LoraQkv)]
        if left:
            msg = f"adapters are left in the {role} after merging: {left}; this is a fault of `adapters.merge`"
            raise ModelError(msg)
        after = torch_logits(model, images)
        parity = compare(("torch", before), ("merged", after), labels=labels, tolerance=tolerance)
        save_merged(output, role, model, labels=index.labels)
    parity.write(output / "parity.json")
    return parity


def _adapt(model: VisionTransformer, distilled: Path, role: str) -> None:
    """Gives `model` the adapters and the head that were trained, in place."""
    path = distilled / "adapters.safetensors"
    adapters, heads = load_file(path), load_file(distilled / "heads.safetensors")
    with safe_open(path, framework="pt") as file:
        scale = float(file.metadata()["scale"])
    prefix = f"{role}."
    inject_saved(model, {k.removeprefix(prefix): v for k, v in adapters.items() if k.startswith(prefix)}, scale=scale)
    prefix = f"{role}.head."
    model.head.load_state_dict({k.removeprefix(prefix): v for k, v in heads.items() if k.startswith(prefix)})
