"""Labelled colour images composed of formulas: a fractal before a texture, each with its own colours.

Fractals after Kataoka et al., "Pre-training without Natural Images" (ACCV 2020); textures are noise of a random power
spectrum after Baradad et al., "Learning to See by Looking at Noise" (NeurIPS 2021). A class is a fractal, a texture and
two colour ramps. Each fractal and each texture serves several classes, so that neither alone, nor a colour, tells the
class. Instances shift all of them a little and light the scene from a random side.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.parts.fractals import Systems, draw_systems, render

CLASSES_PER_FRACTAL = 4
CLASSES_PER_TEXTURE = 20
RAMP = 3  # colours from dark to bright, between which a ramp is linear
COLOR_JITTER = 0.12  # standard deviation, of the range 0 to 1
MAX_SHADE = 0.35  # change of brightness from the middle to an edge

Grey = NDArray[np.float32]


@dataclass(frozen=True)
class Textures:
    """Power spectra |f|^-decay, concentrated around an angle and a frequency.

    Attributes:
        decay: of shape (textures,); higher is smoother.
        angle: of the stripes, in radians, of shape (textures,).
        focus: how much the angle matters, 0 to 6, of shape (textures,).
        band: preferred frequency in cycles per image, of shape (textures,).
        sharpness: of the preference, 0 to 2, of shape (textures,).
    """

    decay: Grey
    angle: Grey
    focus: Grey
    band: Grey
    sharpness: Grey

    def of(self, classes: NDArray[np.int64], *, generator: np.random.Generator) -> "Textures":
        """Returns one slightly changed texture for each of `classes` (indices of textures)."""
        jitter = [generator.normal(0, spread, len(classes)).astype(np.float32) for spread in (0.1, 0.15, 0.1)]
        decay, angle, band = self.decay[classes] + jitter[0], self.angle[classes] + jitter[1], self.band[classes]
        return Textures(decay, angle, self.focus[classes], band * np.exp(jitter[2]), self.sharpness[classes])

    def render(self, *, size: int, generator: np.random.Generator) -> Grey:
        """Draws each texture once: (textures, size, size), 0 to 1."""
        vertical, horizontal = np.fft.fftfreq(size)[:, None] * size, np.fft.rfftfreq(size)[None] * size
        radius = np.maximum(np.hypot(vertical, horizontal), 1).astype(np.float32)
        phase = np.arctan2(vertical, horizontal)
        column = (slice(None), None, None)
        power = radius[None] ** -self.decay[column]
        power = power * np.exp(self.focus[column] * (np.cos(2 * (phase[None] - self.angle[column])) - 1))
        power = power * np.exp(-self.sharpness[column] * np.log(radius[None] / self.band[column]) ** 2)
        noise = generator.normal(size=(len(self.decay), size, size)).astype(np.float32)
        drawn = np.fft.irfft2(np.fft.rfft2(noise) * power, s=(size, size))
        low, high = np.percentile(drawn, [2, 98], axis=(1, 2), keepdims=True)
        grey: Grey = np.clip((drawn - low) / np.maximum(high - low, 1e-9), 0, 1).astype(np.float32)
        return grey


def _draw_textures(count: int, generator: np.random.Generator) -> Textures:
    limits = ((0.2, 2.2), (0, np.pi), (0, 6), (2, 16), (0, 2))
    return Textures(*(generator.uniform(low, high, count).astype(np.float32) for low, high in limits))


def _colored(grey: Grey, ramps: Grey) -> Grey:
    """Maps (images, size, size) in 0 to 1 through ramps (images, RAMP, 3) to (images, size, size, 3)."""
    place = grey * (RAMP - 1)
    below = np.minimum(place.astype(np.int64), RAMP - 2)
    part = (place - below)[..., None]
    image = np.arange(len(grey))[:, None, None]
    colored: Grey = ramps[image, below] * (1 - part) + ramps[image, below + 1] * part
    return colored


def _solid(drawn: NDArray[np.uint8], *, size: int) -> Grey:
    """Enlarges points (images, half, half), 0 to 255, to surfaces (images, size, size), 0 to 1."""
    grid = np.minimum((np.arange(size) * drawn.shape[-1]) // size, drawn.shape[-1] - 1)
    large: Grey = drawn[:, grid[:, None], grid].astype(np.float32) / np.float32(255)
    for axis in (1, 2):  # a tent of three pixels takes the steps out
        large = ((np.roll(large, 1, axis) + 2 * large + np.roll(large, -1, axis)) / 4).astype(np.float32)
    return large


def _shade(count: int, *, size: int, generator: np.random.Generator) -> Grey:
    """Light from a random side, as a factor of shape (count, size, size, 1)."""
    side = np.linspace(-1, 1, size, dtype=np.float32)
    tilt = generator.uniform(-MAX_SHADE, MAX_SHADE, (count, 2, 1, 1)).astype(np.float32)
    shade: Grey = (1 + tilt[:, 0] * side[:, None] + tilt[:, 1] * side)[..., None]
    return shade


def scene_images(*, classes: int, instances: int, size: int, seed: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Draws a labelled set of colour images.

    Args:
        classes: number of combinations of fractal, texture and colours, each a class.
        instances: images per class.
        size: side of the square images in pixels.
        seed: fixes every draw.

    Returns:
        Images of shape (classes * instances, 3, size, size), and labels of shape (classes * instances,).
    """
    generator = np.random.default_rng(seed)
    systems = draw_systems(max(2, classes // CLASSES_PER_FRACTAL), size=size // 2, generator=generator)
    textures = _draw_textures(max(2, classes // CLASSES_PER_TEXTURE), generator)
    shape = generator.permutation(classes) % len(systems.affine)
    ground = generator.permutation(classes) % len(textures.decay)
    ramps = np.sort(generator.uniform(0, 1, (2, classes, RAMP, 3)).astype(np.float32), axis=2)
    dull = generator.uniform(0, 1, (2, classes, 1, 1)).astype(
        np.float32
    )  # most of what a camera sees is hardly colourful
    ramps = ramps * (1 - dull) + ramps.mean(axis=3, keepdims=True) * dull
    images = []
    for _ in range(instances):
        change = generator.uniform(0.9, 1.1, (classes, *systems.affine.shape[1:])).astype(np.float32)
        figure = Systems(systems.affine[shape] * change, systems.probability[shape])
        grey = _solid(render(figure, size=size // 2, generator=generator), size=size)
        back = textures.of(ground, generator=generator).render(size=size, generator=generator)
        colors = np.clip(ramps + generator.normal(0, COLOR_JITTER, ramps.shape).astype(np.float32), 0, 1)
        cover = np.minimum(1, 3 * grey)[..., None]
        scene = _colored(grey, colors[0]) * cover + _colored(back, colors[1]) * (1 - cover)
        scene = np.clip(scene * _shade(classes, size=size, generator=generator), 0, 1)
        images.append((scene * 255).astype(np.uint8).transpose(0, 3, 1, 2))
    return np.concatenate(images), np.tile(np.arange(classes, dtype=np.int64), instances)
