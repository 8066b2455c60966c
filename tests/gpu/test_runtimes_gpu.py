"""Every runtime on an NVIDIA GPU, in every precision: run with `pytest -m gpu`."""

import json
import subprocess
import sys

import pytest

from deploy.build import build_target
from deploy.device import fingerprint
from deploy.engine import read_manifest
from deploy.errors import EngineError, RuntimeMissingError
from deploy.nvidia import gpus
from deploy.runtimes import RUNTIMES, get_runtime
from deploy.target import read_target
from pipeline.parts.models import save_merged
from pipeline.steps.export import export
from pipeline.steps.quantize.int8 import Int8
from pipeline.steps.quantize.step import Recipe, quantize
from tests import tiny

# Runtimes import libraries that warn about their own internals.
pytestmark = [pytest.mark.gpu, pytest.mark.filterwarnings("default")]

ROWS = [
    *(("onnxruntime", {"provider": "cuda"}, precision) for precision in ("fp32", "fp16")),
    *(("onnxruntime", {"provider": "tensorrt"}, precision) for precision in ("fp32", "fp16", "int8", "int8_fp16")),
    *(("tensorrt", {}, precision) for precision in ("fp32", "fp16", "int8", "int8_fp16")),
    *(("torch_tensorrt", {}, precision) for precision in ("fp32", "fp16", "bf16")),
    *(("torch_tensorrt", {"cuda_graph": True}, precision) for precision in ("fp32", "fp16", "bf16")),
]
INT8 = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")
RECIPES = {"fp16": Recipe(int8=None), "int8": Recipe(int8=INT8), "int8_fp16": Recipe(int8=INT8, rest="fp16")}
# What a process does that has only the engine, its bundle and this package: the import of the host's code would fail.
FRESH = """
import json, sys
for name in ("pipeline", "stages", "timm"):
    sys.modules[name] = None
from pathlib import Path
from deploy.bundle import load_bundle
from deploy.device import fingerprint
from deploy.engine import load_engine
from deploy.golden import check_golden
from deploy.target import read_target

spec, engine, bundle = json.loads(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
target = read_target("gpu", spec)
loaded = load_engine(engine, device=fingerprint(target), target=target)
(precision,) = (variant.precision for variant in target.variants)
check = check_golden(loaded.engine, load_bundle(bundle), precision=precision)
print(json.dumps({"passed": check.passed, "relative_error": check.relative_error}))
"""


def available(runtime: str, options: dict, precision: str) -> tuple[dict, dict]:
    """Returns the target's section and the device's fingerprint, or skips with the reason."""
    if not gpus():
        pytest.skip("no NVIDIA GPU")
    if runtime not in RUNTIMES:
        pytest.skip(f"there is no runtime {runtime}")
    known = get_runtime(runtime).EXPORTED_AS
    if precision not in known:
        pytest.skip(f"{runtime} has no precision {precision}")
    spec = {
        "runtime": runtime,
        "options": options,
        "variants": {precision: {"onnx": known[precision], "precision": precision}},
    }
    target = read_target("gpu", spec)
    try:
        device = fingerprint(target)
        reason = get_runtime(runtime).supports(target.settings(precision))
    except RuntimeMissingError:
        pytest.skip(f"{runtime} is not installed")
    except EngineError as error:
        if "this build of ONNX Runtime has no" in str(error) or "cannot open shared object file" in str(error):
            pytest.skip(str(error))
        raise
    if reason:
        pytest.skip(reason)
    return spec, device


@pytest.fixture(scope="module")
def onnx_root(tmp_path_factory):
    """Bundles of one small student: fp32 with its program, fp16, int8, int8_fp16."""
    if not gpus():
        pytest.skip("no NVIDIA GPU")
    root = tmp_path_factory.mktemp("student")
    tiny.prepared(root / "data", tiny.write_images(root / "images"))
    (root / "merged").mkdir()
    labels = [f"class_{label}" for label in range(3)]
    save_merged(root / "merged", "student", tiny.model(tiny.STUDENT), labels=labels)
    (root / "params.yaml").write_text("seed: 0\n")
    (root / "onnx/fp32").mkdir(parents=True)
    export(
        root / "onnx/fp32",
        merged=root / "merged",
        data=root / "data",
        student=tiny.STUDENT,
        preprocess=vars(tiny.PREPROCESS),
        opset=18,
        tolerance=1e-4,
        golden_count=4,
        program=True,
        params=root / "params.yaml",
        load=tiny.LOAD,
    )
    for variant, recipe in RECIPES.items():
        (root / "onnx" / variant).mkdir()
        quantize(
            root / "onnx" / variant,
            variant=variant,
            recipe=recipe,
            exported=root / "onnx/fp32",
            data=root / "data",
            subset_size=6,
            max_drop=100.0,
            load=tiny.LOAD,
        )
    return root / "onnx"


@pytest.mark.parametrize(
    ("runtime", "options", "precision"),
    ROWS,
    ids=["-".join([runtime, *map(str, options.values()), precision]) for runtime, options, precision in ROWS],
)
def test_an_engine_is_built_placed_and_loaded_again(onnx_root, tmp_path, runtime, options, precision):
    spec, device = available(runtime, options, precision)
    exported = get_runtime(runtime).EXPORTED_AS[precision]
    lines = []
    build_target(  # compares the golden answers, and where the nodes run, too
        tmp_path, target="gpu", spec=spec, onnx_root=onnx_root, device=device, on_progress=lines.append
    )
    assert (tmp_path / precision).is_dir(), lines
    placement = read_manifest(tmp_path / precision).placement
    assert sum(placement["nodes"].values()) > 0
    assert placement["strays"]["count"] == 0, placement
    command = [sys.executable, "-c", FRESH, json.dumps(spec), str(tmp_path / precision), str(onnx_root / exported)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert json.loads(done.stdout.splitlines()[-1])["passed"], done.stdout
