import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from deploy import isolated as module
from deploy.errors import BundleError, EngineError, RuntimeMissingError
from deploy.isolated import build_isolated
from deploy.runtime import Settings, Source
from deploy.runtimes import get_runtime
from deploy.target import read_options
from tests.unit.deploy.conftest import listing, save_model


def settings_of(runtime):
    return Settings(precision="fp32", threads=1, options=read_options(runtime, {}, place="options"))


@pytest.fixture
def build(plant, tmp_path):
    def run(runtime="onnxruntime", *, limit_s=60.0, on_wait=lambda seconds: None):
        path = tmp_path / get_runtime(runtime).ENGINE_FILE
        bundle = plant.onnx_root / "fp32"
        return path, build_isolated(runtime, bundle, path, settings_of(runtime), limit_s=limit_s, on_wait=on_wait)

    return run


@pytest.fixture
def child(monkeypatch, tmp_path):
    """Puts a program of the test's own in the place of the child."""

    def replace(code):
        python = tmp_path / "python"
        (tmp_path / "child.py").write_text(code)
        python.write_text(f"#!/bin/sh\nexec {sys.executable} {tmp_path / 'child.py'}\n")
        python.chmod(0o755)
        monkeypatch.setattr(module.sys, "executable", str(python))

    return replace


def test_engine_of_a_child_is_the_runtimes_own(build, runtime, plant, tmp_path):
    path, built = build(runtime)
    own = tmp_path / "own"
    source = Source(onnx=plant.onnx_root / "fp32" / "model.onnx")
    assert built.told == get_runtime(runtime).build(source, own, settings_of(runtime))
    assert built.golden.passed
    assert built.placement == get_runtime(runtime).load(own, settings_of(runtime)).placement()
    assert 0 < built.seconds < 60
    image = np.ones((1, 3, 16, 16), np.float32)
    engines = [get_runtime(runtime).load(file, settings_of(runtime)) for file in (path, own)]
    np.testing.assert_array_equal(*(engine.run(image) for engine in engines))


def test_error_of_a_child_is_raised_here(build, plant, edit):
    content = b"junk"
    (plant.onnx_root / "fp32" / "model.onnx").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.onnx"):
        build()
    digest = hashlib.sha256(content).hexdigest()
    files = json.loads((plant.onnx_root / "fp32" / "bundle.json").read_text())["files"]
    edit(plant.onnx_root / "fp32" / "bundle.json", files=files | {"model.onnx": {"sha256": digest, "bytes": 4}})
    with pytest.raises(EngineError, match=r"model\.onnx: ONNX Runtime cannot build it for fp32"):
        build()


