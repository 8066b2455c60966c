"""The sections of `params.yaml` but for `distill`: one model each, closed to keys it does not name."""

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(gt=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
Count = Annotated[int, Field(ge=1)]
Precision = Literal["auto", "fp32", "bf16"]
Seed = Annotated[int, Field(ge=0, lt=2**32)]


class Section(BaseModel):
    """A part of `params.yaml`: frozen, and closed to keys it does not name."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class PreprocessParams(Section):
    """What happens to an image before the network, in training, calibration and on the device alike."""

    resize: Count
    resize_mode: Literal["squash", "shortest"]
    crop: tuple[Count, Count]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[Positive, Positive, Positive]
    color: Literal["RGB"]

    @model_validator(mode="after")
    def _crops_from_within(self) -> Self:
        if self.resize_mode == "shortest" and max(self.crop) > self.resize:
            msg = (
                f"`preprocess.crop` {list(self.crop)} is larger than `preprocess.resize` {self.resize}, to which the "
                f"shorter side is brought; raise `preprocess.resize`, or set `preprocess.resize_mode` to squash"
            )
            raise ValueError(msg)
        return self


class AugmentParams(Section):
    """Random changes to training images."""

    degrees: Annotated[float, Field(ge=0, le=180)]
    translate: Annotated[float, Field(ge=0, le=1)]
    scale: tuple[Positive, Positive]
    flip: bool
    mixup: Weight
    cutmix: Weight
    label_smoothing: Annotated[float, Field(ge=0, lt=1)]

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
    image_size: Count | tuple[Count, Count]
    overrides: dict[str, Any]

    @model_validator(mode="after")
    def _not_random(self) -> Self:
        if self.weights == "random":
            msg = "weights are 'random', which no adapter can mend; choose a timm tag or a file"
            raise ValueError(msg)
        return self


class ClassificationParams(Section):
    """A class per image."""

    name: Literal["classification"]

    @property
    def decoder(self) -> None:
        """None: classes come from the head."""

    @property
    def class_weights(self) -> None:
        """None: all classes weigh alike."""


class SegmentationParams(Section):
    """A class per pixel."""

    name: Literal["segmentation"]
    decoder: Literal["linear", "conv"]
    class_weights: tuple[Positive, ...] | None


TASKS = ("classification", "segmentation")
TaskParams = Annotated[ClassificationParams | SegmentationParams, Field(discriminator="name")]


class ScheduleParams(Section):
    """Length and rates of one training run."""

    epochs: Count
    learning_rate: Positive
    weight_decay: Weight
    warmup_epochs: Weight
    clip_norm: Positive
    ema: Annotated[float, Field(ge=0, lt=1)]
    patience: Count | None

    @model_validator(mode="after")
    def _warms_up_in_time(self) -> Self:
        if self.warmup_epochs >= self.epochs:
            msg = f"warmup_epochs {self.warmup_epochs:g} is not below epochs {self.epochs}; warm up for fewer"
            raise ValueError(msg)
        return self


class FoundationModel(Section):
    """One of a foundation pair: an architecture that starts at random, and its pretraining."""

    model: str
    overrides: dict[str, Any]
    schedule: ScheduleParams

    @model_validator(mode="after")
    def _runs_to_its_end(self) -> Self:
        if self.schedule.patience is not None:
            msg = f"patience {self.schedule.patience} has no effect: pretraining is not validated; set it to null"
            raise ValueError(msg)
        return self


class FoundationParams(Section):
    """Pretraining of a foundation pair on drawn images."""

    images: Literal["fractals", "scenes"]
    image_size: Count
    classes: Annotated[int, Field(ge=2)]
    instances: Count
    batch_size: Count
    token_drop: Annotated[float, Field(ge=0, lt=1)]
    precision: Precision
    student_init: Literal["slice", "random"]
    teacher: FoundationModel
    student: FoundationModel


class MergeParams(Section):
    """How closely the merged student must answer like the adapted one."""

    tolerance: Positive


class ExportParams(Section):
    """The ONNX file and the checks that travel with it."""

    # From 17 on LayerNormalization is one operator; at 21 and later ONNX Runtime 1.31 loads no INT8 head.
    opset: Annotated[int, Field(ge=17, le=20)]
    tolerance: Positive
    golden_count: Count
    program: bool


class HalfVariant(Section):
    """The exported network in FP16."""

    precision: Literal["fp16"]

    @property
    def made(self) -> str:
        """Precision of the file."""
        return self.precision


class Int8Variant(Section):
    """The exported network in INT8."""

    precision: Literal["int8"]
    layers: Literal["linear", "full", "mlp"]
    smooth_quant: Annotated[float, Field(ge=0, le=1)] | None
    bias_correction: Literal["none", "fast", "accurate"]
    search: bool
    rest: Literal["fp32", "fp16"]  # what is not quantised

    @property
    def made(self) -> str:
        """Precision of the file."""
        return self.precision if self.rest == "fp32" else f"{self.precision}_{self.rest}"


EXPORTED = "fp32"
QUANTISED = ("fp16", "int8")
QuantizeVariant = Annotated[HalfVariant | Int8Variant, Field(discriminator="precision")]


class QuantizeParams(Section):
    """Variants of the exported network, made after training."""

    subset_size: Count
    max_drop: Weight
    variants: dict[str, QuantizeVariant]

    @model_validator(mode="after")
    def _names_are_free(self) -> Self:
        if EXPORTED in self.variants:
            msg = f"`quantize.variants.{EXPORTED}` has the name of the exported network; give it another"
            raise ValueError(msg)
        return self


class TargetVariant(Section):
    """One engine of a target."""

    onnx: str
    precision: str


class InstallParams(Section):
    """How a target is installed on the machine that its `host` names; see `deploy.target.Install`."""

    folder: str = "slad-edge"
    python: str = "python3"
    system_site_packages: bool = False
    packages: list[str] | None = None
    wheels: str | None = None
    architecture: str | None = None
    disk_mb: Annotated[int, Field(ge=0)] = 1000
    memory_mb: Annotated[int, Field(ge=0)] = 500
    keep: Count = 3


class ConditionParams(Section):
    """The state of the device in which alone a measurement is valid; see `deploy.target.Conditions`."""

    power_mode: str | None = None
    load: Positive | None = None
    temperature_c: Positive | None = None


class TargetParams(Section):
    """A device and what is built for it; what its runtime knows is checked by `deploy.target`, before anything runs."""

    runtime: str
    host: str | None = None
    install: InstallParams = Field(default_factory=InstallParams)
    options: dict[str, str | int | bool | None] = Field(default_factory=dict)
    threads: Annotated[int, Field(ge=0)] = 0
    variants: Annotated[dict[str, TargetVariant], Field(min_length=1)]
    cpus: list[int] | None = None
    allow_fallback: bool = False
    build_limit_s: Count = 3600
    conditions: ConditionParams = Field(default_factory=ConditionParams)
    budget: dict[str, float | int] = Field(default_factory=dict)


class MeasureParams(Section):
    """How much is measured."""

    profile: Literal["quick", "standard", "mlperf"]
    scenarios: list[Literal["SingleStream", "MultiStream", "Offline"]]
    queries: Annotated[int, Field(ge=64)]
    seconds: Positive
    attempts: Count


class ReportParams(Section):
    """What the verdict allows."""

    max_drop_points: Weight
    reference: str
