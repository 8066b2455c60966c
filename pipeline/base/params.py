"""The parameters of every stage: one model per section of `params.yaml`, unknown keys refused, all errors at once."""

from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pipeline.base.errors import ParamsError

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of `params.yaml`: frozen, and closed to keys it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PrepareParams(Section):
    """Where images come from and how they are split."""

    source: Literal["digits", "folder"]
    path: str | None
    watch: str | None
    validation_fraction: Share
    test_fraction: Share
    calibration_size: Count

    @model_validator(mode="after")
    def _fits_its_source(self) -> Self:
        if self.source == "folder" and (self.path is None or self.watch is None):
            msg = "`prepare.path` is not set; give the folder that holds one subfolder of images per class"
            raise ValueError(msg)
        if self.source == "digits" and self.path is not None:
            msg = f"`prepare.path` {self.path!r} has no effect on the built-in digits; add data=folder"
            raise ValueError(msg)
        if self.validation_fraction + self.test_fraction >= 1:
            msg = (
                f"`prepare.validation_fraction` {self.validation_fraction} and `prepare.test_fraction` "
                f"{self.test_fraction} leave nothing to train on; lower them"
            )
            raise ValueError(msg)
        return self


class PreprocessParams(Section):
    """What happens to an image before the network, in training, calibration and on the device alike."""

    resize: Count
    resize_mode: Literal["squash", "shortest"]
    crop: tuple[Count, Count]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    color: Literal["RGB"]


class AugmentParams(Section):
    """Random changes to training images."""

    degrees: Annotated[float, Field(ge=0, le=180)]
    translate: Annotated[float, Field(ge=0, le=1)]
    scale: tuple[Positive, Positive]
    flip: bool

    @model_validator(mode="after")
    def _scale_ascends(self) -> Self:
        if self.scale[0] > self.scale[1]:
            msg = f"`augment.scale` is {list(self.scale)}; give the smaller zoom first"
            raise ValueError(msg)
        return self


class ModelParams(Section):
    """A timm architecture and its weights."""

    model: str
    weights: Annotated[str, Field(min_length=1)]
    overrides: dict[str, Any]

    @model_validator(mode="after")
    def _not_random(self) -> Self:
        if self.weights == "random":
            msg = "weights are 'random', which no adapter can mend; choose 'foundation', a timm tag or a file"
            raise ValueError(msg)
        return self


class ScheduleParams(Section):
    """Length and rates of one training run."""

    epochs: Count
    learning_rate: Positive
    weight_decay: Weight
    warmup_epochs: Weight
    clip_norm: Positive

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            msg = f"warmup_epochs {self.warmup_epochs:g} is not below epochs {self.epochs}; warm up for fewer"
            raise ValueError(msg)
        return self


class FoundationParams(Section):
    """Pretraining of the small foundation pair on fractals."""

    image_size: Count
    classes: Annotated[int, Field(ge=2)]
    instances: Count
    batch_size: Count
    student_init: Literal["slice", "random"]
    teacher: ScheduleParams
    student: ScheduleParams


class DistillParams(Section):
    """The method and its training run."""

    method: Literal["slad"]
    rank: Count
    alpha: Positive
    layer_map: Literal["even", "first", "last"]
    temperature: Positive
    detach: bool
    weight_student: Weight
    weight_teacher: Weight
    weight_kl: Weight
    schedule: ScheduleParams
    batch_size: Count
    workers: Annotated[int, Field(ge=0)]
    precision: Literal["auto", "fp32", "bf16"]


class MergeParams(Section):
    """How closely the merged student must answer like the adapted one."""

    tolerance: Positive


class ExportParams(Section):
    """The ONNX file and the checks that travel with it."""

    opset: Annotated[int, Field(ge=17, le=22)]
    tolerance: Positive
    golden_count: Count


class QuantizeVariant(Section):
    """One INT8 variant of the exported network."""

    attention: bool


class QuantizeParams(Section):
    """Post-training quantisation."""

    subset_size: Count
    variants: dict[str, QuantizeVariant]


class TargetVariant(Section):
    """One engine of a target."""

    onnx: str
    precision: Literal["fp32", "bf16", "int8"]


class TargetParams(Section):
    """A device and what is built for it."""

    runtime: Literal["openvino", "onnxruntime"]
    threads: Annotated[int, Field(ge=0)]
    variants: Annotated[dict[str, TargetVariant], Field(min_length=1)]


class MeasureParams(Section):
    """How much is measured."""

    profile: Literal["quick", "standard"]
    queries: Annotated[int, Field(ge=64)]
    seconds: Positive
    warmup_seconds: Weight


class ReportParams(Section):
    """What the verdict allows."""

    max_drop_points: Weight
    reference: str


class FoundationStage(Section):
    """What `foundation` reads."""

    seed: Seed
    teacher: ModelParams
    student: ModelParams
    foundation: FoundationParams


class PrepareStage(Section):
    """What `prepare` reads."""

    seed: Seed
    prepare: PrepareParams
    preprocess: PreprocessParams


class DistillStage(Section):
    """What `distill` reads."""

    seed: Seed
    preprocess: PreprocessParams
    augment: AugmentParams
    teacher: ModelParams
    student: ModelParams
    distill: DistillParams


class MergeStage(Section):
    """What `merge` reads."""

    preprocess: PreprocessParams
    teacher: ModelParams
    student: ModelParams
    merge: MergeParams


class ExportStage(Section):
    """What `export` reads."""

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

    teacher: ModelParams
    targets: dict[str, TargetParams]
    report: ReportParams


class Params(
    FoundationStage, PrepareStage, DistillStage, MergeStage, ExportStage, QuantizeStage, MeasureStage, ReportStage
):
    """All of `params.yaml`."""

    overrides: list[str]


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


def _describe(item: Any) -> str:
    key = ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"`{key}` is no known key"
    if item["type"] == "missing":
        return f"`{key}` is missing"
    if item["type"] == "value_error":
        reason = str(item["ctx"]["error"])
        return reason if reason.startswith("`") else f"`{key}`: {reason}"
    return f"`{key}` is {item['input']!r}: {item['msg'][0].lower()}{item['msg'][1:]}"
