"""The parameters of every stage, read from `params.yaml`: unknown keys refused, all errors at once."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self, TypeVar

import yaml
from pydantic import ValidationError, model_validator

from pipeline.base.errors import ParamsError
from pipeline.base.methods import METHODS, DistillParams
from pipeline.base.sections import (
    EXPORTED,
    QUANTISED,
    TASKS,
    AugmentParams,
    ExportParams,
    FoundationParams,
    MeasureParams,
    MergeParams,
    ModelParams,
    PreprocessParams,
    QuantizeParams,
    ReportParams,
    Section,
    Seed,
    TargetParams,
    TaskParams,
)
from pipeline.base.sources import SOURCES, PrepareParams


class FoundationStage(Section):
    """What `foundation` reads."""

    seed: Seed
    foundations: dict[str, FoundationParams]


class PrepareStage(Section):
    """What `prepare` reads."""

    seed: Seed
    prepare: PrepareParams


class DistillStage(Section):
    """What `distill` reads."""

    seed: Seed
    task: TaskParams
    preprocess: PreprocessParams
    augment: AugmentParams
    teacher: ModelParams
    student: ModelParams
    distill: DistillParams

    @model_validator(mode="after")
    def _mixes_no_masks(self) -> Self:
        mixing = {key: getattr(self.augment, key) for key in ("mixup", "cutmix", "label_smoothing")}
        used = next((key for key, value in mixing.items() if value), None)
        if self.task.name == "segmentation" and used:
            msg = f"`augment.{used}` is {mixing[used]}, but masks are not mixed; set it to 0"
            raise ValueError(msg)
        return self


class MergeStage(Section):
    """What `merge` reads."""

    task: TaskParams
    preprocess: PreprocessParams
    teacher: ModelParams
    student: ModelParams
    merge: MergeParams


class ExportStage(Section):
    """What `export` reads."""

    task: TaskParams
    preprocess: PreprocessParams
    student: ModelParams
    export: ExportParams


class QuantizeStage(Section):
    """What `quantize` reads."""

    quantize: QuantizeParams


class TargetStage(Section):
    """What `probe` and `compile` read."""

    targets: dict[str, TargetParams]


class MeasureStage(TargetStage):
    """What `measure` reads."""

    seed: Seed
    measure: MeasureParams


class ReportStage(Section):
    """What `report` reads."""

    targets: dict[str, TargetParams]
    report: ReportParams


class CheckStage(TargetStage):
    """What `check` reads."""


class Params(
    FoundationStage, PrepareStage, DistillStage, MergeStage, ExportStage, QuantizeStage, MeasureStage, ReportStage
):
    """All of `params.yaml`."""

    overrides: list[str]

    @model_validator(mode="after")
    def _has_masks_to_segment(self) -> Self:
        masks = self.prepare.source == "masks"
        if masks != (self.task.name == "segmentation"):
            msg = (
                f"`task.name` is {self.task.name!r}, but `prepare.source` {self.prepare.source!r} gives "
                f"{'a mask' if masks else 'one class'} per image; data=folder_seg sets both for masks"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _has_what_targets_name(self) -> Self:
        for target, spec in self.targets.items():
            for name, engine in spec.variants.items():
                if engine.onnx not in self.made:
                    msg = (
                        f"`targets.{target}.variants.{name}.onnx` is {engine.onnx!r}, but `quantize.variants` makes "
                        f"{', '.join(self.made)}; add it with +variant@quantize.variants.{engine.onnx}={engine.onnx}"
                    )
                    raise ValueError(msg)
        return self

    @property
    def made(self) -> dict[str, str]:
        """The precision of each file that export and quantize make, by its name."""
        return {EXPORTED: EXPORTED} | {name: variant.made for name, variant in self.quantize.variants.items()}


UNIONS = {
    ("distill",): METHODS,
    ("prepare",): SOURCES,
    ("task",): TASKS,
    ("quantize", "variants", "*"): QUANTISED,
}
"""Keys whose own keys depend on a choice, and the choices; * is any name."""

Stage = TypeVar("Stage", bound=Section)


def read_yaml(path: Path) -> dict[str, Any]:
    """Reads a YAML mapping.

    Raises:
        ParamsError: the file is absent or no mapping.
    """
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        msg = f"no {str(path)!r}; write it with `slad sync`"
        raise ParamsError(msg) from error
    except yaml.YAMLError as error:
        reason = " ".join(str(error).split())
        msg = f"{str(path)!r} is not YAML ({reason}); write it anew with `slad sync`"
        raise ParamsError(msg) from error
    if not isinstance(content, dict):
        msg = f"{str(path)!r} holds no mapping; write it anew with `slad sync`"
        raise ParamsError(msg)
    return content


def read_params(path: Path, stage: type[Stage]) -> Stage:
    """Reads from `params.yaml` what a stage needs, and nothing else.

    Args:
        path: the file.
        stage: the model whose fields are the sections to read; `Params` reads, and checks, everything.

    Raises:
        ParamsError: naming every wrong key with its value.
    """
    content = read_yaml(path)
    wanted = content if stage is Params else {name: content[name] for name in stage.model_fields if name in content}
    return validate(wanted, stage, source=str(path))


Targets = TypeVar("Targets", bound=TargetStage)


def read_target_params(path: Path, stage: type[Targets], target: str) -> tuple[Targets, TargetParams]:
    """Reads what a stage of one target needs, and that target's own section.

    Raises:
        ParamsError: naming every wrong key, or the targets there are.
    """
    params = read_params(path, stage)
    if target not in params.targets:
        msg = f"{path}: no target {target!r} among {', '.join(params.targets)}; add it in configs/config.yaml"
        raise ParamsError(msg)
    return params, params.targets[target]


def validate(content: dict[str, Any], stage: type[Stage], *, source: str) -> Stage:
    """Checks `content` against `stage`; `source` is named in errors.

    Raises:
        ParamsError: naming every wrong key with its value.
    """
    try:
        return stage.model_validate(content)
    except ValidationError as error:
        faults = "; ".join(_describe(item) for item in error.errors())
        msg = f"{source}: {faults}; mend configs/ or the overrides, then `slad sync`"
        raise ParamsError(msg) from error


def _choices(place: tuple[Any, ...]) -> tuple[int, Sequence[str]]:
    """What the keys below the first parts of a key depend on, and how many parts; nothing for most."""
    fitting = (
        (len(path), choices)
        for path, choices in UNIONS.items()
        if len(place) >= len(path) and all(name in ("*", found) for name, found in zip(path, place, strict=False))
    )
    return next(fitting, (0, ()))


def _describe(item: Any) -> str:
    if not item["loc"]:
        return str(item["ctx"]["error"])  # of sections that do not go together
    place = item["loc"]
    depth, choices = _choices(place)
    # A union says which of its members was meant: no key of the user's.
    if place[depth : depth + 1] and place[depth] in choices:
        place = (*place[:depth], *place[depth + 1 :])
    key = ".".join(map(str, place))
    if item["type"] == "extra_forbidden":
        return f"`{key}` is no known key"
    if item["type"] == "missing":
        return f"`{key}` is missing"
    if item["type"] in {"union_tag_invalid", "union_tag_not_found"}:
        tag = item["ctx"]["discriminator"].strip("'")
        return f"`{key}.{tag}` is {item['input'].get(tag)!r}; choose among {', '.join(choices)}"
    if item["type"] == "value_error":
        reason = str(item["ctx"]["error"])
        return reason if reason.startswith("`") else f"`{key}`: {reason}"
    return f"`{key}` is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
