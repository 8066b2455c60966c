"""Distill: trains teacher and student on the train split and records how well each does on validation."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
from safetensors.torch import save_file
from torch import Tensor

from pipeline.base.errors import ModelError
from pipeline.base.parity import accuracy_percent
from pipeline.base.seeding import seed_everything
from pipeline.parts.adapters import adapters_of
from pipeline.parts.data import Augment, Images, LoadImage, labels_of, stacked, training_batches
from pipeline.parts.index import Item, read_index
from pipeline.parts.models import RANDOM, ModelSpec, build_model
from pipeline.parts.predict import torch_logits
from pipeline.parts.training import Schedule, fit, make_accelerator
from pipeline.steps.distill.slad import SladOptions, SladPair, check_pair

ROLES = ("teacher", "student")
TRAINED_LOGITS = "validation_logits.npz"


def distill(
    output: Path,
    *,
    data: Path,
    foundation: Path,
    teacher: ModelSpec,
    student: ModelSpec,
    options: SladOptions,
    schedule: Schedule,
    batch_size: int,
    workers: int,
    precision: str,
    augment: Augment,
    black: tuple[float, ...],
    load: LoadImage,
    seed: int,
) -> dict[str, float]:
    """Trains, and writes what the later steps need to `output`.

    That is `adapters.safetensors`, `heads.safetensors`, `metrics.json`, `curves.csv`, and `validation_logits.npz` for
    the parity chain.

    Args:
        output: existing folder to write to.
        data: folder of the index; its test split is not read.
        foundation: folder with the foundation weights, for weights "foundation".
        teacher: architecture and weights of the teacher.
        student: architecture and weights of the student.
        options: settings of the method.
        schedule: length and rates.
        batch_size: images per step.
        workers: processes that load images; 0 loads them in this one.
        precision: "auto", "fp32" or "bf16".
        augment: random changes to training images.
        black: value of a black pixel after preprocessing, per channel.
        load: decodes and preprocesses one image.
        seed: fixes adapters, heads, order and random changes.

    Returns:
        Accuracy on the validation split in percent, by role.
    """
    specs = dict(zip(ROLES, (teacher, student), strict=True))
    seed_everything(seed)
    index, root = read_index(data)
    _check_size(specs, index.splits["train"][0], root, load)
    check_pair(*(build_model(replace(spec, weights=RANDOM), num_classes=2, role=role) for role, spec in specs.items()))
    models = {
        role: build_model(spec, num_classes=len(index.labels), role=role, foundation=foundation)
        for role, spec in specs.items()
    }
    pair = SladPair(models["teacher"], models["student"], options)
    accelerator = make_accelerator(precision)
    pair.to(accelerator.device).train()
    train = Images(root, index.splits["train"], load=load, transform=augment.transform(black))
    validation = stacked(root, index.splits["validation"], load=load)
    labels = labels_of(index.splits["validation"])

    curve: list[dict[str, float]] = []

    def record(epoch: int, means: dict[str, float]) -> None:
        scores = {
            f"{role}_accuracy_percent": accuracy_percent(torch_logits(models[role], validation), labels)
            for role in ROLES
        }
        pair.train()
        curve.append({"epoch": epoch + 1, **means, **scores})

    batches = training_batches(train, batch_size=batch_size, workers=workers, seed=seed)
    fit(pair, batches, loss=pair.losses, schedule=schedule, accelerator=accelerator, title="distill", on_epoch=record)
    accuracies = {role: curve[-1][f"{role}_accuracy_percent"] for role in ROLES}
    _save_curve(output / "curves.csv", curve)
    trained = {role: torch_logits(models[role], validation) for role in ROLES}
    np.savez(output / TRAINED_LOGITS, teacher=trained["teacher"], student=trained["student"])
    _save(output, pair.cpu(), accuracies)
    return accuracies


def _check_size(specs: dict[str, ModelSpec], item: Item, root: Path, load: LoadImage) -> None:
    """Refuses images of another size than the networks take, before anything is loaded.

    Raises:
        ModelError: naming the sizes and the keys.
    """
    size = load(root / item.path).shape[1:]
    for role, spec in specs.items():
        side = spec.overrides.get("img_size", size[0])
        wanted = tuple(side) if isinstance(side, list | tuple) else (side, side)
        if wanted != size:
            msg = f"`preprocess.crop` is {list(size)}, but `{role}.overrides.img_size` is {side}; make them equal"
            raise ModelError(msg)


def _save_curve(path: Path, curve: list[dict[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(curve[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows({name: round(value, 6) for name, value in row.items()} for row in curve)


def _save(output: Path, pair: SladPair, accuracies: dict[str, float]) -> None:
    adapters: dict[str, Tensor] = {}
    heads: dict[str, Tensor] = {}
    for role, model in zip(ROLES, (pair.teacher, pair.student), strict=True):
        adapters |= {f"{role}.{name}": value for name, value in adapters_of(model).items()}
        heads |= {f"{role}.head.{name}": value.contiguous() for name, value in model.head.state_dict().items()}
    scale = str(pair.options.scale)
    save_file(adapters, output / "adapters.safetensors", metadata={"scale": scale})
    save_file(heads, output / "heads.safetensors")
    trained = sum(parameter.numel() for parameter in pair.parameters() if parameter.requires_grad)
    metrics = {
        "schema": 1,
        "method": "slad",
        **{role: {"validation_accuracy_percent": round(accuracies[role], 3)} for role in ROLES},
        "trained_parameters": trained,
    }
    (output / "metrics.json").write_text(json.dumps(metrics, indent=2) + "\n", encoding="utf-8")
