"""A bundle: one ONNX model with all that a device must know to run it, verified before anything is loaded."""

import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, cast

import numpy as np
from numpy.typing import NDArray

from deploy.document import Document, read_document
from deploy.errors import BundleError
from deploy.files import sha256_file

REMEDY = "rebuild it with `dvc repro export quantize` or copy the bundle again"

ResizeMode = Literal["squash", "shortest"]
TASKS = ("classification", "segmentation")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes an input.

    Attributes:
        resize: pixels of the shorter side, where `resize_mode` is "shortest".
        resize_mode: "squash" resizes to `crop` exactly, "shortest" keeps the ratio and crops the centre.
        crop: (height, width) of the input, in pixels.
        interpolation: "nearest", "bilinear" or "bicubic", as Pillow means them (antialiased).
        mean: one per channel, in 0..1.
        std: one per channel, in 0..1.
        color: the only value is "RGB".
    """

    resize: int
    resize_mode: ResizeMode
    crop: tuple[int, int]
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    color: Literal["RGB"]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """Inputs with the outputs ONNX Runtime's CPU gives for this very model.

    Attributes:
        path: a numpy archive with `inputs` and `outputs`.
        count: number of inputs.
        tolerance: largest max|y - y_ref| / max|y_ref|, by the precision an engine runs in.
    """

    path: Path
    count: int
    tolerance: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A verified bundle.

    Attributes:
        folder: where it lies.
        task: "classification" or "segmentation".
        input_shape: (1, 3, height, width).
        output_shape: (1, classes), or (1, classes, height, width) where each pixel has a class.
        onnx: the model file, whose hash is `onnx_sha256`.
        program: the same network as torch.export saved it; None where `export.program` was not set.
        lineage: revision and hashes of what the model came from, as the host wrote them.
    """

    folder: Path
    task: str
    name: str
    variant: str
    precision: str
    input_name: str
    input_shape: tuple[int, int, int, int]
    output_name: str
    output_shape: tuple[int, ...]
    preprocess: Preprocess
    labels: tuple[str, ...]
    onnx: Path
    onnx_sha256: str
    program: Path | None = None
    golden: Golden
    lineage: Mapping[str, Any]


def load_bundle(folder: Path) -> Bundle:
    """Read `bundle.json` and verify every file it lists.

    Args:
        folder: holds `bundle.json`, the ONNX model and the golden archive.

    Raises:
        BundleError: a key is missing or has a wrong value, a file is missing, lies outside the bundle, or has another
            size or hash than listed.
    """
    document = read_document(folder / "bundle.json", error=BundleError, remedy=REMEDY)
    task = document.choice("task", TASKS)
    document.choice("input.layout", ("NCHW",))
    document.choice("input.dtype", ("float32",))
    document.choice("output.dtype", ("float32",))
    files = {name: _verify_file(document, name) for name in document.mapping("files")}
    onnx = document.text("onnx")
    bundle = Bundle(
        folder=folder,
        task=task,
        name=document.text("name"),
        variant=document.text("variant"),
        precision=document.choice("precision", ("fp32", "fp16", "int8", "int8_fp16")),
        input_name=document.text("input.name"),
        input_shape=cast("tuple[int, int, int, int]", document.integers("input.shape", length=4)),
        output_name=document.text("output.name"),
        output_shape=document.integers("output.shape", length=2 if task == "classification" else 4),
        preprocess=_read_preprocess(document),
        labels=document.texts("labels"),
        onnx=_listed(document, "onnx", onnx, files),
        onnx_sha256=document.content["files"][onnx]["sha256"],
        program=_read_program(document, files),
        golden=_read_golden(document, files),
        lineage=document.mapping("lineage"),
    )
    _check_shapes(document, bundle)
    return bundle


