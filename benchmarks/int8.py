"""How fast is the one INT8 file on this CPU, against other precisions, runtimes and OpenVINO's own way to INT8?

Every contestant is an engine as the product builds it, of one network at batch 1; all run interleaved in one process.
"native" is the same network converted and quantised without ONNX: openvino.convert_model, then nncf.quantize on that,
with the same settings. Weights are random and the images are noise: latency depends on neither. Command:
`python -m benchmarks.int8 vit_tiny_patch16_224` and `... vit_small_patch16_224`; 2 and 4 minutes on 2 cores.
"""

import argparse
import json
import os
import tempfile
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

os.environ.setdefault("NNCF_CI", "1")  # no telemetry

import nncf
import numpy as np
import onnx
import timm
import torch
from nncf.quantization.advanced_parameters import AdvancedQuantizationParameters, QuantizationParameters
from numpy.typing import NDArray

from benchmarks.interleaved import measure_interleaved
from deploy.measure.statistics import summarise
from deploy.runtime import Settings, Source
from deploy.runtimes import get_runtime
from pipeline.parts.bundle import save_onnx
from pipeline.steps.export import to_onnx
from pipeline.steps.quantize.int8 import Int8, to_int8

OPSET, CALIBRATION, CLASSES = 18, 16, 10
# name -> runtime, file, precision
CONTESTANTS = {
    "openvino fp32": ("openvino", "fp32/model.onnx", "fp32"),
    "openvino bf16": ("openvino", "fp32/model.onnx", "bf16"),
    "openvino int8": ("openvino", "int8/model.onnx", "int8"),
    "openvino int8_bf16": ("openvino", "int8/model.onnx", "int8_bf16"),
    "openvino int8_full": ("openvino", "int8_full/model.onnx", "int8"),
    "openvino int8_full_bf16": ("openvino", "int8_full/model.onnx", "int8_bf16"),
    "openvino int8_mlp_bf16": ("openvino", "int8_mlp/model.onnx", "int8_bf16"),
    "native fp32": ("openvino", "native_fp32.xml", "fp32"),
    "native bf16": ("openvino", "native_fp32.xml", "bf16"),
    "native int8": ("openvino", "native_int8.xml", "int8"),
    "native int8_bf16": ("openvino", "native_int8.xml", "int8_bf16"),
    "onnxruntime fp32": ("onnxruntime", "fp32/model.onnx", "fp32"),
    "onnxruntime int8": ("onnxruntime", "int8/model.onnx", "int8"),
    "onnxruntime int8_full": ("onnxruntime", "int8_full/model.onnx", "int8"),
}
EAGER = "torch eager"
PAIRS = (
    ("openvino int8", "native int8"),
    ("openvino int8_full", "native int8"),
    ("openvino int8_bf16", "native int8_bf16"),
    ("openvino int8_full_bf16", "native int8_bf16"),
    ("openvino int8_bf16", "openvino bf16"),
    ("onnxruntime int8", "onnxruntime fp32"),
)


def write_models(folder: Path, name: str, image: torch.Tensor, calibration: NDArray[np.float32]) -> torch.nn.Module:
    """Writes all files that engines are built from; returns the network."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES, img_size=image.shape[-1]).eval()
    exported = to_onnx(model, image, opset=OPSET)
    variants: dict[str, onnx.ModelProto] = {"fp32": exported}
    for variant, layers in (("int8", "linear"), ("int8_full", "full"), ("int8_mlp", "mlp")):
        how = Int8(layers=layers, smooth_quant=0.95, bias_correction="fast")  # type: ignore[arg-type]
        variants[variant] = to_int8(exported, how, images=calibration)
    for variant, network in variants.items():
        (folder / variant).mkdir()
        save_onnx(network, folder / variant)
    get_runtime("openvino").version()  # the first import, which it does without telemetry
    import openvino

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its tracing
        native = openvino.convert_model(model, example_input=image, input=list(image.shape))
    openvino.save_model(native, folder / "native_fp32.xml", compress_to_fp16=False)
    quantised = nncf.quantize(
        native,
        nncf.Dataset([each[None] for each in calibration]),
        preset=nncf.QuantizationPreset.PERFORMANCE,
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=len(calibration),
        advanced_parameters=AdvancedQuantizationParameters(
            activations_quantization_params=QuantizationParameters(per_channel=False)
        ),
    )
    openvino.save_model(quantised, folder / "native_int8.xml", compress_to_fp16=False)
    return model


def engines(folder: Path, image: NDArray[np.float32], threads: int) -> dict[str, Callable[[], object]]:
    """Builds and loads every engine that this CPU can run natively; tells of the others."""
    calls: dict[str, Callable[[], object]] = {}
    for number, (name, (runtime_name, file, precision)) in enumerate(CONTESTANTS.items()):
        runtime = get_runtime(runtime_name)
        options = {option: known.default for option, known in runtime.OPTIONS.items()}
        settings = Settings(precision=precision, threads=threads, options=options)
        reason = runtime.supports(settings)
        if reason:
            print(f"{name} is left out: {reason}")
            continue
        path = folder / f"{number}_{runtime.ENGINE_FILE}"
        runtime.build(Source(onnx=folder / file), path, settings)
        calls[name] = partial(runtime.load(path, settings).run, image)
    return calls


def main() -> None:
    """Prints one line per contestant and the ratios that matter; writes all samples where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="a vision transformer of timm, such as vit_tiny_patch16_224")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--threads", type=int, default=0, help="0: as many as each runtime likes")
    parser.add_argument("--queries", type=int, default=664)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--json", type=Path, help="file for all samples")
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    image = torch.randn(1, 3, args.size, args.size, generator=torch.Generator().manual_seed(0))
    calibration = np.random.default_rng(0).standard_normal((CALIBRATION, *image.shape[1:])).astype(np.float32)
    with tempfile.TemporaryDirectory() as folder:
        model = write_models(Path(folder), args.model, image, calibration)
        calls = engines(Path(folder), image.numpy(), args.threads)

        @torch.inference_mode()
        def eager() -> torch.Tensor:
            result: torch.Tensor = model(image)
            return result

        samples = measure_interleaved(
            calls | {EAGER: eager},
            queries=args.queries,
            seconds=args.seconds,
            warmup_seconds=0.5,
            seed=0,
        )
    found = {name: summarise(values) for name, values in samples.items()}
    print(f"{args.model}, {args.size} px, batch 1, {os.cpu_count()} cores, torch {torch.get_num_threads()} threads")
    print(f"{'contestant':<26} {'p50 ms':>8} {'95 % interval':>17} {'p90 ms':>8} {'of eager':>9}")
    for name, each in sorted(found.items(), key=lambda item: item[1]["p50"]):
        interval = f"{each['p50_low']:.2f} to {each['p50_high']:.2f}"
        print(
            f"{name:<26} {each['p50']:8.2f} {interval:>17} {each['p90']:8.2f} {found[EAGER]['p50'] / each['p50']:8.2f}x"
        )
    for one, other in PAIRS:
        if one in found and other in found:
            print(f"{one} takes {found[one]['p50'] / found[other]['p50']:.3f} of the time of {other}")
    if args.json:
        args.json.write_text(json.dumps({"arguments": vars(args) | {"json": None}, "nanoseconds": samples}))


if __name__ == "__main__":
    main()
