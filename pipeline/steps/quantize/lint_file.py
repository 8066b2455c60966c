"""`slad lint`: an ONNX file, as it lies on the disk, against the rules of its targets."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from pipeline.base.errors import ModelError
from pipeline.steps.quantize.lint import TARGETS, count_quantizers, lint

REMEDY = "give the path of an ONNX file, such as artifacts/onnx/int8/model.onnx"


def lint_file(path: Path, *, targets: Sequence[str], precision: str | None, say: Callable[[str], object]) -> None:
    """Says one line for each finding, or one line on what was checked when there is none.

    Weights that lie in other files are not read; scales and zero points are, after the rule on external data.

    Args:
        path: the file.
        targets: those asked about; none: all.
        precision: what the file claims to be; None: what a `bundle.json` beside it says of it, if there is one.
        say: prints a line.

    Raises:
        ModelError: the file cannot be read, is no ONNX, or breaks a rule.
        ParamsError: a target or the precision is unknown.
    """
    model = read_onnx(path)
    claim = precision or _bundle_precision(path)
    chosen = tuple(targets) or TARGETS
    findings = lint(model, targets=chosen, precision=claim, folder=path.parent)
    for finding in findings:
        say(finding.text)
    if not findings:
        _check_valid(path)
    if findings:
        broken = sorted({finding.rule.id for finding in findings})
        msg = f"{str(path)!r} breaks rules in {len(findings)} place(s): {', '.join(broken)}; what to do stands above"
        raise ModelError(msg)
    words = f"precision {claim}" if claim else "no precision claimed"
    say(f"{path}: legal for {', '.join(chosen)}; {count_quantizers(model)} Q and DQ nodes, {words}")


def read_onnx(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file without its external data.

    Raises:
        ModelError: there is no such file, it cannot be read, or it is no ONNX.
    """
    try:
        model = onnx.load(path, format="protobuf", load_external_data=False)
    except FileNotFoundError:
        msg = f"{str(path)!r}: no such file; {REMEDY}"
        raise ModelError(msg) from None
    except OSError as cause:
        msg = f"{str(path)!r} cannot be read ({cause.strerror}); {REMEDY}"
        raise ModelError(msg) from cause
    except DecodeError as cause:
        msg = f"{str(path)!r} is no ONNX file; {REMEDY}"
        raise ModelError(msg) from cause
    if not model.opset_import or not model.graph.node:
        msg = f"{str(path)!r} is no ONNX file, or one without a graph; {REMEDY}"
        raise ModelError(msg)
    return model


def _check_valid(path: Path) -> None:
    """Refuses what no runtime reads: the rules are on what is legal ONNX. Only after that on external data."""
    try:
        onnx.checker.check_model(str(path))
    except (onnx.checker.ValidationError, ValueError) as cause:
        reason = next(iter(str(cause).splitlines()), type(cause).__name__)
        msg = f"{str(path)!r} is no valid ONNX ({reason}); export it again"
        raise ModelError(msg) from cause


def _bundle_precision(path: Path) -> str | None:
    """What the bundle around a file says of its precision; None where no bundle names the file."""
    bundle = path.with_name("bundle.json")
    if not bundle.is_file():
        return None
    try:
        content = json.loads(bundle.read_text(encoding="utf-8"))
    except (OSError, ValueError) as cause:
        msg = (
            f"{str(bundle)!r} cannot be read ({cause}); rebuild it with `dvc repro export quantize` or use --precision"
        )
        raise ModelError(msg) from cause
    if not isinstance(content, dict) or content.get("onnx") != path.name:
        return None
    return content.get("precision")
