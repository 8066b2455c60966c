"""A target as plain values: the section `targets.<name>` of params.yaml, checked by dotted key."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deploy.errors import TargetError
from deploy.runtimes import RUNTIMES

PRECISIONS = ("fp32", "bf16", "fp16", "int8", "int8_bf16")

# The precision a model must have been exported in to run in the one a variant asks for.
EXPORTED_AS = {"fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8", "int8_bf16": "int8"}

FOLDER_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Variant:
    """One engine of a target.

    Attributes:
        name: folder of the engine.
        onnx: folder of its bundle.
        precision: what the engine computes in; "int8_bf16" is INT8 with the layers that are not quantised in bf16,
            which are in fp32 else.
    """

    name: str
    onnx: str
    precision: str


@dataclass(frozen=True)
class Target:
    """A checked target; `threads` 0 leaves the number to the runtime."""

    name: str
    runtime: str
    threads: int
    variants: tuple[Variant, ...]


def read_target(name: str, spec: Mapping[str, Any]) -> Target:
    """Check a target's section.

    Args:
        name: of the target, for dotted keys in messages.
        spec: `runtime`, `threads` (optional) and `variants`, each with `onnx` and `precision`.

    Raises:
        TargetError: a key is unknown or missing, or a value is wrong.
    """
    place = f"targets.{name}"
    _check_name(name, place)
    _check_keys(spec, place, known=("runtime", "threads", "variants"), needed=("runtime", "variants"))
    runtime, threads, variants = spec["runtime"], spec.get("threads", 0), spec["variants"]
    if runtime not in RUNTIMES:
        msg = f"`{place}.runtime` {runtime!r} is unknown; known ones: {', '.join(RUNTIMES)}"
        raise TargetError(msg)
    if type(threads) is not int or threads < 0:
        msg = f"`{place}.threads` should be an integer of 0 (the runtime's choice) or more, got {threads!r}"
        raise TargetError(msg)
    if not isinstance(variants, Mapping) or not variants:
        msg = f"`{place}.variants` should name at least one variant, got {variants!r}"
        raise TargetError(msg)
    read = tuple(_read_variant(key, value, f"{place}.variants.{key}") for key, value in variants.items())
    return Target(name=name, runtime=runtime, threads=threads, variants=read)


def _read_variant(name: str, spec: Any, place: str) -> Variant:
    _check_name(name, place)
    _check_keys(spec, place, known=("onnx", "precision"), needed=("onnx", "precision"))
    _check_name(spec["onnx"], f"{place}.onnx")
    if spec["precision"] not in PRECISIONS:
        msg = f"`{place}.precision` should be one of {', '.join(PRECISIONS)}, got {spec['precision']!r}"
        raise TargetError(msg)
    return Variant(name=name, onnx=spec["onnx"], precision=spec["precision"])


def _check_keys(spec: Any, place: str, *, known: tuple[str, ...], needed: tuple[str, ...]) -> None:
    """Report every unknown and missing key at once."""
    if not isinstance(spec, Mapping):
        msg = f"`{place}` should hold {', '.join(known)}, got {spec!r}"
        raise TargetError(msg)
    faults = [f"`{place}.{key}` is unknown" for key in spec if key not in known]
    faults += [f"`{place}.{key}` is missing" for key in needed if key not in spec]
    if faults:
        msg = f"{'; '.join(faults)}; known keys: {', '.join(known)}"
        raise TargetError(msg)


def _check_name(name: Any, place: str) -> None:
    """Accept names that stay one folder on every system."""
    if not isinstance(name, str) or not FOLDER_NAME.fullmatch(name):
        msg = f"`{place}` should be a plain name of letters, digits, '.', '_' and '-', got {name!r}"
        raise TargetError(msg)
