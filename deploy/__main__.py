"""`python -m deploy <command>`: the device's side of the pipeline, without DVC or the host's frameworks."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deploy.errors import DeployError, TargetError

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
UNEXPECTED = 1
FOR_A_HOST = "SLAD_FOR_A_HOST"  # set where a host runs this: its commands are then the right ones
# What the host does by DVC and `slad`, by this program's commands; an index of images is the host's alone.
HERE = {
    r"`dvc repro (?:-sf )?compile@[^`]*`": "`python -m deploy build`",
    r"`dvc repro probe@[^`]*`": "`python -m deploy fingerprint`",
    r"`slad doctor`": "`python -m deploy doctor`",
    r", (?:or|then) run `dvc repro prepare`(?: to index the folder again)?": "",
}
SOURCES = (
    "an image; a folder, for all images below it; `camera` for the first camera (a file of that name is `./camera`), "
    "`camera:1` for the second; or `camera:` and what OpenCV opens by name: a video, a stream's address, a GStreamer "
    "pipeline. One is taken after the other"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; expected errors print one line."""
    options = _parser().parse_args(arguments)
    run: Callable[[argparse.Namespace], None] = options.run
    try:
        run(options)
        sys.stdout.flush()
    except DeployError as error:
        if options.debug:
            raise
        _say(f"error: {_on_a_device(str(error))}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output is gone (`| head`); Python would complain again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNEXPECTED
    except OSError as error:
        if options.debug:
            raise
        _say(f"error: {error}; check the path, its permissions and the free space")
        return UNEXPECTED
    except KeyboardInterrupt:
        _say("interrupted; no file is left half-written")
        return INTERRUPTED
    return 0


def _on_a_device(words: str) -> str:
    """Name this program's commands where an error names the host's, which a device need not have."""
    if FOR_A_HOST in os.environ:
        return words
    for pattern, ours in HERE.items():
        words = re.sub(pattern, ours, words)
    return words


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deploy", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--debug", action="store_true", help="show the traceback of an expected error")

    def add(name: str, run: Callable[[argparse.Namespace], None], text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text, parents=[common])
        command.set_defaults(run=run)
        return command

    command = add("fingerprint", _fingerprint, "describe this device as a target's engines see it")
    command.add_argument("--target", required=True, help="name of the target")
    command.add_argument("--spec", type=Path, required=True, help="JSON file: the section targets.<target>")
    command.add_argument("--output", type=Path, help="file to write; without it, print")
    command = add("doctor", _doctor, "say what this machine is, what works on it, and whether a target will")
    command.add_argument("--target", help="name of a target; needs --spec")
    command.add_argument("--spec", type=Path, help="JSON file: the section targets.<target>, as `slad spec` prints it")
    command.add_argument("--json", action="store_true", help="print JSON")
    command = add("build", _build, "build and test every engine of a target on this device")
    _add_target(command)
    command = add("measure", _measure, "measure accuracy and latency of every engine of a target")
    _add_target(command)
    command.add_argument("--engines", type=Path, required=True, help="folder that `build` wrote")
    command.add_argument("--data", type=Path, required=True, help="data folder with index.json")
    text = "standard, mlperf, or quick: never valid (default %(default)s)"
    command.add_argument("--profile", default="standard", help=text)
    text = "MLPerf's, besides SingleStream: MultiStream, Offline"
    command.add_argument("--scenarios", nargs="+", default=["SingleStream"], help=text)
    command.add_argument("--queries", type=int, default=664, help="fewest of each scenario (default %(default)s)")
    command.add_argument("--seconds", type=float, default=10.0, help="least of each scenario (default %(default)s)")
    command.add_argument("--attempts", type=int, default=3, help="of a noisy run, at most (default %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the order of measurement (default %(default)s)")
    command = add("run", _run, "print label and probability of images, or the share of their pixels by label")
    _add_engine(command)
    command.add_argument("--masks", type=Path, help="folder to write each image's mask to, for models of masks")
    command.add_argument("--frames", type=int, help="end after so many frames of each camera; without it, at its end")
    command.add_argument("--json", action="store_true", help="print a JSON object a line")
    command.add_argument("sources", nargs="+", metavar="source", help=SOURCES)
    command = add("selftest", _selftest, "verify an engine, load it, and compare its answers with its model's")
    _add_engine(command)
    command.add_argument("--target", help="name of a target whose options the engine must have; needs --spec")
    command.add_argument("--spec", type=Path, help="JSON file: the section targets.<target>")
    return parser


