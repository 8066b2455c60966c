"""What training changed, as tensors to save: adapters made whole, and every other parameter that was trained."""

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.bottleneck import Bottlenecked, add_bottlenecks
from pipeline.parts.adapters.factors import Factors
from pipeline.parts.adapters.inject import adapters, inject, shapes
from pipeline.parts.adapters.lora import LoraLinear
from pipeline.parts.adapters.sites import TARGETS
from pipeline.parts.network import Network

AGAIN = "run `dvc repro distill` again"
SCALE, HIDDEN = "scale", "bottleneck"
State = Mapping[str, Tensor]


def trained_state(model: Network, trained: Collection[nn.Parameter]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns everything that must be added to the pretrained weights to get `model`, and how.

    Args:
        model: with or without adapters.
        trained: parameters that were trained; those of factors need not be among them.

    Returns:
        Tensors by name: factors as `blocks.<i>.<projection>.a` and `.b` of shape (r, inputs) and (outputs, r), other
        parameters and buffers under the names they have in `model` without LoRA; and metadata.
    """
    state: dict[str, Tensor] = {}
    described: dict[str, str] = {}
    inner: list[str] = []
    for name, module in adapters(model).items():
        if isinstance(module, Bottlenecked):
            described[HIDDEN] = str(module.down.out_features)
            continue
        described[SCALE] = str(module.scale)
        inner.append(f"{name}.sources.")
        for projection, source in module.sources.items():
            block = ".".join(name.split(".")[:2])
            state[f"{block}.{projection}.a"], state[f"{block}.{projection}.b"] = source()
    chosen = {id(parameter) for parameter in trained}
    for name, parameter in model.named_parameters():
        if id(parameter) in chosen and not name.startswith(tuple(inner)):
            state[name.replace(".base.", ".")] = parameter
    persistent = model.state_dict().keys()
    state |= {name: buffer for name, buffer in model.named_buffers() if name in persistent}
    return {name: value.detach().cpu().contiguous().clone() for name, value in state.items()}, described


@torch.no_grad()
def restore(model: Network, state: State, described: Mapping[str, str]) -> None:
    """Gives a pretrained `model` what `trained_state` returned, in place.

    Raises:
        ModelError: the saved tensors do not fit the model.
    """
    if HIDDEN in described:
        add_bottlenecks(model, hidden=int(described[HIDDEN]))
    factors = {name for name in state if name.endswith((".a", ".b")) and name.startswith("blocks.")}
    rest = {name: value for name, value in state.items() if name not in factors}
    own = dict(model.state_dict())
    for name, value in rest.items():
        if name not in own or own[name].shape != value.shape:
            there = f"of shape {tuple(own[name].shape)}" if name in own else "nowhere"
            msg = f"the trained {name!r} has shape {tuple(value.shape)}, the network has it {there}; {AGAIN}"
            raise ModelError(msg)
        own[name].copy_(value)
    if SCALE in described:
        _restore_factors(model, {name: state[name] for name in factors}, scale=float(described[SCALE]))


def _restore_factors(model: Network, state: State, *, scale: float) -> None:
    known = [name for name in TARGETS if any(f".{name}." in key or f".{name}_" in key for key in state)]
    sources: list[dict[str, nn.Module]] = []
    used = set()
    for index, block in enumerate(shapes(model, known)):
        here: dict[str, nn.Module] = {}
        for name, (inputs, outputs) in block.items():
            keys = f"blocks.{index}.{name}.a", f"blocks.{index}.{name}.b"
            if keys[0] not in state:
                continue
            a, b = state[keys[0]], state.get(keys[1])
            if b is None or a.shape[1] != inputs or b.shape != (outputs, len(a)):
                found = f"{tuple(a.shape)} and {None if b is None else tuple(b.shape)}"
                need = f"the layer maps {inputs} to {outputs}"
                msg = f"the factors of {keys[0][:-2]!r} have shapes {found}, but {need}; {AGAIN}"
                raise ModelError(msg)
            here[name] = Factors(inputs, outputs, rank=len(a))
            here[name].load_state_dict({"a": a, "b": b})
            used |= set(keys)
        sources.append(here)
    if used != set(state):
        msg = f"the network has no place for the factors {sorted(set(state) - used)[:3]}; {AGAIN}"
        raise ModelError(msg)
    inject(model, sources, scale=scale)


def without_factors(model: Network) -> list[str]:
    """Returns the names of layers in which a low-rank update is left."""
    return [name for name, module in adapters(model).items() if isinstance(module, LoraLinear)]
