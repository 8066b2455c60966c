"""`python -m deploy <command>`: the device's side of the pipeline, without DVC or the host's frameworks."""

import argparse
import json
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.errors import DeployError, TargetError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

INTERRUPTED = 130  # what shells report for a program that Ctrl-C ended
UNEXPECTED = 1
# What the host does by DVC and `slad`, by this program's commands.
HERE = {
    r"`dvc repro (?:-f )?compile@[^`]*`": "build",
    r"`dvc repro (?:-f )?probe@[^`]*`": "fingerprint",
    r"`slad doctor`": "doctor",
}


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
        _say("interrupted; nothing was replaced")
        return INTERRUPTED
    return 0


def _on_a_device(words: str) -> str:
    """Name this program's commands where an error names the host's, which a device need not have."""
    for pattern, command in HERE.items():
        words = re.sub(pattern, f"`python -m deploy {command}`", words)
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
    command.add_argument("--queries", type=int, default=664, help="minimum queries per variant (default %(default)s)")
    command.add_argument("--seconds", type=float, default=1.0, help="minimum seconds per variant (default %(default)s)")
    command.add_argument("--warmup-seconds", type=float, default=0.5, help="per variant (default %(default)s)")
    command.add_argument("--profile", default="standard", help="standard, or quick: never valid (default %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the order of measurement (default %(default)s)")
    command = add("predict", _predict, "print label and probability of images, or the share of their pixels by label")
    command.add_argument("--bundle", type=Path, required=True, help="bundle the engine was built from")
    command.add_argument("--engine", type=Path, required=True, help="folder of one engine")
    command.add_argument("--masks", type=Path, help="folder to write each image's mask to, for models of masks")
    command.add_argument("images", type=Path, nargs="+", metavar="image")
    return parser


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

    if (options.target is None) != (options.spec is None):
        msg = "`--target` and `--spec` go together, got one; `slad spec TARGET` prints the section that --spec takes"
        raise TargetError(msg)
    specs = {} if options.target is None else {options.target: _read_spec(options.spec)}
    report = examine(specs, folders=[Path.cwd()], here=True, on_progress=_say)
    sys.stdout.write(json.dumps(report, indent=2) + "\n" if options.json else to_text(report))
    check_targets(report)


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
    from deploy.measure import Timing, check_record, measure_target

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
            timing=Timing(
                queries=options.queries,
                seconds=options.seconds,
                warmup_seconds=options.warmup_seconds,
                profile=options.profile,
                seed=options.seed,
            ),
            on_progress=_say,
        )
    for reason in record["invalid_reasons"]:
        _say(f"not valid: {reason}")
    for name, variant in record["variants"].items():
        for phrase in variant["over_budget"]:
            _say(f"{options.target}/{name}: over budget: {phrase}")
    check_record(record)


def _predict(options: argparse.Namespace) -> None:
    from deploy.predict import classify, open_engine, segment

    model, engine = open_engine(options.bundle, options.engine)
    if model.task == "classification":
        if options.masks:
            msg = f"`--masks` {str(options.masks)!r}: the bundle {options.bundle} gives images a class; leave it out"
            raise TargetError(msg)
        for found in classify(options.images, model, engine):
            sys.stdout.write(f"{found.path}\t{found.label}\t{found.probability:.4f}\n")
        return
    files = _mask_files(options.images, options.masks)
    for parts, file in zip(segment(options.images, model, engine), files, strict=True):
        shares = (f"{label} {share:.4f}" for label, share in parts.shares.items())
        sys.stdout.write("\t".join((str(parts.path), *shares)) + "\n")
        if file is not None:
            _write_mask(parts.mask, file)


def _mask_files(images: Sequence[Path], folder: Path | None) -> list[Path | None]:
    """Return the file of each image's mask; no two of them are one."""
    if folder is None:
        return [None] * len(images)
    files: dict[Path, Path] = {}
    for image in images:
        file = folder / f"{image.stem}.png"
        if file.exists() and any(file.samefile(other) for other in images if other.exists()):
            msg = f"`--masks` {str(folder)!r}: the mask of {image} would replace the image {file}; name another one"
            raise TargetError(msg)
        if file in files:
            msg = f"images {files[file]} and {image} would both leave {file}; predict them one after the other"
            raise TargetError(msg)
        files[file] = image
    folder.mkdir(parents=True, exist_ok=True)
    return list(files)


def _write_mask(mask: "NDArray[np.uint8]", file: Path) -> None:
    import io

    from PIL import Image

    from deploy.files import write_bytes

    stream = io.BytesIO()
    Image.fromarray(mask).save(stream, format="PNG")
    write_bytes(file, stream.getvalue())


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
