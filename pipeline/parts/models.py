"""Teacher and student: built by timm, with weights from the foundation stage, a timm tag or a local file."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import timm
from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from timm.models.deit import VisionTransformerDistilled

from pipeline.base.errors import ModelError, WeightsError
from pipeline.parts.adapters.bottleneck import add_bottlenecks
from pipeline.parts.decoders import add_decoder
from pipeline.parts.network import Network

RANDOM = "random"
BOTTLENECK = "blocks.0.down.weight"  # in the file of a network that has bottlenecks


@dataclass(frozen=True)
class ModelSpec:
    """What `timm.create_model` builds.

    Attributes:
        model: timm's name of the architecture, without a weights tag.
        weights: a tag of timm's pretrained weights, the path of a safetensors file, or "random".
        image_size: side of the images in pixels, or (height, width); None leaves it to the architecture.
        overrides: keyword arguments for the architecture, such as `embed_dim`.
        decoder: kind of the decoder that gives each pixel a class; None gives the image one.
    """

    model: str
    weights: str = RANDOM
    image_size: int | tuple[int, int] | None = None
    overrides: dict[str, Any] = field(default_factory=dict)
    decoder: str | None = None

    @property
    def takes_image_size(self) -> bool:
        """Whether the architecture is built for one size, as transformers with position embeddings are."""
        known = timm.get_pretrained_cfg(self.model, allow_unregistered=True)
        return known is not None and bool(known.fixed_input_size)

    @property
    def classifier(self) -> str:
        """Name of the layer that gives the classes."""
        known = timm.get_pretrained_cfg(self.model, allow_unregistered=True)
        return str(known.classifier) if known is not None and known.classifier else "head"


def build_model(spec: ModelSpec, *, num_classes: int, role: str) -> Network:
    """Builds a network and loads its weights; the head is new unless the file's fits.

    Args:
        spec: architecture and weights.
        num_classes: outputs of the head; 0 leaves the head out.
        role: "teacher" or "student", for errors.

    Returns:
        The network in evaluation mode, on the CPU.

    Raises:
        ModelError: timm has no such model, it is no image classifier with one head, or it takes no decoder.
        WeightsError: the weights cannot be had or do not fit.
    """
    if spec.weights == RANDOM:
        model = _create(spec, role=role, num_classes=num_classes)
    elif spec.weights.endswith(".safetensors"):
        model = _from_file(spec, Path(spec.weights), role=role, num_classes=num_classes)
    else:
        model = _from_tag(spec, role=role, num_classes=num_classes)
    if isinstance(model, VisionTransformerDistilled):
        msg = f"`{role}.model` {spec.model!r} has a second head for a distillation token; choose one without"
        raise ModelError(msg)
    usable = all(hasattr(model, name) for name in ("forward_features", "forward_head", "get_classifier"))
    if not usable or isinstance(model.get_classifier(), tuple):
        kind = type(model).__name__
        msg = f"`{role}.model` {spec.model!r} is a {kind}, no classifier of timm with one head; choose another"
        raise ModelError(msg)
    if spec.decoder is not None:
        add_decoder(model, spec.decoder, classes=num_classes, role=role)
    return model.eval()


def _create(spec: ModelSpec, *, role: str, **options: Any) -> Network:
    if spec.image_size is not None and spec.takes_image_size:
        options["img_size"] = spec.image_size
    try:
        model: Network = timm.create_model(spec.model, **options, **spec.overrides)
    except (TypeError, AssertionError, RuntimeError, KeyError, ValueError, ArithmeticError) as error:
        reason = " ".join(str(error).split())[:300]
        if "loading state_dict" in reason:
            msg = (
                f"`{role}.weights` {spec.weights!r} does not fit {spec.model!r} {spec.overrides!r} ({reason.strip()}); "
                f"choose the architecture the file was saved from"
            )
            raise WeightsError(msg) from error
        if "Unknown model" in reason:
            near = ", ".join(timm.list_models(f"*{spec.model[:8]}*")[:5]) or "see timm.list_models()"
            msg = f"`{role}.model` {spec.model!r} is no model of timm {timm.__version__}; near it: {near}"
        else:
            msg = f"`{role}.model` {spec.model!r} cannot be built with `{role}.overrides` {spec.overrides!r}: {reason}"
        raise ModelError(msg) from error
    return model


def _from_file(spec: ModelSpec, path: Path, *, role: str, num_classes: int) -> Network:
    if not path.is_file():
        # The committed pairs of the foundation stage lie in a folder of this name.
        own = "foundation" in path.parts
        remedy = "restore it with `git checkout artifacts/foundation`" if own else "give one that exists"
        msg = f"`{role}.weights`: no file {str(path)!r}; {remedy}, or choose a timm tag or another safetensors file"
        raise WeightsError(msg)
    keys = _stored_shapes(path, role=role)
    prefix = f"{spec.classifier}."
    head = keys.get(f"{prefix}weight")
    # timm drops a head whose size is not the model's and resamples position embeddings by itself.
    overlay = {"file": str(path), "num_classes": head[0] if head else -1}
    model = _create(spec, role=role, pretrained=True, pretrained_cfg_overlay=overlay, num_classes=num_classes)
    expected = {name for name in model.state_dict() if not name.startswith(prefix)}
    stored = {name for name in keys if not name.startswith(prefix)}
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


def _from_tag(spec: ModelSpec, *, role: str, num_classes: int) -> Network:
    name = f"{spec.model}.{spec.weights}"
    known = [tagged.removeprefix(f"{spec.model}.") for tagged in timm.list_pretrained(f"{spec.model}.*")]
    if timm.is_model(spec.model) and spec.weights not in known:
        msg = (
            f"`{role}.weights` {spec.weights!r} is no pretrained tag of {spec.model!r}; "
            f"choose among {', '.join(known) or 'none'}, or the path of a .safetensors file"
        )
        raise WeightsError(msg)
    try:
        return _create(replace(spec, model=name), role=role, pretrained=True, num_classes=num_classes)
    except (OSError, HfHubHTTPError, LocalEntryNotFoundError) as error:
        msg = (
            f"`{role}.weights`: the pretrained weights {name!r} could not be had ({type(error).__name__}); "
            f"connect this machine to the network, or set `{role}.weights` to a safetensors file fetched elsewhere, "
            f"or take one of the pairs that come with the project: see configs/{role}/"
        )
        raise WeightsError(msg) from error


def save_merged(folder: Path, role: str, model: Network, *, labels: Sequence[str]) -> None:
    """Writes a network without LoRA, with the names of its classes, as `<role>.safetensors`."""
    weights = {name: value.contiguous() for name, value in model.state_dict().items()}
    # One entry: the file's bytes would otherwise depend on the order in which safetensors hashes the names.
    save_file(weights, folder / f"{role}.safetensors", metadata={"labels": json.dumps(list(labels))})


def load_merged(folder: Path, role: str, spec: ModelSpec) -> tuple[Network, list[str]]:
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
    hidden = _stored_shapes(path, role=role).get(BOTTLENECK, (0,))[0]
    with safe_open(path, framework="pt") as file:
        labels: list[str] = json.loads(file.metadata()["labels"])
    model = build_model(replace(spec, weights=RANDOM), num_classes=len(labels), role=role)
    if hidden:
        add_bottlenecks(model, hidden=hidden)
    try:
        model.load_state_dict(load_file(path))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300]
        msg = f"the merged {role} {str(path)!r} does not fit {spec.model!r} ({reason}); run `dvc repro merge`"
        raise WeightsError(msg) from error
    return model.eval(), labels
