"""TensorRT's own types judge the runtime and the fake that its tests run on; CUDA's own functions judge theirs.

Neither needs a GPU. What the calls do is not tested here: see tests/unit/deploy/test_tensorrt.py.
"""

import ast
import importlib.util
import inspect
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.deploy import fake_cuda, fake_tensorrt

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("tensorrt_stubs", Path(__file__).with_name("tensorrt_stubs.py"))
stubs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(stubs)
FAKE = Path(fake_tensorrt.__file__)
NO_DRIVER = """
import sys
sys.path.insert(0, sys.argv[1])
from deploy.errors import EngineError
from deploy.runtimes import tensorrt
from deploy.trt import Said
assert tensorrt.version() == sys.argv[2], tensorrt.version()
try:
    tensorrt._builder(Said())
except EngineError as error:
    print(error)
"""


def interface(text: str) -> dict[str, dict[str, list[tuple[list[str], int]]]]:
    """Return by class its methods, each overload with its arguments and how many are required, and other names."""
    found = {}
    for node in ast.parse(text).body:
        if isinstance(node, ast.ClassDef):
            found[node.name] = names = {}
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    overloads = names.setdefault(part.name, [])
                    if not any("property" in ast.unparse(mark) for mark in part.decorator_list):
                        arguments = [argument.arg for argument in part.args.args]
                        overloads.append((arguments, len(arguments) - len(part.args.defaults)))
                elif isinstance(part, ast.ClassDef):
                    names[part.name] = []
                for target in getattr(part, "targets", [getattr(part, "target", None)]):
                    if isinstance(target, ast.Name):
                        names[target.id] = []
    return found


@pytest.mark.slow
@pytest.mark.parametrize("version", stubs.PACKAGES)
class TestTypes:
    def test_the_runtime_calls_what_there_is(self, version):
        done = stubs.check(stubs.OURS, version)
        assert done.returncode == 0, done.stdout

    @pytest.mark.parametrize(
        ("file", "right", "wrong"),
        [
            ("runtimes/tensorrt.py", "config.set_memory_pool_limit(", "config.set_memory_pool_limits("),
            ("runtimes/tensorrt.py", "trt.BuilderFlag.TF32", "trt.BuilderFlag.FP64"),
            ("runtimes/tensorrt.py", "get_tensor_dtype(name)", "get_tensor_dtype(0)"),
            ("runtimes/tensorrt.py", "        if engine is None:", "        if engine == 0:"),
            ("trt.py", "ignore_mismatch=", "ignore_mismatches="),
        ],
    )
    def test_the_check_can_fail(self, version, file, right, wrong, tmp_path):
        text = (ROOT / "deploy" / file).read_text()
        assert right in text
        copy = tmp_path / "misspelt.py"
        copy.write_text(text.replace(right, wrong))
        done = stubs.check([copy], version)
        assert done.returncode == 1
        assert "misspelt.py:" in done.stdout

    def test_the_fake_is_as_tensorrt_is(self, version):
        real = interface((stubs.cached_stubs(version) / "tensorrt" / "tensorrt.pyi").read_text())
        fake = {kind: names for kind, names in interface(FAKE.read_text()).items() if kind not in {"Enum", "State"}}
        assert sum(len(names) for names in fake.values()) > 60
        for kind, names in fake.items():
            for name, overloads in names.items():
                if name.startswith("_") and (name != "__init__" or name not in real[kind]):
                    continue  # the fake's own; most of TensorRT's classes cannot be made by hand
                assert name in real[kind], f"{kind}.{name}"
                for arguments, _ in overloads:
                    count = len(arguments)
                    assert any(known[:count] == arguments and needed <= count for known, needed in real[kind][name]), (
                        f"{kind}.{name}: {arguments}, not {real[kind][name]}"
                    )
        for name in fake_tensorrt.ONLY_10:
            assert (name in real["Builder"]) == version.startswith("10")
        for kind, methods in stubs.NULLABLE.items():
            assert set(methods) <= set(real[kind])

    def test_the_real_bindings_cannot_make_a_builder_here(self, version, tmp_path):
        """The libraries behind them return null, as TensorRT's own do where there is no driver."""
        path = stubs.importable_bindings(version, tmp_path)
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        command = [sys.executable, "-c", NO_DRIVER, str(path), version]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"TensorRT {version} cannot make a builder: it did not say why; check the GPU's")


