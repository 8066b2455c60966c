"""Merge: folds the adapters of teacher and student into their weights and proves that nothing else changed."""

import copy
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from pipeline.base.errors import ModelError
from pipeline.base.parity import Parity, compare
from pipeline.parts.adapters.inject import adapters, merge
from pipeline.parts.adapters.lora import LoraLinear
from pipeline.parts.adapters.saved import restore
from pipeline.parts.friendliness import Layer, friendliness, weighted
from pipeline.parts.friendliness_record import write_friendliness
from pipeline.parts.index import Index, Items, Load, Loaded, Targets, evenly, kept_places, read_index
from pipeline.parts.models import RANDOM, ModelSpec, build_model, load_merged, save_merged
from pipeline.parts.network import Network
from pipeline.parts.predict import Logits, torch_logits
from pipeline.parts.scores import score_of, scored

SAVED_TOLERANCE = 0.02  # training may have run in bf16 or on a GPU
MOST_IMAGES = 64  # to measure for INT8; each network sees them twice


def merge_models(
    output: Path,
    *,
    distilled: Path,
    data: Path,
    teacher: ModelSpec,
    student: ModelSpec,
    tolerance: float,
    load: Load,
) -> Parity:
    """Writes networks without LoRA as `teacher.safetensors` and `student.safetensors`, and how the student got there.

    `saved_parity.json` is of the hop from the network as it was trained to the one built anew from what was saved, and
    `parity.json` of the hop from that to the merged one; `test_logits.npz` has `adapted` and `merged`, their logits of
    the test images that devices keep the logits of.
    `accuracy.json` has what each merged network reaches on the test split. A method without a teacher leaves none.
    Bottlenecks, which cannot be merged, stay in their network. `friendliness.json` and the tables beside it tell how
    well the student takes INT8, as it was pretrained and as it is now.

    Args:
        output: existing folder to write to.
        distilled: what `distill` wrote.
        data: folder of the index; the networks are compared on the validation split.
        teacher: architecture and weights that the teacher was trained from.
        student: architecture and weights that the student was trained from.
        tolerance: largest difference of a logit allowed between an adapted and a merged network, in fp32.
        load: decodes and preprocesses one file.

    Returns:
        The student's parity.

    Raises:
        ModelError: what was trained does not fit, or an adapter is left after merging.
        ParityError: a merged network answers differently from the trained one.
    """
    data_set = _Data(*read_index(data), load=load)
    index = data_set.index
    with np.load(distilled / "validation_logits.npz", allow_pickle=False) as stored:
        trained = dict(stored)
    places: NDArray[np.int64] = trained.pop("places")
    some = index.parts["validation"][places]
    specs = {role: spec for role, spec in (("teacher", teacher), ("student", student)) if role in trained}
    accuracies = {}
    for role, spec in specs.items():
        model = build_model(spec, num_classes=len(index.labels), role=role)
        _adapt(model, distilled / f"{role}.safetensors")
        # What was saved must be what was trained: another backbone, head or scale answers quite differently.
        ends = (f"torch {role}", trained[role]), (f"adapted {role}", data_set.logits(model, some))
        saved = data_set.compare(*ends, items=some, tolerance=SAVED_TOLERANCE)
        merged = _without_adapters(model, role=role)
        parity = data_set.parity(model, merged, role=role, tolerance=tolerance)
        save_merged(output, role, merged, labels=index.labels)
        accuracies[role] = data_set.score(load_merged(output, role, spec)[0], index.parts["test"])
    saved.write(output / "saved_parity.json")  # of the student, which is last
    parity.write(output / "parity.json")
    _write_logits(output / "test_logits.npz", {"adapted": model, "merged": merged}, data_set)
    content = {"schema": 1, "metric": score_of(index).metric, **accuracies}
    (output / "accuracy.json").write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    _write_friendliness(output, student, data_set)
    return parity


@dataclass(frozen=True)
class _Data:
    """The images and what is true of them."""

    index: Index
    root: Path
    load: Load

    def logits(self, model: Network, items: Items) -> Iterator[Logits]:
        return torch_logits(model, Loaded(self.root, items, load=self.load.image))

    def targets(self, items: Items) -> Targets:
        return Targets(self.root, items, load=self.load.mask, ignore=self.index.ignore)

    def calibration(self) -> Loaded:
        items = self.index.parts["calibration"]
        return Loaded(self.root, items[evenly(len(items), MOST_IMAGES)], load=self.load.image)

    def compare(self, *ends: tuple[str, Iterable[Logits]], items: Items, tolerance: float) -> Parity:
        origin, result = ends
        score = partial(score_of, self.index)
        return compare(origin, result, targets=self.targets(items), score=score, tolerance=tolerance)

    def parity(self, adapted: Network, merged: Network, *, role: str, tolerance: float) -> Parity:
        """What merging changed on the validation split."""
        items = self.index.parts["validation"]
        ends = (f"adapted {role}", self.logits(adapted, items)), (f"merged {role}", self.logits(merged, items))
        return self.compare(*ends, items=items, tolerance=tolerance)

    def score(self, model: Network, items: Items) -> dict[str, Any]:
        score = scored(self.index, self.logits(model, items), self.targets(items))
        found: dict[str, Any] = {"test_accuracy_percent": round(score.percent(), 3)}
        each = score.per_class_percent()
        if each:
            found["test_per_class_percent"] = {k: None if v is None else round(v, 3) for k, v in each.items()}
        return found


def _write_logits(path: Path, models: Mapping[str, Network], data_set: _Data) -> None:
    """Writes what networks answer to the test images whose logits devices keep as well, to be compared with theirs."""
    items = data_set.index.parts["test"]
    shape = next(data_set.logits(next(iter(models.values())), items[:1])).shape
    kept = items[kept_places(len(items), shape)]
    arrays: dict[str, Any] = {name: np.stack(list(data_set.logits(model, kept))) for name, model in models.items()}
    np.savez(path, **arrays)


def _write_friendliness(output: Path, spec: ModelSpec, data_set: _Data) -> None:
    """Measures the student as it was before any training, and as it was merged."""
    merged, labels = load_merged(output, "student", spec)
    images = data_set.calibration()
    before: dict[str, Layer] = {}
    if spec.weights != RANDOM:  # training drew other random weights than could be drawn here
        pretrained = build_model(spec, num_classes=len(labels), role="student")
        # The head is drawn anew for the data's classes, with values that mean nothing.
        head = {id(module) for module in pretrained.get_classifier().modules()}
        names = {name for name, module in weighted(pretrained).items() if id(module) not in head}
        found = friendliness(pretrained, images)
        before = {name: layer for name, layer in found.items() if name in names}
    write_friendliness(output, before=before, after=friendliness(merged, images), images=len(images))


def _without_adapters(model: Network, *, role: str) -> Network:
    """Returns a copy with the adapters folded into the weights."""
    merged = copy.deepcopy(model)
    merge(merged)
    left = [name for name, module in adapters(merged).items() if isinstance(module, LoraLinear)]
    if left:
        msg = f"adapters are left in the {role} after merging: {left}; this is a fault of `adapters.merge`"
        raise ModelError(msg)
    return merged


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
