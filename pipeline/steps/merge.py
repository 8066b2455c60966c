"""Merge: folds the adapters of teacher and student into their weights and proves that nothing else changed."""

import json
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pipeline.base.errors import ModelError
from pipeline.base.parity import Parity, accuracy_percent, compare
from pipeline.parts.adapters.inject import adapters, merge
from pipeline.parts.adapters.lora import LoraLinear
from pipeline.parts.adapters.saved import restore
from pipeline.parts.index import Loaded, LoadImage, read_index
from pipeline.parts.models import ModelSpec, build_model, load_merged, save_merged
from pipeline.parts.network import Network
from pipeline.parts.predict import torch_logits

SAVED_TOLERANCE = 0.02  # training may have run in bf16 or on a GPU


def merge_models(
    output: Path,
    *,
    distilled: Path,
    data: Path,
    teacher: ModelSpec,
    student: ModelSpec,
    tolerance: float,
    load: LoadImage,
) -> Parity:
    """Writes networks without LoRA as `teacher.safetensors` and `student.safetensors`, and the student's `parity.json`.

    `accuracy.json` has what each merged network reaches on the test split. A method without a teacher leaves none.
    Bottlenecks, which cannot be merged, stay in their network.

    Args:
        output: existing folder to write to.
        distilled: what `distill` wrote.
        data: folder of the index; the networks are compared on the validation split.
        teacher: architecture and weights that the teacher was trained from.
        student: architecture and weights that the student was trained from.
        tolerance: largest difference of a logit allowed between an adapted and a merged network, in fp32.
        load: decodes and preprocesses one image.

    Returns:
        The student's parity.

    Raises:
        ModelError: what was trained does not fit, or an adapter is left after merging.
        ParityError: a merged network answers differently from the trained one.
    """
    index, root = read_index(data)
    images = Loaded(root, index.parts["validation"], load=load)
    labels = index.parts["validation"].labels
    with np.load(distilled / "validation_logits.npz", allow_pickle=False) as stored:
        trained = dict(stored)
    specs = {role: spec for role, spec in (("teacher", teacher), ("student", student)) if role in trained}
    for role, spec in specs.items():
        model = build_model(spec, num_classes=len(index.labels), role=role)
        _adapt(model, distilled / f"{role}.safetensors")
        before = torch_logits(model, images)
        # What was saved must be what was trained: another backbone, head or scale answers quite differently.
        compare((f"trained {role}", trained[role]), (f"saved {role}", before), labels=labels, tolerance=SAVED_TOLERANCE)
        merge(model)
        left = [name for name, module in adapters(model).items() if isinstance(module, LoraLinear)]
        if left:
            msg = f"adapters are left in the {role} after merging: {left}; this is a fault of `adapters.merge`"
            raise ModelError(msg)
        after = torch_logits(model, images)
        parity = compare(("torch", before), ("merged", after), labels=labels, tolerance=tolerance)
        save_merged(output, role, model, labels=index.labels)
    parity.write(output / "parity.json")
    images = Loaded(root, index.parts["test"], load=load)
    labels = index.parts["test"].labels
    accuracies = {
        role: {"test_accuracy_percent": round(accuracy_percent(torch_logits(model, images), labels), 3)}
        for role, spec in specs.items()
        for model, _ in [load_merged(output, role, spec)]
    }
    (output / "accuracy.json").write_text(json.dumps({"schema": 1, **accuracies}, indent=2) + "\n", encoding="utf-8")
    return parity


def _adapt(model: Network, path: Path) -> None:
    """Gives the pretrained `model` what was trained, in place."""
    if not path.is_file():
        msg = f"no {str(path)!r}; run `dvc repro distill` again"
        raise ModelError(msg)
    try:
        with safe_open(path, framework="pt") as file:
            described = file.metadata() or {}
        state = load_file(path)
    except SafetensorError as error:
        msg = f"{str(path)!r} cannot be read ({error}); run `dvc repro --force distill`"
        raise ModelError(msg) from error
    restore(model, state, described)
