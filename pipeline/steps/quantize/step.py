"""Quantize: one FP16 or INT8 variant of the exported network, legal on every target, with the proof beside it."""

import json
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import nncf
import numpy as np
import onnx

from pipeline.base.parity import Parity, compare
from pipeline.parts.bundle import MODEL, BundleInfo, read_bundle, save_onnx, write_bundle
from pipeline.parts.index import Index, Load, Loaded, Targets, kept_places, read_index
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.parts.scores import score_of, scored
from pipeline.steps.quantize.calibration import Calibration
from pipeline.steps.quantize.half import REST_REMEDY, check_range, rest_to_fp16, to_fp16, with_half_scales
from pipeline.steps.quantize.int8 import Int8, groups_in, not_quantised, to_int8
from pipeline.steps.quantize.lint import TARGETS, check
from pipeline.steps.quantize.search import fewest_left_out
from pipeline.steps.quantize.sensitivity import sensitivities

RANKED_ON = 32  # calibration images that groups are ranked on


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What one variant is.

    Attributes:
        int8: how it is quantised; None for FP16.
        search: whether groups of layers stay in floating point until the accuracy budget is met.
        rest: what an INT8 network is typed where it is not quantised.
    """

    int8: Int8 | None
    search: bool = False
    rest: Literal["fp32", "fp16"] = "fp32"

    @property
    def precision(self) -> str:
        """Of the bundle: "fp16", "int8" or "int8_fp16"."""
        if self.int8 is None:
            return "fp16"
        return "int8" if self.rest == "fp32" else f"int8_{self.rest}"


@dataclass(frozen=True)
class _Made:
    """A network, and what the record says of how it was made."""

    model: onnx.ModelProto
    record: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Judge:
    """Compares networks on the validation split: the test split decides nothing here."""

    exported: Path
    index: Index
    root: Path
    load: Load

    @property
    def images(self) -> Loaded:
        return Loaded(self.root, self.index.parts["validation"], load=self.load.image)

    @property
    def targets(self) -> Targets:
        return Targets(self.root, self.index.parts["validation"], load=self.load.mask, ignore=self.index.ignore)

    def percent(self, model: Path | bytes) -> float:
        return scored(self.index, onnx_logits(model, self.images), self.targets).percent()

    def parity(self, model: Path | bytes, variant: str) -> Parity:
        return compare(
            ("onnx", onnx_logits(self.exported / MODEL, self.images)),
            (variant, onnx_logits(model, self.images)),
            targets=self.targets,
            score=partial(score_of, self.index),
            tolerance=None,
        )


def quantize(
    output: Path,
    *,
    variant: str,
    recipe: Recipe,
    exported: Path,
    data: Path,
    subset_size: int,
    max_drop: float,
    load: Load,
) -> Parity:
    """Writes a bundle with the network in another precision, `parity.json` and `quantization.json`, to `output`.

    Args:
        output: existing folder to write to.
        variant: name of the bundle.
        recipe: what it is.
        exported: the FP32 bundle.
        data: folder of the index; its calibration list feeds the quantisers, its validation split is compared on.
        subset_size: calibration images used, at most.
        max_drop: points of the metric that a variant with `search` may lose on the validation split.
        load: decodes and preprocesses one file.

    Raises:
        DataError: the calibration images cannot be used.
        ModelError: the result is illegal on a target, or leaves FP16's range.
        BudgetError: no network is within `max_drop`.
    """
    index, root = read_index(data)
    parent = read_bundle(exported)
    shape = parent["input"]["shape"][1:]
    calibration = Calibration(index, root, load=load, subset_size=subset_size, shape=shape)
    judge = _Judge(exported, index, root, load)
    exact = onnx.load(exported / MODEL)
    made = _make(exact, recipe, calibration=calibration, judge=judge, max_drop=max_drop)
    check(made.model, targets=TARGETS, precision=recipe.precision)
    parity = judge.parity(save_onnx(made.model, output), variant)
    parity.write(output / "parity.json")
    content = {
        "schema": 1,
        "variant": variant,
        "precision": recipe.precision,
        **({} if recipe.int8 is None else asdict(recipe.int8) | {"rest": recipe.rest, "nncf": nncf.__version__}),
        "targets": list(TARGETS),
        **made.record,
        **({} if recipe.int8 is None else {"not_quantised": not_quantised(made.model, exact, recipe.int8.layers)}),
        "calibration_sha256": calibration.hashes,
    }
    (output / "quantization.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    info = BundleInfo(
        name=parent["name"],
        variant=variant,
        precision=recipe.precision,
        preprocess=parent["preprocess"],
        labels=parent["labels"],
        lineage=parent["lineage"] | {"parent_sha256": parent["files"][MODEL]["sha256"]},
    )
    with np.load(exported / parent["golden"]["file"], allow_pickle=False) as golden:
        write_bundle(output, info, golden=golden["inputs"])
    return parity


def _make(model: onnx.ModelProto, recipe: Recipe, *, calibration: Calibration, judge: _Judge, max_drop: float) -> _Made:
    images = calibration.images
    if recipe.int8 is None:
        half = to_fp16(model)
        return _Made(half, {"range": asdict(check_range(model, half, images=images))})
    typed = recipe.rest == "fp16"
    exact = with_half_scales(model) if typed else model
    if recipe.search:
        made = _searched(exact, recipe, recipe.int8, calibration=calibration, judge=judge, max_drop=max_drop)
    else:
        made = _Made(to_int8(exact, recipe.int8, images=images), {"left_out": []})
    if not typed:
        return made
    half = rest_to_fp16(made.model)
    reach = check_range(made.model, half, images=images, remedy=REST_REMEDY)
    return _Made(half, made.record | {"range": asdict(reach)})


def _searched(
    model: onnx.ModelProto, recipe: Recipe, how: Int8, *, calibration: Calibration, judge: _Judge, max_drop: float
) -> _Made:
    """Leaves as few groups in floating point as the budget asks for; the network that is made has an FP32 rest."""
    groups = groups_in(model, how.layers)
    shape = [dimension.dim_value for dimension in model.graph.output[0].type.tensor_type.shape.dim]
    ranked = sensitivities(model, groups, images=calibration.some(len(kept_places(RANKED_ON, shape))))
    exact = judge.percent(judge.exported / MODEL)

    def evaluate(left_out: tuple[str, ...]) -> tuple[float, onnx.ModelProto]:
        made = to_int8(model, how, images=calibration.images, left_out=left_out)
        judged = rest_to_fp16(made) if recipe.rest == "fp16" else made  # the budget is that of the file as written
        return exact - judge.percent(judged.SerializeToString()), made

    made, left_out, tries = fewest_left_out(list(ranked), evaluate, max_drop=max_drop)
    record = {
        "max_drop": max_drop,
        "left_out": list(left_out),
        "tries": [{"left_out": len(each.left_out), "drop": round(each.drop, 3)} for each in tries],
        "sensitivity": {group: float(f"{noise:.3g}") for group, noise in ranked.items()},
    }
    return _Made(made, record)
