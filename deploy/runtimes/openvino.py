"""OpenVINO on one of its devices: the engine is the blob of a compiled model."""

import re
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, RuntimeMissingError
from deploy.runtime import Engine, Option, OptionValue, Placement, Settings, Source

ENGINE_FILE = "engine.blob"
MADE_FROM = "onnx"
THREADED = True
TELEMETRY = "openvino_telemetry"
EXPORTED_AS = {
    "fp32": "fp32", "bf16": "fp32", "fp16": "fp16", "int8": "int8", "int8_bf16": "int8", "int8_fp16": "int8",
}  # fmt: skip
FLOATS = {  # of what is not INT8
    "fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8_bf16": "bf16", "int8_fp16": "f16",
}  # fmt: skip
DEVICE = r"CPU|(GPU|NPU)(\.[0-9]+)?"
OPTIONS = {
    # Not AUTO, HETERO or MULTI: a number in the report is one device's.
    "device": Option(default="CPU", pattern=DEVICE, meaning="OpenVINO's device: CPU, GPU, GPU.1, NPU"),
    "performance_hint": Option(default="LATENCY", choices=("LATENCY", "THROUGHPUT"), meaning="what to compile for"),
}
SOURCE_PLACE = re.compile(r"Exception from \S+:\d+:?")
NO_WORK = {"", "Const", "Input", "Output", "Result", "Parameter"}  # layers that compute nothing, or do not say


def version() -> str:
    """Return the release, "2026.4.1" without the build's number and branch."""
    return str(_import_openvino().__version__).split("-", maxsplit=1)[0]


def places() -> dict[str, str | None]:
    """Run a network of one node on every device that OpenVINO has a plugin for, and on every one that it finds."""
    found = _import_openvino().Core().available_devices
    kinds = {name.partition(".")[0] for name in found}
    return {name: _refusal(name) for name in [*found, *(kind for kind in ("CPU", "GPU", "NPU") if kind not in kinds)]}


def probe(options: Mapping[str, OptionValue]) -> dict[str, Any]:
    """Run a network of one node on the device, and describe it."""
    openvino, device = _import_openvino(), str(options["device"])
    reason = _refusal(device)
    if reason is not None:
        msg = (
            f"OpenVINO's device {device} does not run here: {reason}; install its driver, or choose another `device` "
            "(`slad doctor` shows which ones run)"
        )
        raise EngineError(msg)
    core = openvino.Core()
    facts = {"device": device, "name": str(core.get_property(device, "FULL_DEVICE_NAME"))}
    known = {str(name) for name in core.get_property(device, "SUPPORTED_PROPERTIES")}
    for name in ("GPU_DRIVER_VERSION", "NPU_DRIVER_VERSION"):  # a blob belongs to the driver that it was compiled with
        if name in known:
            facts["driver"] = str(core.get_property(device, name))
    return facts


def supports(settings: Settings) -> str | None:
    """Ask the device; where bf16 or fp16 is not native OpenVINO would quietly compute in fp32."""
    openvino, device = _import_openvino(), str(settings.options["device"])
    capabilities = openvino.Core().get_property(device, "OPTIMIZATION_CAPABILITIES")
    kind = FLOATS[settings.precision]
    needed = [kind if kind == "bf16" else kind.replace("f", "fp"), *(["int8"] if "int8" in settings.precision else [])]
    lacking = [name for name in needed if name.upper() not in capabilities]
    if not lacking:
        return None
    here = "this CPU" if device == "CPU" else device
    return f"{here} has no native {lacking[0]} (OpenVINO lists no {lacking[0].upper()} capability)"


def build(source: Source, engine_path: Path, settings: Settings) -> dict[str, Any]:
    """Compile, and export the compiled model: what OpenVINO's own model cache would keep."""
    openvino, device = _import_openvino(), str(settings.options["device"])
    options = _options(settings)
    try:
        compiled = openvino.Core().compile_model(str(source.onnx), device, options)
        blob = compiled.export_model()
    except RuntimeError as cause:
        msg = (
            f"{source.onnx}: OpenVINO cannot compile it for {settings.precision} ({_reason(cause)}); "
            "check the exported model"
        )
        raise EngineError(msg) from cause
    engine_path.write_bytes(blob if isinstance(blob, bytes) else blob.getbuffer())
    return {"device": device, **options}


def load(engine_path: Path, settings: Settings) -> Engine:
    """Import the compiled model.

    The options are given again because the blob does not keep them: imported without them, an fp32 engine computes in
    bf16 on a CPU that has it. The file is mapped and not read: read, it would be held twice while it is imported.
    """
    openvino, device = _import_openvino(), str(settings.options["device"])
    try:
        blob = np.memmap(engine_path, np.uint8, mode="c")
        model = openvino.Core().import_model(openvino.Tensor(blob, shared_memory=True), device, _options(settings))
        return _Engine(openvino, model, blob, name=str(engine_path), device=device)
    except (RuntimeError, OSError, ValueError) as cause:  # the last: an empty file cannot be mapped
        remedy = "build it again with `dvc repro -sf compile@<target>`"
        msg = f"{engine_path}: OpenVINO cannot load it ({_reason(cause)}); {remedy}"
        raise EngineError(msg) from cause


