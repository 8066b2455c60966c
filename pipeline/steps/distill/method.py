"""What all methods have in common: one interface, and the ways in which a model can be trained."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Protocol

from torch import nn

from pipeline.base.errors import ModelError
from pipeline.parts.adapters.inject import Sources, adapters, inject, own_factors, upper
from pipeline.parts.adapters.lora import LoraLinear
from pipeline.parts.adapters.sharing import check_adaptable
from pipeline.parts.network import Network
from pipeline.parts.training import Phase


class Method(Protocol):
    """A way to train a student.

    Attributes:
        name: as in `distill.method`.
        has_teacher: whether there is a teacher at all.
    """

    has_teacher: ClassVar[bool]

    @property
    def name(self) -> str:
        """As in `distill.method`."""

    def phases(self, teacher: Network | None, student: Network) -> list[Phase]:
        """Prepares the pretrained models in place and returns what is to be trained, in order.

        Raises:
            ModelError: the models do not go together with this method.
        """


@dataclass(frozen=True, kw_only=True)
class Lora:
    """Low-rank updates.

    Attributes:
        targets: adapted projections, of "q", "k", "v", "proj", "fc1", "fc2".
        rank: r.
        alpha: the update is scaled by alpha / r.
        dropout: of the adapters' inputs.
        norms: whether norms, biases and layer scales of an adapted model are trained too, from the lowest block with
            adapters up.
        depth: share of the blocks, from the top, that have adapters. Backward passes end at the lowest one.
    """

    targets: tuple[str, ...]
    rank: int
    alpha: float
    dropout: float = 0.0
    norms: bool = False
    depth: float = 1.0

    @property
    def scale(self) -> float:
        """Factor of the low-rank update, alpha / r."""
        return self.alpha / self.rank

    def add_to(self, model: Network, sources: Sequence[Sources]) -> None:
        """Puts the factors `sources` into `model`."""
        inject(model, sources, scale=self.scale, dropout=self.dropout)

    def trained(self, model: Network) -> dict[str, nn.Parameter]:
        """Returns the parameters of an adapted model that are trained: factors it owns, head, perhaps norms."""
        prefixes = tuple(f"{name}.sources." for name, m in adapters(model).items() if isinstance(m, LoraLinear))
        head = {id(parameter) for parameter in model.get_classifier().parameters()}
        lowest = min(int(prefix.split(".")[1]) for prefix in prefixes)
        return {
            name: parameter
            for name, parameter in model.named_parameters()
            if name.startswith(prefixes)
            or id(parameter) in head
            or (self.norms and parameter.ndim <= 1 and _height(name) >= lowest)
        }


def _height(name: str) -> float:
    """Where in a transformer a parameter acts: its block, 0 for the patches before them, infinity for what follows."""
    parts = name.split(".")
    if parts[0] == "blocks":
        return int(parts[1])
    return 0 if parts[0] in {"patch_embed", "norm_pre"} else math.inf


def trained_by(training: str, model: Network, *, lora: Lora | None, role: str) -> dict[str, nn.Parameter]:
    """Prepares `model` in place and returns the parameters to be trained.

    Args:
        training: "full": all of them; "probe": the head; "lora": adapters of its own, and the head.
        model: pretrained.
        lora: needed for "lora".
        role: "teacher" or "student", for errors.

    Raises:
        ModelError: the model cannot hold adapters.
    """
    if training == "full":
        return dict(model.named_parameters())
    if training == "lora" and lora is not None:
        check_adaptable(model, role=role)
        factors = own_factors(model, lora.targets, rank=lora.rank)
        kept = upper(len(factors), lora.depth)
        lora.add_to(model, [block if index in kept else {} for index, block in enumerate(factors)])
        return lora.trained(model)
    head = {id(parameter) for parameter in model.get_classifier().parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in head}


def prefixed(role: str, parameters: dict[str, nn.Parameter]) -> dict[str, nn.Parameter]:
    """Returns the parameters with the role before their names."""
    return {f"{role}.{name}": parameter for name, parameter in parameters.items()}


def needed(teacher: Network | None, *, by: str) -> Network:
    """Returns the teacher.

    Raises:
        ModelError: the method `by` was given none.
    """
    if teacher is None:
        msg = f"{by} needs a teacher"
        raise ModelError(msg)
    return teacher
