"""What the runtime `tensorrt` needs beside TensorRT: its words, its measured times, and its report of layers.

As in the runtime, the functions import TensorRT themselves, so that mypy can follow every call.
"""

import contextlib
import json
import re
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.cuda import Gpu
from deploy.errors import EngineError
from deploy.files import cache_folder, write_bytes
from deploy.runtime import Placement

if TYPE_CHECKING:
    import tensorrt as trt

OUT_OF_MEMORY = re.compile(r"out of memory|outofmemory|insufficient memory|memoryallocation", re.IGNORECASE)
# What the inspector writes for a tensor: "Half" since TensorRT 10, "Row major linear FP16 format" before, and so on.
TYPES = {
    "int8": r"int8", "fp8": r"fp8", "bf16": r"bf16|bfloat16", "fp16": r"fp16|half", "fp32": r"fp32|float",
}  # fmt: skip
# Copies and casts between the formats of two devices are TensorRT's own, and no DLA can run them.
BETWEEN_DEVICES = {"Reformat", "NoOp", "Cast"}


@dataclass
class Said:
    """What TensorRT said: its functions return nothing where they fail, and log the reason."""

    errors: list[str] = field(default_factory=list)
    warnings: int = 0

    def words(self) -> str:
        """Return the last errors in one line."""
        return " | ".join(self.errors[-3:]) or "it did not say why"

    def out_of_memory(self) -> bool:
        """Say whether one of the errors is that there is no memory left."""
        return any(OUT_OF_MEMORY.search(line) for line in self.errors)

    def logger(self) -> "trt.ILogger":
        """Return a logger that keeps here what TensorRT says."""
        import tensorrt as trt

        class Logger(trt.ILogger):
            def __init__(self, said: Said) -> None:
                trt.ILogger.__init__(self)  # pybind11 refuses `super().__init__` through other classes
                self.said = said

            def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
                if severity in (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR):
                    self.said.errors.append(" ".join(msg.split()))
                elif severity == trt.ILogger.Severity.WARNING:
                    self.said.warnings += 1

        return Logger(self)


class TimingCache:
    """How long each kernel took in earlier builds: those need not be timed again."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self, config: "trt.IBuilderConfig", said: Said) -> str:
        """Give the config what the file holds, and say how that went; a file that TensorRT refuses is as none."""
        content = b""
        with contextlib.suppress(OSError):  # what cannot be read is as none
            content = self._path.read_bytes()
        before = len(said.errors)
        cache = config.create_timing_cache(content)
        if content and (cache is None or not config.set_timing_cache(cache, ignore_mismatch=False)):
            reason = " | ".join(said.errors[before:]) or "TensorRT refuses it"
            del said.errors[before:]  # no reason for what may fail later
            state = f"discarded {self._path}: {reason}"
            sys.stderr.write(f"timing cache: {state}; it is made anew\n")
            content, cache = b"", config.create_timing_cache(b"")
        else:
            state = str(self._path) if content else f"new {self._path}"
        if not content and cache is not None:
            config.set_timing_cache(cache, ignore_mismatch=False)
        return state

    def save(self, config: "trt.IBuilderConfig") -> None:
        """Keep what the build has measured."""
        cache = config.get_timing_cache()
        content = cache.serialize() if cache is not None else None
        if content is None:
            return
        try:
            write_bytes(self._path, bytes(content))
        except OSError as cause:  # the engine is built all the same
            sys.stderr.write(f"timing cache: cannot keep {self._path}: {cause}; later builds measure anew\n")


def cache_file(gpu: Gpu, version: str) -> Path:
    """Return the file for this release and this kind of GPU: a time measured elsewhere is worth nothing."""
    folder = cache_folder() / "tensorrt-timing"
    return folder / (re.sub(r"[^\w.]+", "-", f"{version}-{gpu.name}-{gpu.compute_capability}") + ".cache")


def read_layers(text: str, *, asked: str, name: str) -> Placement:
    """Read what TensorRT's inspector says of a plan.

    Args:
        text: JSON of a plan that was built with detailed verbosity.
        asked: "GPU 0", or "DLA 1".
        name: of the plan, for messages.

    Raises:
        EngineError: it is not what an inspector writes.
    """
    try:
        layers = json.loads(text)["Layers"]
        rows = [(str(layer["Name"]), str(layer.get("LayerType", "")), _precision(layer)) for layer in layers]
    except (ValueError, KeyError, TypeError, AttributeError) as cause:
        msg = f"{name}: TensorRT's inspector does not tell its layers ({text[:80]!r}); build it again"
        raise EngineError(msg) from cause
    on_dla = asked.startswith("DLA")
    return Placement(
        asked=asked,
        nodes=dict(Counter("DLA" if kind == "DLA" else "GPU" for _, kind, _ in rows)),
        precisions=dict(Counter(precision for _, _, precision in rows)),
        strays=tuple(layer for layer, kind, _ in rows if on_dla != (kind == "DLA") and kind not in BETWEEN_DEVICES),
    )


def _precision(layer: Mapping[str, Any]) -> str:
    """Return the smallest type that a layer reads: INT8 times INT8 is written as FP16, and computed in INT8."""
    tensors = layer.get("Inputs") or layer.get("Outputs") or []
    said = [str(tensor.get("Format/Datatype", "")) for tensor in tensors]
    for kind, pattern in TYPES.items():
        if any(re.search(pattern, words, re.IGNORECASE) for words in said):
            return kind
    return "other"