class _Engine:
    """One request with its own input tensor.

    Copying into a tensor that the request keeps is several times cheaper for a small model than handing it a new
    array with each query (`share_inputs`), which makes OpenVINO set up its input anew.
    """

    def __init__(self, openvino: Any, model: Any, blob: NDArray[np.uint8], *, name: str, device: str) -> None:
        self._name = name
        self._device = device
        self._model = model
        self._request = model.create_infer_request()
        self._tensor = openvino.Tensor(openvino.Type.f32, model.input(0).get_shape())
        self._request.set_input_tensor(self._tensor)
        self._input = self._tensor.data
        self._output = self._request.get_output_tensor(0)
        self._blob = blob  # the model goes on reading its weights there

    def run(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
        if image.shape != self._input.shape:
            shapes = f"{self._input.shape}, got {image.shape}"
            msg = f"{self._name}: takes an input of shape {shapes}; prepare the input with its own bundle"
            raise EngineError(msg)
        self._input[...] = image
        try:
            self._request.infer(share_outputs=True)
        except RuntimeError as cause:
            msg = f"{self._name}: OpenVINO failed while running it ({_reason(cause)}); build it again"
            raise EngineError(msg) from cause
        return np.array(self._output.data, dtype=np.float32)

    def copy(self, image: NDArray[np.float32], /) -> bool:
        self._input[...] = image
        np.array(self._output.data, dtype=np.float32)
        return True

    def placement(self) -> Placement:
        try:
            nodes = self._model.get_runtime_model().get_ops()
            ran_on = [str(name) for name in self._model.get_property("EXECUTION_DEVICES")]
        except RuntimeError as cause:
            msg = f"{self._name}: OpenVINO does not tell where it runs ({_reason(cause)}); build it again"
            raise EngineError(msg) from cause
        return read_layers([_layer(node) for node in nodes], asked=self._device, ran_on=ran_on)


def read_layers(layers: list[dict[str, str]], *, asked: str, ran_on: list[str]) -> Placement:
    """Read what a compiled model says of its layers.

    Args:
        layers: name, layerType and runtimePrecision of each; layers that compute nothing are left out. An NPU tells of
            none: its network counts as one node then, of unknown precision.
        asked: the device that should run all of them.
        ran_on: the devices that the compiled model says it executes on.
    """
    working = [layer for layer in layers if layer["layerType"] not in NO_WORK]
    names = tuple(layer["name"] for layer in working) or ("the whole network",)
    kind = asked.partition(".")[0]
    elsewhere = [name for name in ran_on if name.partition(".")[0] != kind]
    return Placement(
        asked=asked,
        nodes={", ".join(ran_on): len(names)},
        precisions=dict(Counter(layer["runtimePrecision"] for layer in working)),
        strays=names if elsewhere else (),
    )


def _layer(node: Any) -> dict[str, str]:
    said = node.get_rt_info()
    told = {key: str(said[key].value) if key in said else "" for key in ("layerType", "runtimePrecision")}
    return {"name": str(node.get_friendly_name()), **told}


def _refusal(device: str) -> str | None:
    """Say why a device does not run y = x + x, or None where it does."""
    openvino = _import_openvino()
    from openvino import opset13 as ops

    image = ops.parameter([1, 4], openvino.Type.f32)
    try:
        compiled = openvino.Core().compile_model(openvino.Model([ops.add(image, image)], [image]), device)
        compiled.create_infer_request().infer([np.ones((1, 4), np.float32)])
    except RuntimeError as cause:
        return _reason(cause)
    return None


def _options(settings: Settings) -> dict[str, Any]:
    """Translate to OpenVINO's names; without a hint it computes fp32 and the float part of int8 in bf16."""
    hint, device = settings.options["performance_hint"], str(settings.options["device"])
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": hint,
        "INFERENCE_PRECISION_HINT": FLOATS[settings.precision],
        **({"NUM_STREAMS": 1} if hint == "LATENCY" and not device.startswith("NPU") else {}),
    }
    return {**options, "INFERENCE_NUM_THREADS": settings.threads} if settings.threads and device == "CPU" else options


def _reason(cause: BaseException) -> str:
    """Return OpenVINO's own words: much of what it raises only says where in its sources the exception passed."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    plain = [SOURCE_PLACE.sub("", line).strip() for line in lines if not line.startswith("Check '")]
    said = [line for line in plain if line]
    if len(said) > 1 and said[0].endswith(":"):
        said[0] += f" {said[1]}"
    return (said or lines or [type(cause).__name__])[0]


def _import_openvino() -> Any:
    """Import OpenVINO with its telemetry off: the import itself would send an event.

    Its telemetry package is hidden during the import, which makes OpenVINO take its own silent stub.
    """
    if "openvino" in sys.modules and sys.modules["openvino"] is not None:
        return sys.modules["openvino"]
    hidden = {name: sys.modules.pop(name) for name in list(sys.modules) if name.partition(".")[0] == TELEMETRY}
    sys.modules[TELEMETRY] = None  # type: ignore[assignment]
    try:
        import openvino
    except ImportError as cause:
        msg = f"runtime 'openvino' is not installed ({cause}); run `pip install 'slad-edge[openvino]'`"
        raise RuntimeMissingError(msg) from cause
    finally:
        del sys.modules[TELEMETRY]
        sys.modules.update(hidden)
    return openvino
