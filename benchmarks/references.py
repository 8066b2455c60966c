"""What the measurement is compared with: OpenVINO's `benchmark_app`, and a plain loop around ONNX Runtime.

Each runs in a process of its own. Part of `benchmarks.harness`.
"""

import itertools
import json
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np

from deploy.bundle import Bundle
from deploy.data import load_split
from deploy.engine import Manifest, read_manifest
from deploy.measure.worker import PRELOADED
from deploy.preprocess import load_image
from deploy.runtimes import get_runtime

# Its import would send an event; and it prints its own parameters, not the script's.
BENCHMARK_APP = """
import sys
sys.modules["openvino_telemetry"] = None
from openvino.tools.benchmark.main import main
main()
"""
LOOP = """
import sys, time
import numpy, onnxruntime
file, image, threads, seconds = sys.argv[1], sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
options = onnxruntime.SessionOptions()
options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL  # the file is optimised
options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
feed, times = {session.get_inputs()[0].name: numpy.load(image)}, []
end = time.perf_counter_ns() + seconds * 1e9
while time.perf_counter_ns() < end:
    start = time.perf_counter_ns()
    session.run(None, feed)
    times.append(time.perf_counter_ns() - start)
print(numpy.median(times))
"""

CALL_NS = 500_000_000

Median = Callable[[], float]
"""Measures for one turn, and returns the median latency in nanoseconds."""


@dataclass(frozen=True, kw_only=True)
class Plant:
    """What the engines of one model and runtime are measured with.

    Attributes:
        model: its name in the table.
        spec: of the target.
        device: this machine's fingerprint.
        onnx: folder of the bundles.
        data: folder of the images.
        work: folder for engines, and for what the references read.
        seconds: of a turn.
    """

    model: str
    spec: Mapping[str, Any]
    device: Mapping[str, Any]
    onnx: Path
    data: Path
    work: Path
    seconds: float

    @property
    def runtime(self) -> str:
        """Its name."""
        return str(self.spec["runtime"])


def reference(plant: Plant, variant: str, bundle: Bundle) -> Median:
    """Prepares the runtime's own tool, on an image that the harness draws from too."""
    manifest = read_manifest(plant.work / variant)
    image = plant.work / f"{variant}.npy"
    np.save(image, load_image(load_split(plant.data, "test").items[0].path, bundle.preprocess)[None])
    if plant.runtime == "onnxruntime":
        engine = plant.work / variant / manifest.engine_file
        loop = [LOOP, str(engine), str(image), str(manifest.threads), str(plant.seconds)]
        return lambda: float(python(*loop, folder=plant.work))
    config = plant.work / f"{variant}.json"
    properties = {name: value for name, value in manifest.told.items() if name != "device"}
    config.write_text(json.dumps({manifest.told["device"]: properties}))
    app = [
        BENCHMARK_APP, "-m", str(bundle.onnx), "-d", manifest.told["device"], "-api", "sync", "-hint", "latency",
        "-load_config", str(config), "-ip", "f32", "-op", "f32", "-i", str(image),
    ]  # fmt: skip
    check_same_graph(plant.work / variant, manifest, app)
    return lambda: read_median(python(*app, "-t", str(round(plant.seconds)), folder=plant.work))


def call(plant: Plant, variant: str, bundle: Bundle) -> Median:
    """Prepares what measures how much longer a query of an OpenVINO engine takes than OpenVINO's own clock says."""
    manifest = read_manifest(plant.work / variant)
    engine: Any = get_runtime("openvino").load(plant.work / variant / manifest.engine_file, manifest.settings)
    items = load_split(plant.data, "test").items[:PRELOADED]
    images = itertools.cycle([load_image(item.path, bundle.preprocess)[None] for item in items])

    def measure() -> float:
        beside: list[float] = []
        end = time.perf_counter_ns() + CALL_NS
        while (start := time.perf_counter_ns()) < end:
            engine.run(next(images))
            beside.append(time.perf_counter_ns() - start - engine._request.latency * 1e6)
        return float(np.median(beside))

    return measure


def check_same_graph(folder: Path, manifest: Manifest, app: Sequence[str]) -> None:
    """Ends the program where `benchmark_app` compiles the ONNX file to something else than the engine."""
    theirs, ours = folder / "theirs.xml", folder / "ours.xml"
    python(*app, "-niter", "1", "-exec_graph_path", str(theirs), folder=folder)
    get_runtime("openvino").version()  # the first import, which it does without telemetry
    import openvino

    options = {name: value for name, value in manifest.told.items() if name != "device"}
    blob = (folder / manifest.engine_file).read_bytes()
    model = openvino.Core().import_model(blob, manifest.told["device"], options)
    openvino.serialize(model.get_runtime_model(), ours)
    one, other = read_graph(ours), read_graph(theirs)
    if one != other:
        sys.exit(f"{folder.name}: the engine has {sorted((one - other).elements())} that benchmark_app's model has not")
    say(f"{folder.name}: benchmark_app compiles the same {one.total()} layers, kernel by kernel")


def read_graph(file: Path) -> Counter[tuple[str, ...]]:
    """Counts a compiled graph's layers by type, kernel and precision."""
    keys = ("layerType", "primitiveType", "runtimePrecision")
    layers = ET.parse(file).getroot().iter("layer")
    told = ((layer.get("type", ""), layer.find("data")) for layer in layers)
    return Counter((kind, *("" if data is None else data.get(key, "") for key in keys)) for kind, data in told)


def read_median(report: str) -> float:
    """Reads the median latency, in nanoseconds, of what `benchmark_app` prints."""
    found = re.search(r"Median:\s+([\d.]+) (us|ms)", report)
    if found is None:
        sys.exit(f"benchmark_app: no median in what it printed, which ends {report[-200:]!r}")
    return float(found[1]) * {"us": 1e3, "ms": 1e6}[found[2]]


def python(code: str, *arguments: str, folder: Path) -> str:
    """Runs code in a process of its own, and returns what it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=folder, capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"a reference ended with code {done.returncode}: {(done.stdout + done.stderr)[-500:]}")
    return done.stdout


def say(line: str) -> None:
    """Tells of progress."""
    print(line, file=sys.stderr, flush=True)
