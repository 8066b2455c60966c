"""OpenVINO on the CPU: the engine is the blob of a compiled model."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.errors import EngineError, RuntimeMissingError
from deploy.runtime import Engine

ENGINE_FILE = "engine.blob"
DEVICE = "CPU"
TELEMETRY = "openvino_telemetry"
FLOATS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16", "int8": "f32", "int8_bf16": "bf16"}  # of what is not INT8


def version() -> str:
    """Return the release, "2026.4.1" without the build's number and branch."""
    return str(_import_openvino().__version__).split("-", maxsplit=1)[0]


def supports(precision: str) -> str | None:
    """Ask the device; where bf16 or fp16 is not native OpenVINO would quietly compute in fp32."""
    openvino = _import_openvino()
    kind = FLOATS[precision]
    if kind == "f32":
        return None
    capabilities = openvino.Core().get_property(DEVICE, "OPTIMIZATION_CAPABILITIES")
    name = kind.replace("f", "fp") if kind == "f16" else kind
    if name.upper() in capabilities:
        return None
    return f"this CPU has no native {name} (OpenVINO lists no {name.upper()} capability)"


def build(onnx_path: Path, engine_path: Path, *, precision: str, threads: int) -> dict[str, Any]:
    """Compile for latency and export the compiled model."""
    openvino = _import_openvino()
    options = _options(precision, threads=threads)
    try:
        compiled = openvino.Core().compile_model(str(onnx_path), DEVICE, options)
        blob = compiled.export_model()
    except RuntimeError as cause:
        msg = f"{onnx_path}: OpenVINO cannot compile it for {precision} ({_reason(cause)}); check the exported model"
        raise EngineError(msg) from cause
    engine_path.write_bytes(blob if isinstance(blob, bytes) else blob.getbuffer())
    return {"threads": threads, "device": DEVICE, **options}


def load(engine_path: Path, *, precision: str, threads: int) -> Engine:
    """Import the compiled model.

    The options are given again because the blob does not keep them: imported without them, an fp32 engine computes in
    bf16 on a CPU that has it.
    """
    openvino = _import_openvino()
    try:
        model = openvino.Core().import_model(engine_path.read_bytes(), DEVICE, _options(precision, threads=threads))
        return _Engine(openvino, model, name=str(engine_path))
    except (RuntimeError, OSError) as cause:
        remedy = "build it again with `dvc repro -f compile@<target>`"
        msg = f"{engine_path}: OpenVINO cannot load it ({_reason(cause)}); {remedy}"
        raise EngineError(msg) from cause


class _Engine:
    """One request with its own input tensor.

    Copying into a tensor that the request keeps is several times cheaper for a small model than handing it a new
    array with each query (`share_inputs`), which makes OpenVINO set up its input anew.
    """

    def __init__(self, openvino: Any, model: Any, *, name: str) -> None:
        self._name = name
        self._request = model.create_infer_request()
        self._tensor = openvino.Tensor(openvino.Type.f32, model.input(0).get_shape())
        self._request.set_input_tensor(self._tensor)
        self._input = self._tensor.data
        self._output = self._request.get_output_tensor(0)

    def __call__(self, image: NDArray[np.float32], /) -> NDArray[np.float32]:
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


def _options(precision: str, *, threads: int) -> dict[str, Any]:
    """Translate to OpenVINO's names; without a hint it computes fp32 and the float part of int8 in bf16."""
    options: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": FLOATS[precision],
        "NUM_STREAMS": 1,
    }
    return {**options, "INFERENCE_NUM_THREADS": threads} if threads else options


def _reason(cause: BaseException) -> str:
    """Return OpenVINO's own words: the lines before only say where in its sources the exception passed."""
    lines = [line.strip() for line in str(cause).splitlines() if line.strip()]
    said = [line for line in lines if not line.startswith(("Exception from", "Check '"))]
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