@pytest.mark.slow
def test_a_missing_compiler_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(stubs.shutil, "which", lambda _: None)
    monkeypatch.setattr(sys, "argv", ["tensorrt_stubs.py"])
    assert stubs.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("error: TensorRT 10.3.0: no C compiler `cc` on the PATH")
    assert error.count("\n") == 1
    assert not list(tmp_path.rglob("*.pyi"))


def test_a_missing_network_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    with pytest.raises(stubs.StubsError, match=r"pip download .* failed: .*; needs the network") as caught:
        stubs.importable_bindings("10.3.0", tmp_path)
    assert "\n" not in str(caught.value)


def test_stubs_are_repaired():
    text = (
        "from __future__ import annotations\nimport typing\n"
        "class ParserError:\n    pass\n"
        "class Builder:\n"
        "    flag: bool\n"
        "    def build_serialized_network(self, in: int, kind: Kind = <Kind.A: -1>) -> IHostMemory: ...\n"
        "    def scale(self, a: Weights = None, *, b: Weights = None, c: int) -> bool: ...\n"
        "    def odd(self, a: Weights = None, b: int) -> nvonnxparser::IParserError: ...\n"
        "    def lost(self, a: capsule) -> detail::accessor<detail::policies::attr>: ...\n"
        "bool: int = 1\n"
    )
    done = stubs.repair(text, ["Builder"])
    ast.parse(done)
    for line in (
        "    flag: builtins.bool",
        "def build_serialized_network(self, in_: int, kind: Kind=...) -> IHostMemory | None:",
        "def scale(self, a: Weights=None, *, b: Weights=None, c: int) -> builtins.bool:",
        "def odd(self, a: Weights, b: int) -> ParserError:",
        "def lost(self, a: typing.Any) -> typing.Any:",
        "def __buffer__(self, flags: int, /) -> memoryview:",
    ):
        assert line in done, done
    with pytest.raises(stubs.StubsError, match="stubgen wrote what this file cannot repair: 'class 1"):
        stubs.repair("class 1:\n", [])


def test_cuda_is_as_its_fake_is():
    real = pytest.importorskip("cuda.bindings.runtime")
    for name, value in vars(fake_cuda).items():
        if not name.startswith("cuda"):
            continue
        actual = getattr(real, name)
        if inspect.isfunction(value):
            assert list(inspect.signature(actual).parameters) == list(inspect.signature(value).parameters), name
        elif inspect.isclass(value):
            assert {member.name: int(getattr(actual, member.name)) for member in value} == {
                member.name: int(member) for member in value
            }
        else:
            assert int(actual) == value, name


def test_cudas_own_error_is_one_line_without_a_driver():
    from deploy import cuda
    from deploy.errors import EngineError

    runtime = pytest.importorskip("cuda.bindings.runtime")
    code, _ = runtime.cudaGetDeviceCount()
    if int(code) == 0:
        pytest.skip("there is a GPU here")
    assert cuda.import_cudart() is runtime
    lane = {"device": 0, "input_shape": (1, 3, 4, 4), "output_shape": (1, 2), "enqueue": print}
    for call in (cuda.gpu_count, lambda: cuda.use_gpu(0), lambda: cuda.Lane(**lane)):
        with pytest.raises(
            EngineError, match=rf"CUDA cannot .*: {code.name} \({int(code)}, .*\); check driver"
        ) as caught:
            call()
        assert "\n" not in str(caught.value)
