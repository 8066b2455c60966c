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
REPORTS = Path("reports")
ONNX = Path("artifacts/onnx")
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
HOSTS = typer.Option("--target", help="May be repeated; default: all targets of params.yaml that have a `host`.")
VARIANT = typer.Option("--variant", help="Of the target's variants; default: the one that the report chose for it.")
RELEASE = typer.Option("--to", help="Name or number of a release, as `slad status` shows them.")
FOLDER = typer.Argument(help="Folder to write the wheel to.")
BEFORE = typer.Argument(
    help="What is compared with: a record file, a git revision such as HEAD~1, or `workspace`.", metavar="A"
)
AFTER = typer.Argument(help="What is compared, in the same way.", metavar="B")
ACCURACY = typer.Option("--accuracy", min=0, help="Points of accuracy or mIoU that B may measurably lose.")
LATENCY = typer.Option("--latency", min=0, help="Percent by which p50 and p90 of B may measurably be longer.")
# Two runs of one engine on a shared machine differ by more than their intervals say: of the records of one CPU model in
# this repository's history half are within 8 % of the one before in p50.
LATENCY_PERCENT = 10.0
ANYWAY = typer.Option("--anyway", help="Compare also what was measured on another device, or in an invalid run.")
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
    # One target that fails keeps none of the others from being built and measured.
    command = [str(scripts / "dvc"), "repro", "--keep-going"]
    done = subprocess.run(command, env=os.environ | {"PATH": path}, check=False)
    if done.returncode:
        raise typer.Exit(done.returncode)
    table()


@app.command()
def table() -> None:
    """Print accuracy, latency, size and verdict of every compiled variant."""
    run(_print_table)


@app.command()
def compare(
    before: Annotated[str, BEFORE],
    after: Annotated[str, AFTER],
    *,
    accuracy: Annotated[float, ACCURACY] = 0.0,
    latency: Annotated[float, LATENCY] = LATENCY_PERCENT,
    anyway: Annotated[bool, ANYWAY] = False,
    as_json: Annotated[bool, JSON] = False,
) -> None:
    """Print what became better or worse from A to B, with intervals; exit with 12 on a regression, for use in CI.

    A regression is a measurable loss of accuracy, or a measurably longer p50 or p90, by more than is accepted. Records
    that should not be compared exit with 9.
    """
    run(lambda: _compare((before, after), accuracy=accuracy, latency=latency, anyway=anyway, as_json=as_json))


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


@app.command()
def deploy(
    *,
    target: Annotated[list[str] | None, HOSTS] = None,
    variant: Annotated[str | None, VARIANT] = None,
) -> None:
    """Install the chosen variant on the devices of targets with a `host`, over SSH, and let it serve.

    The engine is built on the device, or taken over where it was measured there, and tested before one rename makes the
    new release current. Whatever fails, the earlier release goes on serving.
    """
    run(lambda: _deploy(target or [], variant))


@app.command()
def rollback(
    *,
    target: Annotated[list[str] | None, HOSTS] = None,
    to: Annotated[str | None, RELEASE] = None,
) -> None:
    """Let the release before the current one serve again, after testing it."""
    run(lambda: _roll_back(target or [], to))


@app.command()
def status(*, target: Annotated[list[str] | None, HOSTS] = None, as_json: Annotated[bool, JSON] = False) -> None:
    """Say which release serves on the device of each target, and which ones are kept."""
    run(lambda: _status(target or [], as_json=as_json))


@app.command()
def wheel(folder: Annotated[Path, FOLDER] = Path("dist")) -> None:
    """Write the device package as a wheel, for devices that are not reached over SSH."""
    run(lambda: _write_wheel(folder))


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
    from stages.devices import check_devices
    from stages.targets import check_targets

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
    from deploy.doctor import check_targets
    from deploy.doctor_text import to_text
    from stages.devices import examine_all, raise_failed

    found = examine_all(targets, params=PARAMS, configs=CONFIGS)
    reports = {"this machine": found["here"]} if found["here"] else {}
    reports |= {f"the device of {name}": report for name, report in found["devices"].items()}
    if as_json:
        failed = {name: str(error) for name, error in found["failed"].items()}
        typer.echo(json.dumps({**found, "failed": failed}, indent=2))
    else:
        for name, report in reports.items():
            heading = f"{name[0].upper()}{name[1:]}\n\n" if len(reports) > 1 else ""
            typer.echo(heading + to_text(report))
    raise_failed(found["failed"], total=len(found["failed"]) + len(reports))
    check_targets({name: each for report in reports.values() for name, each in report["targets"].items()})