def load_golden(bundle: Bundle) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Load the golden inputs and outputs.

    Returns:
        inputs of shape (count, 3, H, W), preprocessed, and outputs of shape (count, classes, ...), both float32.

    Raises:
        BundleError: the archive cannot be read or its arrays do not fit the bundle.
    """
    path, count = bundle.golden.path, bundle.golden.count
    try:
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            inputs, outputs = archive["inputs"], archive["outputs"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, TypeError, AttributeError) as cause:
        msg = f"{path}: golden archive cannot be read ({cause}); {REMEDY}"
        raise BundleError(msg) from cause
    wanted = {"inputs": (count, *bundle.input_shape[1:]), "outputs": (count, *bundle.output_shape[1:])}
    for key, array in (("inputs", inputs), ("outputs", outputs)):
        if array.dtype != np.float32 or array.shape != wanted[key] or not np.isfinite(array).all():
            found = f"{array.dtype} {array.shape}"
            msg = f"{path}: `{key}` should be finite float32 of shape {wanted[key]}, got {found}; {REMEDY}"
            raise BundleError(msg)
    return inputs, outputs


def _verify_file(document: Document, name: str) -> Path:
    """Check that a listed file lies in the bundle and is the one that was listed; return its path."""
    folder = document.path.parent
    entry = document.mapping("files")[name]
    if not isinstance(entry, dict) or not isinstance(entry.get("sha256"), str) or type(entry.get("bytes")) is not int:
        document.fail(f"`files.{name}` should hold `sha256` and `bytes`, got {entry!r}")
    pure = PurePosixPath(name)
    if pure.is_absolute() or ".." in pure.parts or "\\" in name:
        document.fail(f"file {name!r} leaves the bundle")
    path = folder / pure
    if not path.is_file():
        document.fail(f"file {name!r} is missing from the bundle")
    if not path.resolve().is_relative_to(folder.resolve()):
        document.fail(f"file {name!r} is a link that leaves the bundle (it leads to {path.resolve()})")
    size = path.stat().st_size
    if size != entry["bytes"]:
        document.fail(f"file {name!r} has {size} bytes, {entry['bytes']} are listed")
    actual = sha256_file(path)
    if actual != entry["sha256"]:
        document.fail(f"file {name!r} has sha256 {actual[:12]}, {entry['sha256'][:12]} is listed")
    return path


def _listed(document: Document, key: str, name: str, files: Mapping[str, Path]) -> Path:
    """Return a verified file; one that `files` does not list was never verified."""
    if name not in files:
        document.fail(f"`{key}` names {name!r}, which `files` does not list")
    return files[name]


def _read_program(document: Document, files: Mapping[str, Path]) -> Path | None:
    if document.content.get("program") is None:
        return None
    return _listed(document, "program", document.text("program"), files)


def _read_preprocess(document: Document) -> Preprocess:
    mean = document.numbers("preprocess.mean", length=3)
    std = document.numbers("preprocess.std", length=3)
    if min(std) <= 0:
        document.fail(f"`preprocess.std` should be above 0, got {list(std)}")
    preprocess = Preprocess(
        resize=document.integer("preprocess.resize"),
        resize_mode=cast("ResizeMode", document.choice("preprocess.resize_mode", ("squash", "shortest"))),
        crop=cast("tuple[int, int]", document.integers("preprocess.crop", length=2)),
        interpolation=cast("Any", document.choice("preprocess.interpolation", ("nearest", "bilinear", "bicubic"))),
        mean=cast("tuple[float, float, float]", mean),
        std=cast("tuple[float, float, float]", std),
        color=cast("Literal['RGB']", document.choice("preprocess.color", ("RGB",))),
    )
    if preprocess.resize_mode == "shortest" and max(preprocess.crop) > preprocess.resize:
        document.fail(
            f"`preprocess.crop` {list(preprocess.crop)} is larger than `preprocess.resize` {preprocess.resize}"
        )
    return preprocess


def _read_golden(document: Document, files: Mapping[str, Path]) -> Golden:
    tolerance = document.mapping("golden.tolerance")
    for precision, value in tolerance.items():
        if type(value) not in (int, float) or not 0 < value < 1:
            document.fail(f"`golden.tolerance.{precision}` should be between 0 and 1, got {value!r}")
    path = _listed(document, "golden.file", document.text("golden.file"), files)
    return Golden(path=path, count=document.integer("golden.count"), tolerance=tolerance)


def _check_shapes(document: Document, bundle: Bundle) -> None:
    wanted_input = (1, 3, *bundle.preprocess.crop)
    if bundle.input_shape != wanted_input:
        document.fail(
            f"`input.shape` {list(bundle.input_shape)} does not fit `preprocess.crop`: {list(wanted_input)} expected"
        )
    wanted_output = (1, len(bundle.labels), *(() if bundle.task == "classification" else bundle.preprocess.crop))
    if bundle.output_shape != wanted_output:
        document.fail(
            f"`output.shape` {list(bundle.output_shape)} does not fit {len(bundle.labels)} `labels` of {bundle.task}: "
            f"{list(wanted_output)} expected"
        )
