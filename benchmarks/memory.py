"""What does the device package cost beside the bare runtime? Memory of a loaded engine, and the time of `--help`.

Each engine is loaded in fresh processes, alternately by the device package, with all checks of `deploy run`,
and by the runtime's own calls with the same options; after one run each process reads its memory (Linux: PSS, RSS, and
the peak of RSS). Goals: at most 1.2 times the bare runtime's memory, and `--help` within 0.3 s.

Command: `python -m benchmarks.memory` for the engines of the last `slad repro`, or with `--model vit_small_patch16_224`
for engines of that network with random weights; 1 and 2 minutes on 2 cores.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Nothing else stands here: the processes that are measured run this file too, and import what they measure.

MEMORY_GOAL, HELP_GOAL_S = 1.2, 0.3
WAYS = ("bare", "package")
KINDS = {"pss": ("smaps_rollup", "Pss"), "rss": ("smaps_rollup", "Rss"), "peak": ("status", "VmHWM")}
PRECISIONS = ("fp32", "bf16", "int8", "int8_bf16")  # of the engines that --model makes, where the CPU has them
OPSET, CLASSES, CALIBRATION = 18, 10, 16


def package(bundle: Path, engine: Path) -> object:
    """Loads an engine by the device package, and runs it on a picture."""
    from PIL import Image

    from deploy.engine import open_engine
    from deploy.preprocess import prepare_image

    model, opened = open_engine(bundle, engine)
    opened.engine.run(prepare_image(Image.new("RGB", (64, 64)), model.preprocess)[None])
    return opened


def bare(bundle: Path, engine: Path) -> object:
    """Loads the same file by the runtime's own calls, with what the manifest says that it was told, and runs it."""
    import numpy as np

    manifest = json.loads((engine / "manifest.json").read_text())
    shape = json.loads((bundle / "bundle.json").read_text())["input"]["shape"]
    file, told, image = engine / manifest["engine"]["file"], manifest["told"], np.zeros(shape, np.float32)
    if manifest["runtime"] == "openvino":
        import openvino

        device = told.pop("device")
        request = openvino.Core().import_model(file.read_bytes(), device, told).create_infer_request()
        request.infer([image])
        return request
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads, options.inter_op_num_threads = manifest["threads"], 1
    session = onnxruntime.InferenceSession(str(file), options, providers=[told["provider"]])
    session.run(None, {session.get_inputs()[0].name: image})
    return session


def memory() -> dict[str, float]:
    """Reads this process's memory, in megabytes of 10^6 bytes."""
    found = {}
    for kind, (file, key) in KINDS.items():
        lines = Path("/proc/self", file).read_text()
        found[kind] = int(re.findall(rf"^{key}:\s*(\d+) kB", lines, re.MULTILINE)[0]) * 1024 / 1e6
    return found