def _deploy(targets: list[str], variant: str | None) -> None:
    from deploy.remote.releases import deploy as deploy_to
    from stages.devices import choose, deployed_line, raise_failed, remote_sections, side_by_side

    sections = remote_sections(targets, params=PARAMS, configs=CONFIGS)
    chosen = {
        name: choose(name, section, wish=variant, reports=REPORTS, onnx=ONNX) for name, section in sections.items()
    }
    done, failed = side_by_side(
        sections,
        lambda name, section, say: deploy_to(
            name,
            section,
            variant=chosen[name].variant,
            engine_sha256=chosen[name].engine_sha256,
            onnx_root=ONNX,
            say=say,
        ),
    )
    for name, result in done.items():
        typer.echo(f"{name}: {deployed_line(chosen[name].variant, result)}")
    raise_failed(failed, total=len(sections))


def _roll_back(targets: list[str], to: str | None) -> None:
    from deploy.remote.releases import roll_back
    from stages.devices import raise_failed, remote_sections, rolled_back_line, side_by_side

    sections = remote_sections(targets, params=PARAMS, configs=CONFIGS)
    done, failed = side_by_side(sections, lambda name, section, say: roll_back(name, section, to=to, say=say))
    for name, result in done.items():
        typer.echo(f"{name}: {rolled_back_line(result)}")
    raise_failed(failed, total=len(sections))


def _status(targets: list[str], *, as_json: bool) -> None:
    from deploy.remote.releases import status as status_of
    from stages.devices import raise_failed, remote_sections, side_by_side, status_text

    sections = remote_sections(targets, params=PARAMS, configs=CONFIGS)
    found, failed = side_by_side(sections, lambda name, section, say: status_of(name, section, say=say))
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        typer.echo(status_text(found, sections), nl=False)
    raise_failed(failed, total=len(sections))


def _write_wheel(folder: Path) -> None:
    from deploy.files import write_bytes
    from deploy.remote.wheel import device_wheel

    made = device_wheel()
    write_bytes(folder / made.file, made.content)
    typer.echo(f"{folder / made.file}: {len(made.content) / 1e3:.0f} kB")


def _print_spec(target: str) -> None:
    from deploy.target import read_target
    from pipeline.base.compose import target_section

    section = target_section(target, params=PARAMS, configs=CONFIGS)
    read_target(target, section)
    typer.echo(json.dumps(section, indent=2))


def _print_table() -> None:
    from rich.console import Console

    from pipeline.steps.report.documents import read_json
    from pipeline.steps.report.table import print_table, summary_rows

    print_table(summary_rows(read_json(REPORTS / "summary.json")), Console())


def _compare(names: tuple[str, str], *, accuracy: float, latency: float, anyway: bool, as_json: bool) -> None:
    from rich.console import Console

    from deploy.measure.compare import Tolerance
    from stages.comparison import check, compare_sides, print_comparison, read_side, to_json

    before, after = (read_side(name, reports=REPORTS) for name in names)
    tolerance = Tolerance(accuracy_points=accuracy, latency_percent=latency)
    found = compare_sides(before, after, tolerance=tolerance)
    if as_json:
        typer.echo(to_json(found))
    else:
        print_comparison(found, Console(), names=names)
    check(found, anyway=anyway)


def _lint(model: Path, targets: list[str], precision: str | None) -> None:
    from pipeline.steps.quantize.lint_file import lint_file

    lint_file(model, targets=targets, precision=precision, say=typer.echo)


def main() -> None:
    """Entry point of the command."""
    app()


if __name__ == "__main__":
    main()
