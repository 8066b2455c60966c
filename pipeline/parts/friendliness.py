"""How well a network takes INT8: outliers and tails of what its layers get, and the noise that quantisation adds."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from pipeline.base.errors import DataError
from pipeline.base.progress import track
from pipeline.parts.groups import group_of
from pipeline.parts.index import Images
from pipeline.parts.network import Network
from pipeline.parts.predict import at_once

LEVELS = 127  # of signed symmetric INT8, on either side of zero
WIDER = 16  # numbers kept for one of the image: an activation is wider, and in float64
PRODUCTS = (F.linear, F.conv2d)
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
NOT_OBSERVED = "not observed: the network does not use its weight as it stands"


@dataclass(frozen=True)
class Layer:
    """What was seen of a layer with weights.

    Attributes:
        outlier_ratio: max |x| / sqrt(mean x^2) of its input x; None where it is not defined.
        kurtosis: E[(x - mu)^4] / sigma^4 of its input, 3 for a normal distribution; None where it is not defined.
        signal: sum of y^2 over its outputs.
        noise: sum of (y - y_q)^2.
        note: why a number is missing; empty where none is.
    """

    outlier_ratio: float | None = None
    kurtosis: float | None = None
    signal: float = 0.0
    noise: float = 0.0
    note: str = NOT_OBSERVED

    @property
    def sqnr_db(self) -> float | None:
        """Signal to quantisation noise ratio of the output; None where it is not defined."""
        return _decibels(self.signal, self.noise)


def _decibels(signal: float, noise: float) -> float | None:
    if not (math.isfinite(signal) and math.isfinite(noise) and signal > 0 and noise > 0):
        return None
    return 10 * (math.log10(signal) - math.log10(noise))


def friendliness(model: Network, images: Images) -> dict[str, Layer]:
    """Measures every layer with weights (`nn.Linear`, `nn.Conv2d`) on the FP32 network's own activations.

    Of a layer's input x, over all images, positions and channels::

        outlier ratio = max |x| / sqrt(mean x^2)
        kurtosis      = E[(x - mu)^4] / sigma^4

    The largest magnitude and the kurtosis are how Bondarenko et al., "Quantizable Transformers" (NeurIPS 2023), tell
    how well activations can be quantised. The magnitude is divided by the root mean square (the crest factor of signal
    processing), so that layers of different scale compare: INT8 that just holds the largest value leaves an input
    10 log10(12 * 127^2) = 52.9 dB less 20 log10(outlier ratio), as long as the steps are fine for most values.

    Of the output, with the noise that INT8 adds in this layer alone (SQNR as in Nagel et al., "A White Paper on Neural
    Network Quantization", 2021)::

        SQNR = 10 log10(sum y^2 / sum (y - y_q)^2),   y = x * W,   y_q = q(x) * q(W)
        q(v) = s round(v / s),                        s = max |v| / 127

    with one s for the input and one per output channel of the weights. The bias is left out of y: it stays in high
    precision, and a large one would hide the noise. A BatchNorm is not folded into W, which changes how much each
    channel counts. The products of attention have no weights and are not among the layers.

    The calls of torch are watched, not the modules: EVA-02 and BEiT give their qkv weights to `F.linear` by
    themselves. A layer whose weight reaches no such call as it stands, because it is standardised first or taken by a
    fused attention, is named with `NOT_OBSERVED`.

    Args:
        model: any network; left as it is, each module in its mode.
        images: what it sees, some at once, twice: first for ranges and means, then for the rest.

    Returns:
        What was seen of each layer that `weighted` names.

    Raises:
        DataError: there is no image.
    """
    if not len(images):
        msg = "there is no image to tell from how well the student takes INT8; run `dvc repro -f prepare`"
        raise DataError(msg)
    layers = weighted(model)
    tallies = {id(module.weight): _Tally() for module in layers.values()}
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        _show(model, images, tallies)
    finally:
        for module, training in modes:
            module.training = training
    return {name: tallies[id(module.weight)].layer() for name, module in layers.items()}


def weighted(model: Network) -> dict[str, nn.Module]:
    """Returns every layer with weights by path, that of a block with a bottleneck without the wrapper's part."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            found[re.sub(r"^(blocks\.\d+)\.block\.", r"\1.", name)] = module
    return found


@torch.inference_mode()
def _show(model: Network, images: Images, tallies: Mapping[int, "_Tally"]) -> None:
    device = next(model.parameters()).device
    size = at_once(WIDER * images[:1].size)
    parts = [slice(start, start + size) for start in range(0, len(images), size)]
    steps = [(see, part) for see in (_Tally.add_range, _Tally.add_noise) for part in parts]
    for see, part in track(steps, title="measuring for INT8", total=len(steps)):
        batch = torch.from_numpy(images[part]).to(device)
        with _Watch(tallies, see):
            model(batch)


def sqnr_by_group(layers: Mapping[str, Layer]) -> dict[str, float | None]:
    """Returns the SQNR in dB of layers that are quantised together: their signals and their noises are added."""
    groups: dict[str, list[Layer]] = {}
    for name, layer in layers.items():
        groups.setdefault(group_of(name), []).append(layer)
    return {
        group: _decibels(sum(layer.signal for layer in members), sum(layer.noise for layer in members))
        for group, members in groups.items()
    }


@dataclass(frozen=True)
class _Call:
    """A product of an input and a layer's weights, with its result."""

    product: Callable[..., Tensor]
    arguments: Mapping[str, Any]
    result: Tensor

    @property
    def input(self) -> Tensor:
        given: Tensor = self.arguments["input"]
        return given

    def output(self) -> Tensor:
        """The result without the bias."""
        bias: Tensor | None = self.arguments.get("bias")
        if bias is None:
            return self.result
        return self.result - (bias if self.product is F.linear else bias.view(-1, 1, 1))

    def quantised_result(self, peak: float) -> Tensor:
        """The result of quantised input, whose largest magnitude is `peak`, and quantised weights."""
        weight = self.arguments["weight"]
        peaks = weight.abs().flatten(1).amax(1).view(-1, *[1] * (weight.ndim - 1))
        values = {"input": quantised(self.input, peak), "weight": quantised(weight, peaks)}
        result: Tensor = self.product(**{**self.arguments, **values})
        return result


def quantised(values: Tensor, peaks: Tensor | float) -> Tensor:
    """Rounds values to symmetric INT8 and back, q(v) = s round(v / s) with s = peaks / 127; where s is 0 they are 0."""
    scale = (torch.as_tensor(peaks).to(values) / LEVELS).clamp_min(torch.finfo(values.dtype).tiny)
    return (values / scale).round_().mul_(scale)


def _energy(values: Tensor) -> float:
    """Sum of squares, in float64."""
    flat = values.double().flatten()
    return float(flat @ flat)


class _Tally:
    """Sums over the inputs and outputs of one layer, in float64.

    The moments take two passes, the mean first: sums of fourth powers about zero would lose what a large mean hides.
    """

    def __init__(self) -> None:
        self.count, self.peak, self.total = 0, 0.0, 0.0
        self.second = self.fourth = self.signal = self.noise = 0.0

    def add_range(self, call: _Call) -> None:
        """Adds what the second pass needs to know."""
        self.count += call.input.numel()
        self.peak = max(self.peak, float(call.input.max()), -float(call.input.min()))
        self.total += float(call.input.sum(dtype=torch.float64))

    def add_noise(self, call: _Call) -> None:
        """Adds central moments and, of the output, signal and noise."""
        centred = call.input.double() - self.total / self.count
        squares = centred * centred
        self.second += float(squares.sum())
        self.fourth += _energy(squares)
        self.signal += _energy(call.output())
        self.noise += _energy(call.result - call.quantised_result(self.peak))

    def layer(self) -> Layer:
        """Returns what the sums say."""
        if not self.count:
            return Layer()
        if not all(map(math.isfinite, (self.peak, self.total, self.fourth, self.signal, self.noise))):
            return Layer(note="its values are not finite")
        mean, variance = self.total / self.count, self.second / self.count
        notes = {
            "its input is constant": not variance,
            "its output is zero": not self.signal,
            "INT8 changes nothing": not self.noise,
        }
        return Layer(
            outlier_ratio=self.peak / math.sqrt(variance + mean**2) if self.peak else None,
            kurtosis=self.fourth / self.count / variance**2 if variance else None,
            signal=self.signal,
            noise=self.noise,
            note="; ".join(note for note, holds in notes.items() if holds),
        )


class _Watch(TorchFunctionMode):
    """While it is entered, shows every product with weights that are tallied."""

    def __init__(self, tallies: Mapping[int, _Tally], see: Callable[[_Tally, _Call], None]) -> None:
        super().__init__()
        self._tallies, self._see = tallies, see

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Calls `func`; what is called meanwhile is not watched."""
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if func in PRODUCTS:
            arguments = dict(zip(ARGUMENTS, args, strict=False)) | kwargs
            tally = self._tallies.get(id(arguments["weight"]))
            if tally is not None:
                self._see(tally, _Call(func, arguments, result))
        return result
