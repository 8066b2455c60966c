"""The section `distill` of `params.yaml`: each method has its own keys, and refuses those of others."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pipeline.base.sections import Count, Positive, Precision, ScheduleParams, Section, Weight

METHODS = ("slad", "joint_lora", "lora_kd", "probe_kd", "finetune_kd", "kd_lora", "idat", "student_only")


class TrainingParams(Section):
    """What every method has: its length, its batches, its machine."""

    schedule: ScheduleParams
    batch_size: Count
    micro_batch: Count | None
    processes: Count
    workers: Annotated[int, Field(ge=0)]
    pixels: str | None
    precision: Precision
    validate_every: Count
    checkpoint_seconds: Weight

    @model_validator(mode="after")
    def _divides(self) -> Self:
        share = self.batch_size // self.processes
        if self.batch_size % self.processes or (self.micro_batch is not None and share % min(self.micro_batch, share)):
            msg = (
                f"`distill.batch_size` {self.batch_size} does not divide evenly by `distill.processes` "
                f"{self.processes} and `distill.micro_batch` {self.micro_batch}; change one of them"
            )
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _is_validated_before_patience_ends(self) -> Self:
        for key in ("schedule", "teacher_schedule"):
            patience = getattr(getattr(self, key, None), "patience", None)
            # Else the second validation, which patience waits for, would never come.
            if patience is not None and self.validate_every > patience:
                msg = (
                    f"`distill.validate_every` {self.validate_every} is more than `distill.{key}.patience` {patience}: "
                    "training would end after one validation; lower the one or raise the other"
                )
                raise ValueError(msg)
        return self


class LoraParams(Section):
    """Low-rank updates."""

    targets: Annotated[tuple[Literal["q", "k", "v", "proj", "fc1", "fc2"], ...], Field(min_length=1)]
    rank: Count
    alpha: Positive
    dropout: Annotated[float, Field(ge=0, lt=1)]
    norms: bool
    depth: Annotated[float, Field(gt=0, le=1)]


class JointParams(TrainingParams, LoraParams):
    """Teacher and student in one stage."""

    temperature: Positive
    detach: bool
    weight_student: Weight
    weight_teacher: Weight
    weight_kl: Weight


class JointLoraParams(JointParams):
    """Joint training through separate adapters."""

    method: Literal["joint_lora"]


class SladParams(JointParams):
    """Joint training through shared adapters."""

    method: Literal["slad"]
    share: Literal["slice", "none", "a_only", "b_only", "hybrid"]
    layer_map: Literal["even", "first", "last"]
    subset: Literal["first", "random"]
    private_rank: Annotated[int, Field(ge=0)]
    student_scale: Literal[1, "sqrt(D/d)"]
    teacher_blocks: Literal["all", "mapped"]

    @model_validator(mode="after")
    def _ranks_add_up(self) -> Self:
        if self.share == "hybrid" and not 0 < self.private_rank < self.rank:
            most = self.rank - 1
            msg = f"`distill.private_rank` is {self.private_rank}; with share=hybrid give 1 to {most} of the rank"
            raise ValueError(msg)
        if self.share != "hybrid" and self.private_rank:
            msg = f"`distill.private_rank` {self.private_rank} has no effect with share={self.share}; set it to 0"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _has_effect(self) -> Self:
        neutral: dict[str, object] = {}
        if self.share == "none":
            neutral = {"layer_map": "even", "subset": "first", "student_scale": 1, "teacher_blocks": "all"}
        elif self.share == "b_only":  # the scale is that of the truncated A
            neutral = {"student_scale": 1}
        for key, value in neutral.items():
            if getattr(self, key) != value:
                msg = f"`distill.{key}` {getattr(self, key)!r} has no effect with share={self.share}; set it to {value}"
                raise ValueError(msg)
        return self


class StagedParams(TrainingParams):
    """Two stages: teacher, then student."""

    teacher_schedule: ScheduleParams
    temperature: Positive
    weight_student: Weight
    weight_kl: Weight


class FinetuneParams(StagedParams):
    """Two stages without adapters."""

    method: Literal["finetune_kd", "probe_kd"]


class KdLoraParams(StagedParams, LoraParams):
    """A fully trained teacher, a student with adapters."""

    method: Literal["kd_lora"]


class LoraKdParams(StagedParams, LoraParams):
    """A teacher with adapters."""

    method: Literal["lora_kd"]
    student_training: Literal["lora", "full"]


class IdatParams(TrainingParams):
    """Joint training through bottlenecks, of a small teacher and a large student."""

    method: Literal["idat"]
    hidden: Count
    loss: Literal["kl", "mse"]
    temperature: Positive


class StudentOnlyParams(TrainingParams, LoraParams):
    """The student alone."""

    method: Literal["student_only"]
    training: Literal["full", "lora", "probe"]


DistillParams = Annotated[
    SladParams | JointLoraParams | FinetuneParams | KdLoraParams | LoraKdParams | IdatParams | StudentOnlyParams,
    Field(discriminator="method"),
]
"""The method and its training run, told apart by `method`."""
