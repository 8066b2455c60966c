"""Test images with their masks: what is true, and what the engines answered on their devices."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.parts.index import IGNORED
from pipeline.steps.report.chain import Logits
from pipeline.steps.report.documents import read_arrays
from pipeline.steps.report.records import Target

COLOURS = ("#0072b2", "#c84e00", "#f0e442", "#a64d85", "#00805e", "#56b4e9", "#e69f00", "#4b5563")  # then again
SHOWN = ("fp32", "int8", "int8_fp16")  # precisions
STRENGTH = 0.55  # of a colour over a picture
WIDEST = 400  # pixels


@dataclass(frozen=True, kw_only=True)
class Overlay:
    """One picture: `uri` is its data, `caption` what lies over it."""

    caption: str
    uri: str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One test image: its path in the data, the picture itself, the truth, and the answers."""

    name: str
    overlays: tuple[Overlay, ...]


def colour(place: int) -> str:
    """The colour of a class by its place, as CSS has it."""
    return COLOURS[place % len(COLOURS)]


def draw_rows(reference: Logits, targets: Sequence[Target]) -> tuple[Row, ...]:
    """Draws the pictures that the reference has, none where images have no masks."""
    if "pictures" not in reference:
        return ()
    places = reference["pictured"]
    masks: dict[str, NDArray[Any]] = {"truth": reference["targets"][places]}
    for target in targets:
        masks |= {f"{target.name}, {name}": mask[places] for name, mask in _answers(target).items()}
    return tuple(
        Row(
            name=str(name),
            overlays=(
                Overlay(caption="image", uri=_uri(picture)),
                *(Overlay(caption=what, uri=_uri(_over(picture, mask[row]))) for what, mask in masks.items()),
            ),
        )
        for row, (name, picture) in enumerate(zip(reference["names"], reference["pictures"], strict=True))
    )


def _answers(target: Target) -> Mapping[str, NDArray[Any]]:
    logits = read_arrays(target.folder / "logits.npz")
    shown = (variant.name for variant in target.variants if variant.precision in SHOWN)
    return {name: logits[name].argmax(1) for name in shown if name in logits}


def _over(picture: NDArray[np.uint8], mask: NDArray[Any]) -> NDArray[np.uint8]:
    palette = np.array([tuple(bytes.fromhex(code[1:])) for code in COLOURS], np.float64)
    mixed = (1 - STRENGTH) * picture + STRENGTH * palette[mask % len(COLOURS)]
    return np.where((mask == IGNORED)[..., None], picture, mixed.round().astype(np.uint8))


def _uri(pixels: NDArray[np.uint8]) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((WIDEST, WIDEST), Image.Resampling.LANCZOS)
    stream = io.BytesIO()
    image.save(stream, format="JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
