"""Teacher and student: built by timm, with weights from the foundation stage, a timm tag or a local file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from timm.models import VisionTransformer
from timm.models.deit import VisionTransformerDistilled
from torch import nn

from pipeline.base.errors import ModelError, WeightsError

FOUNDATION = "foundation"
RANDOM = "random"
HEAD_PREFIX = "head."


@dataclass(frozen=True)
class ModelSpec:
    """What `timm.create_model` builds.

    Attributes:
        model: timm's name of the architecture, without a weights tag.
        weights: "foundation", a tag of timm's pretrained weights, the path of a safetensors file, or "random".
        overrides: keyword arguments for the architecture, such as `embed_dim` or `img_size`.
    """

    model: str
    weights: str = RANDOM
    overrides: dict[str, Any] = field(default_factory=dict)


def build_model(spec: ModelSpec, *, num_classes: int, role: str, foundation: Path | None = None) -> VisionTransformer:
    """Builds a vision transformer and loads its weights; the head is new unless the file's fits.

    Args:
        spec: architecture and weights.
        num_classes: outputs of the head; 0 leaves the head out.
        role: "teacher" or "student": names the file in the `foundation` folder, and errors.
        foundation: folder with `<role>.safetensors`, for weights "foundation".

    Returns:
        The model in evaluation mode, on the CPU.

    Raises:
        ModelError: timm has no such model, or it is no vision transformer.
        WeightsError: the weights cannot be had or do not fit.
    """
    if spec.weights == RANDOM:
        model = _create(spec, role=role, num_classes=num_classes)
    elif spec.weights == FOUNDATION:
        if foundation is None:
            msg = f"`{role}.weights` is {FOUNDATION!r} but no foundation folder was given"
            raise WeightsError(msg)
        model = _from_file(spec, foundation / f"{role}.safetensors", role=role, num_classes=num_classes)
    elif spec.weights.endswith(".safetensors"):
        model = _from_file(spec, Path(spec.weights), role=role, num_classes=num_classes)
    else:
        model = _from_tag(spec, role=role, num_classes=num_classes)
    if isinstance(model, VisionTransformerDistilled):
        msg = f"`{role}.model` {spec.model!r} has a second head for a distillation token; choose one without"
        raise ModelError(msg)
    if not isinstance(model, VisionTransformer):
        msg = f"`{role}.model` {spec.model!r} is a {type(model).__name__}, not a timm VisionTransformer; choose a vit_*"
        raise ModelError(msg)
    return model.eval()


def _create(spec: ModelSpec, *, role: str, **options: Any) -> nn.Module:
    try:
        model: nn.Module = timm.create_model(spec.model, **options, **spec.overrides)
    except (TypeError, AssertionError, RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())[:300]
        if "loading state_dict" in reason:
            msg = f"`{role}.weights` {spec.weights!r} does not fit {spec.model!r} {spec.overrides!r}: {reason}"
            raise WeightsError(msg) from error
        if "Unknown model" in reason:
            near = ", ".join(timm.list_models(f"*{spec.model[:8]}*")[:5]) or "see timm.list_models()"
            msg = f"`{role}.model` {spec.model!r} is no model of timm {timm.__version__}; near it: {near}"
        else:
            msg = f"`{role}.model` {spec.model!r} cannot be built with `{role}.overrides` {spec.overrides!r}: {reason}"
        raise ModelError(msg) from error
    return model


def _from_file(spec: ModelSpec, path: Path, *, role: str, num_classes: int) -> nn.Module:
    if not path.is_file():
        remedy = (
            "restore it with `git checkout artifacts/foundation` or train it with `make foundation`"
            if spec.weights == FOUNDATION
            else "give one that exists"
        )
        msg = f"`{role}.weights`: no file {str(path)!r}; {remedy}, or choose a timm tag or another safetensors file"
        raise WeightsError(msg)
    keys = _stored_shapes(path, role=role)
    head = keys.get(f"{HEAD_PREFIX}weight")
    # timm drops a head whose size is not the model's and resamples position embeddings by itself.
    overlay = {"file": str(path), "num_classes": head[0] if head else -1}
    model = _create(spec, role=role, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes)
    expected = {name for name in model.state_dict() if not name.startswith(HEAD_PREFIX)}
    stored = {name for name in keys if not name.startswith(HEAD_PREFIX)}
    if expected != stored:
        absent, extra = sorted(expected - stored)[:3], sorted(stored - expected)[:3]
        msg = (
            f"`{role}.weights` {str(path)!r} does not fit {spec.model!r}: absent {absent}, unknown {extra}; "
            f"choose the architecture the file was saved from"
        )
        raise WeightsError(msg)
    return model


def _stored_shapes(path: Path, *, role: str) -> dict[str, tuple[int, ...]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        msg = f"`{role}.weights` {str(path)!r} is no readable safetensors file ({error}); fetch it again"
        raise WeightsError(msg) from error


def _from_tag(spec: ModelSpec, *, role: str, num_classes: int) -> nn.Module:
    name = f"{spec.model}.{spec.weights}"
    known = [tagged.removeprefix(f"{spec.model}.") for tagged in timm.list_pretrained(f"{spec.model}.*")]
    if timm.is_model(spec.model) and spec.weights not in known:
        msg = (
            f"`{role}.weights` {spec.weights!r} is no pretrained tag of {spec.model!r}; "
            f"choose among {', '.join(known) or 'none'}, or 'foundation', or a .safetensors file"
        )
        raise WeightsError(msg)
    try:
        return _create(
            ModelSpec(name, spec.weights, spec.overrides), role=role, pretrained=True, num_classes=num_classes
        )
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        msg = (
            f"`{role}.weights`: the pretrained weights {name!r} could not be had ({type(error).__name__}); "
            f"connect this machine to the network, or set `{role}.weights` to a safetensors file "
            f"fetched elsewhere, or set it to 'foundation' with a model of configs/{role}/"
        )
        raise WeightsError(msg) from error


def save_merged(folder: Path, role: str, model: VisionTransformer, *, labels: Sequence[str]) -> None:
    """Writes a plain network with the names of its classes as `<role>.safetensors`."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    save_file(weights, folder / f"{role}.safetensors", metadata={"labels": json.dumps(list(labels))})


