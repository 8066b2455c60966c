"""Check the runtime `tensorrt` against the real TensorRT, without a GPU and without TensorRT: `make types`.

The wheels of TensorRT's Python bindings hold one compiled module. It imports on any x86-64 Linux once the three
libraries that it is linked with are there and export nine functions, so three empty ones are made with `cc`. From the
imported module pybind11-stubgen writes stubs with every class, method and argument of that release, and mypy checks our
calls against them, once for each release in `PACKAGES`.

    python tests/typing/tensorrt_stubs.py             # build what is missing in the cache, then check
    python tests/typing/tensorrt_stubs.py FILE.py     # check other files than the runtime

The stubs stay in `$XDG_CACHE_HOME` or `~/.cache`, under `slad-edge/tensorrt-stubs/<version>-<hash of this file>`.
"""

import argparse
import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).parents[2]
OURS = [ROOT / "deploy" / "runtimes" / "tensorrt.py", ROOT / "deploy" / "trt.py"]
PACKAGES = {"10.3.0": "tensorrt-cu12-bindings", "11.1.0.106": "tensorrt-cu13-bindings"}  # JetPack 6; the newest
LIBRARIES = ("nvinfer", "nvinfer_plugin", "nvonnxparser")
SYMBOLS = (
    "createInferBuilder_INTERNAL", "createInferRefitter_INTERNAL", "createInferRuntime_INTERNAL",
    "createNvOnnxParser_INTERNAL", "createNvOnnxParserRefitter_INTERNAL", "getBuilderPluginRegistry",
    "getPluginRegistry", "getNvOnnxParserVersion", "initLibNvInferPlugins",
)  # fmt: skip
# pybind11 does not note that a returned pointer may be null, which Python gets as None.
NULLABLE = {
    "Builder": ("build_serialized_network", "create_builder_config", "create_network"),
    "IBuilderConfig": ("create_timing_cache", "get_timing_cache"),
    "ICudaEngine": ("create_engine_inspector", "create_execution_context"),
    "ITimingCache": ("serialize",),
    "Runtime": ("deserialize_cuda_engine",),
}
# Python shows only from 3.12 on which classes can be read as bytes.
FIND_BUFFERS = """
import ctypes, tensorrt
for name, kind in vars(tensorrt.tensorrt).items():
    if isinstance(kind, type) and ctypes.pythonapi.PyObject_CheckBuffer(ctypes.py_object(kind.__new__(kind))):
        print(name)
"""


class StubsError(Exception):
    """The stubs cannot be made: shown as one line."""


def cached_stubs(version: str) -> Path:
    """Return the folder that holds the stubs of a release, for MYPYPATH; make it where it is missing.

    Raises:
        StubsError: a tool or the network is missing, or the stubs are not what this file can repair.
    """
    digest = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()[:12]
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "slad-edge" / "tensorrt-stubs"
    place = cache / f"{version}-{digest}"
    if not place.is_dir():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as folder:
            made = make_stubs(version, Path(folder))
            try:
                made.rename(place)
            except OSError:
                if not place.is_dir():  # another process was quicker where it is one
                    raise
    return place


def make_stubs(version: str, folder: Path) -> Path:
    """Download the bindings of a release into `folder`, and return the folder with their repaired stubs."""
    bindings = importable_bindings(version, folder)
    run([sys.executable, "-m", "pybind11_stubgen", "--print-invalid-expressions-as-is", "-o", "stubs", "tensorrt"],
        cwd=folder, path=bindings, remedy="run `make setup`, which installs pybind11-stubgen")  # fmt: skip
    buffers = run([sys.executable, "-c", FIND_BUFFERS], cwd=folder, path=bindings, remedy="check FIND_BUFFERS").split()
    for file in (folder / "stubs").rglob("*.pyi"):
        file.write_text(repair(file.read_text(), buffers))
    return folder / "stubs"


def importable_bindings(version: str, folder: Path) -> Path:
    """Download the bindings of a release into `folder`, and return the path from which `tensorrt` can be imported.

    No builder, parser or runtime can be made with it: the functions behind them return null.
    """
    package = PACKAGES[version]
    run([sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps",
         "--only-binary=:all:", "--dest", str(folder), f"{package}=={version}"],
        cwd=folder, remedy="needs the network, and a Python that the release has a wheel for")  # fmt: skip
    path = folder / "bindings"
    for wheel in folder.glob("*.whl"):
        zipfile.ZipFile(wheel).extractall(path)
    (path / "tensorrt_bindings").rename(path / "tensorrt")
    source = folder / "empty.c"
    source.write_text("".join(f"void *{name}(void) {{ return 0; }}\n" for name in SYMBOLS))
    if shutil.which("cc") is None:
        msg = "no C compiler `cc` on the PATH, which makes three empty libraries; install one, such as the package gcc"
        raise StubsError(msg)
    for library in LIBRARIES:
        name = f"lib{library}.so.{version.partition('.')[0]}"
        # Beside the module, where its own search path looks first.
        run(["cc", "-shared", "-fPIC", f"-Wl,-soname,{name}", "-o", str(path / "tensorrt" / name), str(source)],
            cwd=folder, remedy="check the compiler")  # fmt: skip
    return path


