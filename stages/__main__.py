"""The command `slad`: composes parameters and runs the pipeline."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Annotated

try:
    import typer
except ModuleNotFoundError:
    sys.stderr.write("error: `slad` needs the host's packages; run `pip install 'slad-edge[host]'`\n")
    sys.exit(8)

from stages.boundary import DEBUG, run

CONFIGS = Path("configs")
PARAMS = Path("params.yaml")
SUMMARY = Path("reports/summary.json")
OVERRIDES = typer.Argument(help="Changes on top of configs/, such as `student=vit_small distill.rank=32`.")
IMAGES = typer.Option(
    "--images", help="Your images: one subfolder per class, or train, val and test with such subfolders."
)
MODEL = typer.Argument(help="An ONNX file; a bundle.json beside it says its precision.")
TARGET = typer.Option(
    "--target",
    help="tensorrt10, tensorrt11, openvino or onnxruntime; may be repeated, or several with commas; default: all.",
)
PRECISION = typer.Option("--precision", help="What the file claims to be: int8, int8_fp16, fp16 or fp32.")
TARGETS = typer.Option("--target", help="May be repeated; default: all targets of params.yaml.")
SECTION = typer.Argument(help="A target of params.yaml, or a file of configs/target/.", metavar="TARGET")
JSON = typer.Option("--json", help="Print JSON.")
RESET = typer.Option("--reset", help="Forget the overrides recorded in params.yaml.")

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def cli(
    *, debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of expected errors too.")] = False
) -> None:
    """From a folder of images to a measured, compiled model on an edge device."""
    if debug:
        os.environ[DEBUG] = "1"


@app.command()
def sync(
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    *,
    images: Annotated[Path | None, IMAGES] = None,
    reset: Annotated[bool, RESET] = False,
) -> None:
    """Compose configs/ and the overrides into params.yaml; recorded overrides stay unless --reset."""
    run(lambda: _sync([*_own(images), *(overrides or [])], reset=reset))


@app.command()
def repro(
    overrides: Annotated[list[str] | None, OVERRIDES] = None,
    *,
    images: Annotated[Path | None, IMAGES] = None,
    reset: Annotated[bool, RESET] = False,
) -> None:
    """Compose params.yaml, run whatever is out of date (`dvc repro`), and print the results."""
    run(lambda: _sync([*_own(images), *(overrides or [])], reset=reset, try_devices=True))
    # DVC and the stages it starts must come from the environment that this command runs in.
    scripts = Path(sys.executable).parent
    path = os.pathsep.join([str(scripts), os.environ.get("PATH", "")])
    done = subprocess.run([str(scripts / "dvc"), "repro"], env=os.environ | {"PATH": path}, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    table()


@app.command()
def table() -> None:
    """Print accuracy, latency, size and verdict of every compiled variant."""
    run(_print_table)


@app.command()
def lint(
    model: Annotated[Path, MODEL],
    *,
    target: Annotated[list[str] | None, TARGET] = None,
    precision: Annotated[str | None, PRECISION] = None,
) -> None:
    """Check an ONNX file against the rules of every runtime: quantisers, attention, normalisations, external data."""
    run(lambda: _lint(model, [name for given in target or [] for name in given.split(",")], precision))


@app.command()
def doctor(*, target: Annotated[list[str] | None, TARGETS] = None, as_json: Annotated[bool, JSON] = False) -> None:
    """Say what this machine is, what works on it really, and what of each target will not work, and why.

    Exits with 7 where a target will not work, and with 8 where only its runtime is missing.
    """
    run(lambda: _doctor(target or [], as_json=as_json))


@app.command()
def spec(target: Annotated[str, SECTION]) -> None:
    """Print a target's section as JSON, for --spec of `python -m deploy` on a device."""
    run(lambda: _print_spec(target))


def _own(images: Path | None) -> list[str]:
    """The overrides that stand for --images."""
    from pipeline.base.compose import quoted
    from pipeline.parts.sources.folders import are_splits

    if images is None:
        return []
    folder = images.expanduser().resolve()
    kind = "split_folders" if folder.is_dir() and are_splits(folder) else "folder"
    return [f"data={kind}", f"prepare.path={quoted(str(folder))}"]


def _sync(overrides: list[str], *, reset: bool, try_devices: bool = False) -> None:
    import yaml

    from deploy.files import write_text
    from pipeline.base.compose import compose_params, joined_overrides, recorded_overrides, to_yaml
    from pipeline.base.params import Params, validate
    from pipeline.parts.sources.listing import existing
    from stages.targets import check_devices, check_targets

    earlier = [] if reset else recorded_overrides(PARAMS)
    composed = compose_params(CONFIGS, joined_overrides(earlier, overrides))
    text = to_yaml(composed)
    params = validate(yaml.safe_load(text), Params, source=f"{CONFIGS}/")
    check_targets(params)
    if try_devices:  # before the file is written: what is refused is not remembered
        check_devices(params.targets)
    source, path = composed.prepare.source, composed.prepare.path
    if path is not None and source != "named":  # timm's sources may have to be fetched first
        existing(Path(path), source=source)  # else DVC would only call it missing, after params.yaml has changed
    if not PARAMS.is_file() or PARAMS.read_text(encoding="utf-8") != text:
        write_text(PARAMS, text)


def _doctor(targets: list[str], *, as_json: bool) -> None:
    from platformdirs import user_cache_path

    from deploy.doctor import check_targets, examine
    from deploy.doctor_text import to_text
    from pipeline.base.compose import target_section, target_sections

    names = targets or list(target_sections(PARAMS))
    report = examine(
        {name: target_section(name, params=PARAMS, configs=CONFIGS) for name in names},
        folders=[Path("artifacts"), Path(".dvc/cache"), user_cache_path("slad-edge")],
        on_progress=lambda line: typer.echo(line, err=True),
    )
    typer.echo(json.dumps(report, indent=2) + "\n" if as_json else to_text(report), nl=False)
    check_targets(report)


def _print_spec(target: str) -> None:
    from deploy.target import read_target
    from pipeline.base.compose import target_section

    section = target_section(target, params=PARAMS, configs=CONFIGS)
    read_target(target, section)
    typer.echo(json.dumps(section, indent=2))


def _print_table() -> None:
    from rich.console import Console

    from pipeline.steps.report.records import read_json
    from pipeline.steps.report.table import print_table, summary_rows

    print_table(summary_rows(read_json(SUMMARY)), Console())


def _lint(model: Path, targets: list[str], precision: str | None) -> None:
    from pipeline.steps.quantize.lint_file import lint_file

    lint_file(model, targets=targets, precision=precision, say=typer.echo)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