def load_merged(folder: Path, role: str, spec: ModelSpec) -> tuple[VisionTransformer, list[str]]:
    """Loads what `save_merged` wrote into the architecture of `spec`.

    Returns:
        The network in evaluation mode, and the names of its classes.

    Raises:
        WeightsError: the file is absent or does not fit the architecture.
    """
    path = folder / f"{role}.safetensors"
    if not path.is_file():
        msg = f"no merged {role} {str(path)!r}; run `dvc repro merge`"
        raise WeightsError(msg)
    with safe_open(path, framework="pt") as file:
        labels: list[str] = json.loads(file.metadata()["labels"])
    saved = ModelSpec(spec.model, str(path), spec.overrides)
    return build_model(saved, num_classes=len(labels), role=role), labels


def layer_map(teacher_depth: int, student_depth: int, kind: str) -> list[int]:
    """Maps each student block to the teacher block whose adapter it shares.

    Args:
        teacher_depth: Lt, the number of teacher blocks.
        student_depth: Ls <= Lt, the number of student blocks.
        kind: "even": floor(i * Lt / Ls); "first": i; "last": Lt - Ls + i.

    Returns:
        The teacher's block index for every student block, ascending.

    Raises:
        ModelError: the student is deeper than the teacher, or `kind` is unknown.
    """
    if student_depth > teacher_depth:
        msg = f"the student has {student_depth} blocks, the teacher {teacher_depth}; choose a shallower student"
        raise ModelError(msg)
    match kind:
        case "even":
            return [i * teacher_depth // student_depth for i in range(student_depth)]
        case "first":
            return list(range(student_depth))
        case "last":
            return [teacher_depth - student_depth + i for i in range(student_depth)]
        case _:
            msg = f"`layer_map` is {kind!r}; choose even, first or last"
            raise ModelError(msg)


@torch.no_grad()
def slice_weights(teacher: VisionTransformer, student: VisionTransformer) -> None:
    """Starts `student` as a slice of `teacher`, in place: every k-th block, the first d coordinates everywhere.

    The fused qkv weight of shape (3D, D) is cut per projection: rows p*D .. p*D + d - 1 for p in q, k, v.
    With equal head widths those are whole heads. Heads (classifiers) are left alone.
    """
    source = teacher.state_dict()
    mapping = layer_map(len(teacher.blocks), len(student.blocks), "even")
    for name, target in student.state_dict().items():
        if name.startswith(HEAD_PREFIX):
            continue
        parts = name.split(".")
        if parts[0] == "blocks":
            parts[1] = str(mapping[int(parts[1])])
        value = source[".".join(parts)]
        if ".qkv." in name:
            value = value.unflatten(0, (3, -1))[:, : target.shape[0] // 3]
            value = value[(..., *(slice(n) for n in target.shape[1:]))].flatten(0, 1)
        target.copy_(value[tuple(slice(n) for n in target.shape)])