def measured(way: str, bundle: Path, engine: Path) -> dict[str, float]:
    """Loads and runs one engine in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.memory", "--child", way, str(bundle), str(engine)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def seconds(*arguments: str) -> float:
    """Times one start of Python."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def build(folder: Path, name: str) -> tuple[Path, list[Path]]:
    """Makes bundles of a network with random weights, and its engines; returns the folders of both."""
    import numpy as np
    import timm
    import torch

    from deploy.build import build_target
    from deploy.device import fingerprint
    from deploy.runtimes import get_runtime
    from deploy.target import read_target
    from pipeline.parts.bundle import BundleInfo, save_onnx, write_bundle
    from pipeline.steps.export import to_onnx
    from pipeline.steps.quantize.int8 import Int8, to_int8

    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    side = model.pretrained_cfg["input_size"][1]
    images = np.random.default_rng(0).standard_normal((CALIBRATION, 3, side, side)).astype(np.float32)
    exported = to_onnx(model, torch.from_numpy(images[:1]), opset=OPSET)
    how = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")
    resized: dict[str, Any] = {"resize": side, "resize_mode": "squash", "crop": [side, side], "color": "RGB"}
    resized |= {"interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.5] * 3}
    for precision, network in (("fp32", exported), ("int8", to_int8(exported, how, images=images))):
        bundle = folder / "onnx" / precision
        bundle.mkdir(parents=True)
        save_onnx(network, bundle)
        labels = [str(number) for number in range(CLASSES)]
        info = BundleInfo(
            name=name, variant=precision, precision=precision, preprocess=resized, labels=labels, lineage={}
        )
        write_bundle(bundle, info, golden=images[:1])
    engines = []
    for runtime in ("onnxruntime", "openvino"):
        known = [precision for precision in PRECISIONS if precision in get_runtime(runtime).EXPORTED_AS]
        variants = {each: {"onnx": get_runtime(runtime).EXPORTED_AS[each], "precision": each} for each in known}
        spec = {"runtime": runtime, "variants": variants}
        target, output = f"cpu-{runtime}", folder / f"cpu-{runtime}"
        device = fingerprint(read_target(target, spec))
        build_target(output, target=target, spec=spec, onnx_root=folder / "onnx", device=device, on_progress=print)
        engines.append(output)
    return folder / "onnx", engines


def compare(onnx: Path, folders: Sequence[Path], repeats: int) -> dict[str, dict[str, list[dict[str, float]]]]:
    """Measures every engine both ways, `repeats` times in turn; returns the samples by engine and way."""
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    manifests = sorted(file for folder in folders for file in folder.glob("*/manifest.json"))
    if not manifests:
        sys.exit(f"no engine in {', '.join(map(str, folders)) or 'artifacts/compiled'}; build them with `slad repro`")
    for repeat in range(repeats + 1):
        for file in manifests:
            bundle = onnx / json.loads(file.read_text())["bundle_variant"]
            for way in WAYS if repeat % 2 else reversed(WAYS):
                sample = measured(way, bundle, file.parent)
                if repeat:  # the first only brings the files into the system's cache
                    name = f"{file.parent.parent.name}/{file.parent.name}"
                    found.setdefault(name, {each: [] for each in WAYS})[way].append(sample)
    return found


def show(samples: dict[str, dict[str, list[dict[str, float]]]], times: dict[str, list[float]]) -> None:
    """Prints medians, ratios, and whether the goals are met."""
    print(f"{'engine':<28} {'':>4} {'bare MB':>8} {'ours MB':>8} {'ratio':>6}")
    worst = 0.0
    for name, ways in samples.items():
        for kind in KINDS:
            alone, ours = (statistics.median(sample[kind] for sample in ways[way]) for way in WAYS)
            worst = max(worst, ours / alone)
            print(f"{name:<28} {kind:>4} {alone:8.1f} {ours:8.1f} {ours / alone:6.3f}")
    print(f"largest ratio {worst:.3f}, goal {MEMORY_GOAL}: {'met' if worst <= MEMORY_GOAL else 'missed'}")
    nothing, shown = (statistics.median(times[key]) for key in ("python -c pass", "python -m deploy --help"))
    print(
        f"python -m deploy --help {shown:.3f} s, python -c pass {nothing:.3f} s, goal {HELP_GOAL_S} s: "
        f"{'met' if shown <= HELP_GOAL_S else 'missed'}"
    )


def main() -> None:
    """Prints one line per engine and kind of memory; writes all samples where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engines", type=Path, nargs="*", help="folders of engines; default: artifacts/compiled/cpu-*")
    parser.add_argument("--onnx", type=Path, default=Path("artifacts/onnx"), help="folder of their bundles")
    parser.add_argument("--model", help="a vision transformer of timm to make engines of instead")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path, help="file for all samples")
    parser.add_argument("--child", nargs=3, metavar=("WAY", "BUNDLE", "ENGINE"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        way, bundle, engine = args.child
        held = {"package": package, "bare": bare}[way](Path(bundle), Path(engine))
        print(json.dumps(memory()))
        del held  # it had to live until here
        return
    with tempfile.TemporaryDirectory() as folder:
        onnx, engines = args.onnx, args.engines or sorted(Path("artifacts/compiled").glob("cpu-*"))
        if args.model:
            onnx, engines = build(Path(folder), args.model)
        samples = compare(onnx, engines, args.repeats)
    starts = {"python -c pass": ("-c", "pass"), "python -m deploy --help": ("-m", "deploy", "--help")}
    times: dict[str, list[float]] = {name: [] for name in starts}
    for _ in range(3 * args.repeats):
        for name, arguments in starts.items():
            times[name].append(seconds(*arguments))
    show(samples, times)
    if args.json:
        args.json.write_text(json.dumps({"megabytes": samples, "seconds": times}))


if __name__ == "__main__":
    main()