def test_engine_that_cannot_be_written(build, plant, tmp_path):
    path = tmp_path / "none" / "engine.blob"
    with pytest.raises(EngineError, match=r"engine\.blob: cannot be written or read .*No such file.*; check"):
        build_isolated("openvino", plant.onnx_root / "fp32", path, settings_of("openvino"), limit_s=60, on_wait=print)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("import os; os.kill(os.getpid(), 9)", "the build was killed, most often because memory ran out, .* were free"),
        ("import os; os.kill(os.getpid(), 11)", "the process of the build was ended by SIGSEGV; check the model, and"),
        (
            "import sys; sys.exit('terminate: std::bad_alloc')",
            "not enough memory for the build, .* were free; end",
        ),
        (
            "import sys; sys.exit('libfoo.so is missing')",
            r"ended with code 1 \(libfoo.so is missing\); .*doctor`",
        ),
        ('print(\'{"kind": "EngineError", "error": "GPU out of memory; lower it"}\')', "^GPU out of memory; lower it$"),
    ],
)
def test_death_of_a_child_is_one_line(build, child, code, message):
    child(code)
    with pytest.raises(EngineError, match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


def test_child_without_the_runtime(build, child):
    child('print(\'{"kind": "RuntimeMissingError", "error": "not installed"}\')')
    with pytest.raises(RuntimeMissingError, match="not installed"):
        build()


def test_time_limit_ends_the_child_and_waiting_is_told(build, child, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.05)
    child(f"import os, time\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\ntime.sleep(600)")
    waited = []
    with pytest.raises(EngineError, match=r"the build was ended after 1 s; raise `build_limit_s`"):
        build(limit_s=1.0, on_wait=waited.append)
    assert len(waited) >= 2
    assert waited == sorted(waited)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


SMALL = """
import resource, sys
from deploy.isolated import build_isolated
from deploy.errors import EngineError
from deploy.runtime import Settings, Source
from deploy.target import read_options
from pathlib import Path
runtime, model, path = sys.argv[1:]
settings = Settings(precision="fp32", threads=1, options=read_options(runtime, {}, place="options"))
resource.setrlimit(resource.RLIMIT_AS, (int(1.2e9), int(1.2e9)))
try:
    build_isolated(runtime, Path(model), Path(path), settings, limit_s=60, on_wait=lambda seconds: None)
except EngineError as error:
    print(error)
"""


def save_hungry(path):
    """Saves a small model whose constants take 1 GB when they are folded."""
    nodes = [
        helper.make_node("ConstantOfShape", ["size"], ["zeros"]),
        helper.make_node("ReduceSum", ["zeros"], ["sum"], keepdims=0),
        helper.make_node("GlobalAveragePool", ["image"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc"], ["scores"]),
        helper.make_node("Add", ["scores", "sum"], ["logits"]),
    ]
    save_model(path, nodes, {"size": np.array([250_000_000], np.int64), "fc": np.ones((3, 4), np.float32)})


@pytest.mark.skipif(sys.platform != "linux", reason="address space is limited by Linux's own call")
def test_no_memory_for_the_build(runtime, plant, edit, tmp_path):
    bundle = plant.onnx_root / "fp32"
    save_hungry(bundle / "model.onnx")
    edit(bundle / "bundle.json", files=listing(bundle, "model.onnx", "golden.npz"))
    arguments = [runtime, str(bundle), str(tmp_path / "e")]
    done = subprocess.run([sys.executable, "-c", SMALL, *arguments], capture_output=True, text=True, check=True)
    assert done.stdout.startswith(f"{bundle}: {runtime} in fp32: not enough memory for the build, ")
    assert done.stdout.endswith(" MB were free; end other programs, add swap, or take a smaller model\n")
    assert done.stdout.count("\n") == 1


# A child as `deploy.child` starts it, whose entry writes its number to the file that stands for its name, and waits.
LINGERING = """
import os, sys, time
sys.path[:] = sys.argv[3:]
import importlib
from deploy.child import begin
def wait():
    with open(sys.argv[1], "w") as file:
        file.write(str(os.getpid()))
    time.sleep(600)
importlib.import_module = lambda name: type("Entry", (), {"main": staticmethod(wait)})
begin(sys.argv[1], sys.argv[2])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a parent's death is told by Linux's own call")
def test_child_does_not_outlive_its_parent(tmp_path):
    parent = (
        "import subprocess\n"
        "from deploy import child\n"
        f"child.CODE = {LINGERING!r}\n"
        f"child.start({str(tmp_path / 'pid')!r}).wait()\n"
    )
    process = subprocess.Popen([sys.executable, "-c", parent], cwd=Path(__file__).parents[3])
    deadline = time.monotonic() + 60
    while not ((tmp_path / "pid").exists() and (tmp_path / "pid").read_text()) and time.monotonic() < deadline:
        time.sleep(0.05)
    pid = int((tmp_path / "pid").read_text())
    process.send_signal(signal.SIGKILL)
    process.wait()
    while Path(f"/proc/{pid}/stat").exists() and time.monotonic() < deadline:
        if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
            break
        time.sleep(0.05)
    else:
        assert not Path(f"/proc/{pid}/stat").exists()