def repair(text: str, buffers: list[str]) -> str:
    """Make a stub valid: C++ names, values of enumerations, Python's keywords, and types that stubgen cannot see.

    Args:
        text: as pybind11-stubgen wrote it.
        buffers: classes that can be read as bytes.

    Raises:
        StubsError: a line is still not Python.
    """
    classes = set(re.findall(r"^class (\w+)", text, re.MULTILINE))
    text = re.sub(r"<\w+\.\w+: -?\d+>", "...", text)
    text = re.sub(r"(?:\w+::)+(\w+)(?:<[\w:, ]*>)?", lambda found: _python_name(found[1], classes), text)
    text = re.sub(r"(: |-> )capsule\b", r"\1typing.Any", text)
    try:
        tree = ast.parse("\n".join(_repair_line(line) for line in text.splitlines()))
    except SyntaxError as cause:
        msg = f"stubgen wrote what this file cannot repair: {cause.text!r} ({cause.msg})"
        raise StubsError(msg) from cause
    _Types().visit(tree)
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name in buffers:
            node.body.append(ast.parse("def __buffer__(self, flags: int, /) -> memoryview: ...").body[0])
    future = 1 if text.startswith("from __future__") else 0
    tree.body.insert(future, ast.Import([ast.alias("builtins")]))
    # What remains is bad manners of an overload or an `__eq__`, and none of ours.
    return "# mypy: ignore-errors\n" + ast.unparse(ast.fix_missing_locations(tree)) + "\n"


def _python_name(name: str, classes: set[str]) -> str:
    """Return the bound class of a C++ one: `IParserError` is bound as `ParserError`, and some are not bound at all."""
    return next((known for known in (name, name.removeprefix("I")) if known in classes), "typing.Any")


def _repair_line(line: str) -> str:
    """Rename arguments called `in`, and drop defaults that stand before an argument without one."""
    if not line.lstrip().startswith("def "):
        return line
    line = re.sub(r"\bin: ", "in_: ", line)
    try:
        ast.parse(line.strip().removesuffix("...") + " ...")
    except SyntaxError:
        line = re.sub(r" = [\w.]+(?=[,)])", "", line)
    return line


class _Types(ast.NodeTransformer):
    """Say what stubgen cannot see: null pointers, and that `bool` in a type is not TensorRT's own `bool`."""

    def __init__(self) -> None:
        self.nullable: tuple[str, ...] = ()

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        outer, self.nullable = self.nullable, NULLABLE.get(node.name, ())
        self.generic_visit(node)
        self.nullable = outer
        return node

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs):
            argument.annotation = self._type(argument.annotation)
        node.returns = self._type(node.returns)
        if node.name in self.nullable and node.returns is not None:
            node.returns = ast.BinOp(node.returns, ast.BitOr(), ast.Constant(None))
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = self._type(node.annotation) or node.annotation
        return node

    @staticmethod
    def _type(annotation: ast.expr | None) -> ast.expr | None:
        for part in ast.walk(annotation) if annotation else ():
            if isinstance(part, ast.Name) and part.id == "bool":
                part.id = "builtins.bool"
        return annotation


def run(command: list[str], *, cwd: Path, remedy: str, path: Path | None = None) -> str:
    """Run a command that finds Python modules in `path` and its own, and return what it prints.

    Raises:
        StubsError: it failed, with its last line and what to do.
    """
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PYTHON")}
    if path is not None:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        msg = f"`{' '.join(command[:4])} ...` failed: {words}; {remedy}"
        raise StubsError(msg)
    return done.stdout


def check(files: list[Path], version: str) -> subprocess.CompletedProcess[str]:
    """Run mypy on files against one release, as strict as in `make lint`, in the device's oldest Python.

    mypy reports on these files alone: what it follows is checked by `make lint`.
    """
    stubs = cached_stubs(version)
    command = [
        sys.executable, "-m", "mypy", "--strict", "--warn-unreachable", "--python-version=3.10", "--config-file=",
        "--follow-imports=silent", f"--cache-dir={stubs.parent / 'mypy' / stubs.name}", *map(str, files),
    ]  # fmt: skip
    environment = {**os.environ, "MYPYPATH": f"{stubs}{os.pathsep}{ROOT}"}
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def main() -> int:
    """Check the files of the command line, or the runtime; return 0 where every release accepts them."""
    parser = argparse.ArgumentParser(description="Check files against the types of every release of TensorRT.")
    parser.add_argument("files", type=Path, nargs="*", default=OURS, help="default: all that calls TensorRT")
    files = [file.resolve() for file in parser.parse_args().files]
    worst = 0
    for version in PACKAGES:
        try:
            done = check(files, version)
        except StubsError as error:
            print(f"error: TensorRT {version}: {error}", file=sys.stderr)  # noqa: T201 - a command's own words
            return 1
        names = ", ".join(
            file.relative_to(ROOT).as_posix() if file.is_relative_to(ROOT) else str(file) for file in files
        )
        print(f"TensorRT {version}: {names}: {(done.stdout + done.stderr).strip()}")  # noqa: T201
        worst = max(worst, done.returncode)
    return worst


if __name__ == "__main__":
    sys.exit(main())
