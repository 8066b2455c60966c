"""Reference answers on the test images: of every ONNX variant, to compare engines with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError
from pipeline.parts.bundle import MODEL, read_bundle
from pipeline.parts.index import Load, Loaded, Targets, evenly, kept_places, read_index
from pipeline.parts.predict_onnx import onnx_logits

PICTURED = 4  # images with masks

LoadPicture = Callable[[Path], NDArray[np.uint8]]
"""Decodes and fits one image, of shape (height, width, 3)."""


def write_reference(path: Path, *, onnx: Path, data: Path, load: Load, picture: LoadPicture) -> None:
    """Writes an .npz with what an engine's logits are compared with.

    That is, of the test images whose logits a device keeps: the logits of each variant by its name, of shape (images,
    classes, ...), and `targets` of shape (images, ...); and of images with masks some `pictures` of shape (n, height,
    width, 3) with their `names`, and their places among the others, `pictured`.

    Args:
        path: file to write.
        onnx: folder with one bundle per variant.
        data: folder of the index.
        load: decodes and preprocesses one file.
        picture: decodes one image, to be looked at.

    Raises:
        DataError: there is no bundle.
    """
    index, root = read_index(data)
    variants = sorted(folder.name for folder in onnx.iterdir() if (folder / MODEL).is_file())
    if not variants:
        msg = f"no bundle in {str(onnx)!r}; run `dvc repro export`"
        raise DataError(msg)
    tests = index.parts["test"]
    items = tests[kept_places(len(tests), read_bundle(onnx / variants[0])["output"]["shape"])]
    images = Loaded(root, items, load=load.image)
    arrays: dict[str, Any] = {name: np.stack(list(onnx_logits(onnx / name / MODEL, images))) for name in variants}
    arrays["targets"] = np.stack(list(Targets(root, items, load=load.mask, ignore=index.ignore)))
    if index.masked:
        shown = evenly(len(items), PICTURED)
        arrays["pictured"] = shown
        arrays["pictures"] = np.stack([picture(root / item.path) for item in items[shown]])
        arrays["names"] = np.array([item.path for item in items[shown]], np.str_)
    np.savez(path, **arrays)
