"""The rules of the layout: who may import whom, what DVC must know, how large a piece may be."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import grimp
import pytest
import yaml
from dvc.schema import COMPILED_MULTI_STAGE_SCHEMA

from pipeline.base import params as parameters

ROOT = Path(__file__).parents[2]
PACKAGES = ("pipeline", "stages", "deploy")
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
STAGES = {name: stage.get("do", stage) for name, stage in DVC.items()}
SOURCES = sorted(file for package in PACKAGES for file in (ROOT / package).rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
TEMPLATES = {".css", ".jinja"}


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph(*PACKAGES, cache_dir=None)


def source_of(module: str) -> Path:
    path = ROOT / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def expected_sources(graph, stage: str) -> set[str]:
    """Every non-empty file that importing `stages.<stage>` runs, with the templates that lie beside one."""
    modules = {f"stages.{stage}", *graph.find_upstream_modules(f"stages.{stage}")}
    runtimes = {module for module in graph.modules if module.startswith("deploy.runtimes.")}
    if "deploy.runtimes" in modules:  # which imports them by name: a stage of one target depends on that target's
        modules = modules.union(*map(graph.find_upstream_modules, runtimes)) - runtimes
    files = {source_of(module) for module in modules}
    files |= {parent / "__init__.py" for file in files for parent in file.parents if (parent / "__init__.py").is_file()}
    files |= {other for file in files for other in file.parent.iterdir() if other.suffix in TEMPLATES}
    found = {file.relative_to(ROOT).as_posix() for file in files if file.stat().st_size}
    if "deploy.runtimes" not in modules:
        return found
    if "deploy.remote.work" in modules:  # sends all of it to a device
        return {name for name in found if not name.startswith("deploy/")} | {"deploy"}
    if stage == "guard":  # asks all of them what their options are
        return found - {"deploy/runtimes/__init__.py"} | {"deploy/runtimes"}
    msg = f"stage {stage} imports runtimes: say here what it depends on"
    raise AssertionError(msg)


def test_the_import_rules_hold():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports; raise SystemExit(lint_imports())"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout


def test_dvc_can_read_its_file():
    COMPILED_MULTI_STAGE_SCHEMA(yaml.safe_load((ROOT / "dvc.yaml").read_text()))


@pytest.mark.parametrize("stage", STAGES)
def test_dvc_knows_every_source_file_that_a_stage_runs(graph, stage):
    listed = {d for d in STAGES[stage]["deps"] if d.split("/")[0] in PACKAGES}
    expected = expected_sources(graph, stage)
    assert listed == expected, f"dvc.yaml, {stage}: add {sorted(expected - listed)}, drop {sorted(listed - expected)}"


@pytest.mark.parametrize("stage", sorted(STAGES.keys() - {"guard"}))  # it reads the whole file, as a dependency
def test_dvc_knows_the_parameters_that_a_stage_reads(stage):
    reader = {"probe": "TargetStage", "compile": "TargetStage"}.get(stage, f"{stage.capitalize()}Stage")
    sections = set(getattr(parameters, reader).model_fields)
    assert {key.split(".")[0] for key in STAGES[stage]["params"]} == sections
    assert reader in source_of(f"stages.{stage}").read_text()


@pytest.mark.parametrize("stage", STAGES)
def test_every_stage_file_is_a_stage_and_keeps_its_last_good_output(stage):
    assert f"python -m stages.{stage}" in STAGES[stage]["cmd"]
    outputs = [*STAGES[stage].get("outs", []), *STAGES[stage].get("metrics", [])]
    assert outputs
    assert all(options["persist"] for output in outputs for options in output.values())


def test_there_is_no_stage_file_that_dvc_does_not_run():
    files = {file.stem for file in (ROOT / "stages").glob("*.py")} - {
        "__init__",
        "__main__",
        "boundary",
        "comparison",
        "devices",
        "targets",
    }
    assert files == set(STAGES)


@pytest.mark.parametrize("file", [*SOURCES, *TESTS], ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_or_function_is_too_long(file):
    text = file.read_text()
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            documented = ast.get_docstring(node) is not None
            body = node.body[1:] if documented else node.body
            size = body[-1].end_lineno - body[0].lineno + 1 if body else 0
            assert size <= 60, f"{node.name} has {size} lines"


def test_every_exception_handler_names_what_it_expects():
    for file in SOURCES:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ExceptHandler):
                caught = "" if node.type is None else ast.unparse(node.type)
                assert caught not in {"", "Exception", "BaseException"}, f"{file}:{node.lineno}"


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


@pytest.mark.parametrize("file", SOURCES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_no_file_that_is_read_can_run_code(file):
    tree = ast.parse(file.read_text())
    for name, call in calls(tree):
        options = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert name != "torch.load" or options.get("weights_only") == "True", f"{name}, line {call.lineno}"
        assert options.get("allow_pickle", "False") == "False", f"{name}, line {call.lineno}"
    for node in ast.walk(tree):
        # Under another name, a call would not be seen here.
        if isinstance(node, ast.ImportFrom):
            assert node.module != "pickle", f"line {node.lineno}"
            assert node.module != "torch" or "load" not in {alias.name for alias in node.names}, f"line {node.lineno}"
        if isinstance(node, ast.Import) and any(alias.name in {"pickle", "dill", "joblib"} for alias in node.names):
            assert file.relative_to(ROOT).as_posix() == "pipeline/parts/checkpoints.py", f"line {node.lineno}"
            assert all(alias.asname is None for alias in node.names)
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "pickle":
            assert node.attr == "UnpicklingError", f"line {node.lineno}"


PARTS_OF_BENCHMARKS = {"interleaved", "overhead", "references"}  # the others are commands


@pytest.mark.slow  # imports every library that is compared
@pytest.mark.parametrize("file", sorted((ROOT / "benchmarks").glob("*.py")), ids=lambda file: file.stem)
def test_every_benchmark_fits_the_library_it_measures(file):
    if "import peft" in file.read_text() or "from peft" in file.read_text():
        pytest.importorskip("peft")
    module = importlib.import_module(f"benchmarks.{file.stem}")
    assert (file.stem in PARTS_OF_BENCHMARKS) != callable(getattr(module, "main", None))