def _add_engine(command: argparse.ArgumentParser) -> None:
    command.add_argument("--bundle", type=Path, required=True, help="bundle the engine was built from")
    command.add_argument("--engine", type=Path, help="folder of one engine (default: `engine` beside the bundle)")


def _add_target(command: argparse.ArgumentParser) -> None:
    command.add_argument("--target", required=True, help="name of the target")
    command.add_argument("--spec", type=Path, required=True, help="JSON file: the section targets.<target>")
    command.add_argument("--onnx", type=Path, required=True, help="folder of the bundles")
    command.add_argument("--device", type=Path, required=True, help="JSON file that `fingerprint` wrote")
    command.add_argument("--output", type=Path, required=True, help="folder to write; an old one is replaced whole")


def _fingerprint(options: argparse.Namespace) -> None:
    from deploy.device import fingerprint
    from deploy.files import write_json
    from deploy.target import read_target

    found = fingerprint(read_target(options.target, _read_spec(options.spec)))
    if options.output:
        write_json(options.output, found)
    else:
        sys.stdout.write(json.dumps(found, indent=2) + "\n")


def _doctor(options: argparse.Namespace) -> None:
    from deploy.doctor import check_targets, examine
    from deploy.doctor_text import to_text

    spec = _given_spec(options)
    specs = {} if spec is None else {options.target: spec}
    report = examine(specs, folders=[Path.cwd()], on_progress=_say)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else to_text(report))
    check_targets(report["targets"])


def _build(options: argparse.Namespace) -> None:
    from deploy.build import build_target
    from deploy.device import read_fingerprint
    from deploy.files import replaced_folder

    spec, device = _read_spec(options.spec), read_fingerprint(options.device)
    with replaced_folder(options.output) as folder:
        build_target(folder, target=options.target, spec=spec, onnx_root=options.onnx, device=device, on_progress=_say)


def _measure(options: argparse.Namespace) -> None:
    from deploy.device import read_fingerprint
    from deploy.files import replaced_folder
    from deploy.measure.budget import check_budget
    from deploy.measure.plan import Plan
    from deploy.measure.step import check_record, measure_target

    spec, device = _read_spec(options.spec), read_fingerprint(options.device)
    with replaced_folder(options.output) as folder:
        record = measure_target(
            folder,
            target=options.target,
            spec=spec,
            engines=options.engines,
            onnx_root=options.onnx,
            data=options.data,
            device=device,
            plan=Plan(
                profile=options.profile,
                scenarios=tuple(options.scenarios),
                queries=options.queries,
                seconds=options.seconds,
                attempts=options.attempts,
                seed=options.seed,
            ),
            journal=options.output.with_name(f".{options.output.name}.answers"),
            on_progress=_say,
        )
    check_record(record)
    check_budget(record)


def _run(options: argparse.Namespace) -> None:
    from deploy.engine import open_engine
    from deploy.run import Prediction, Segments, run
    from deploy.sources import read_sources

    def show(answer: Prediction | Segments) -> None:
        line = json.dumps(answer.as_dict()) if options.json else answer.as_text()
        # File names need not be UTF-8; whoever reads the lines sees each at once.
        sys.stdout.write(line.encode(errors="backslashreplace").decode() + "\n")
        sys.stdout.flush()

    sources = read_sources(options.sources, frames=options.frames, masks=options.masks)
    model, opened = open_engine(options.bundle, options.engine)
    run(
        sources,
        model,
        opened.engine,
        masks=options.masks,
        on_answer=show,
        on_broken=lambda line: _say(f"error: {_on_a_device(line)}"),
    )


def _selftest(options: argparse.Namespace) -> None:
    from deploy.selftest import selftest
    from deploy.target import read_target

    spec = _given_spec(options)
    target = None if spec is None else read_target(options.target, spec)
    sys.stdout.write(selftest(options.bundle, options.engine, target=target) + "\n")


def _given_spec(options: argparse.Namespace) -> Any:
    """Return the section of a target that need not be given, or None."""
    if (options.target is None) != (options.spec is None):
        msg = "`--target` and `--spec` go together, got one; `slad spec TARGET` prints the section that --spec takes"
        raise TargetError(msg)
    return None if options.spec is None else _read_spec(options.spec)


def _read_spec(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        msg = f"`--spec` {str(path)!r} cannot be read as JSON ({cause}); write the section targets.<target> to it"
        raise TargetError(msg) from cause


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")


if __name__ == "__main__":
    sys.exit(main())
