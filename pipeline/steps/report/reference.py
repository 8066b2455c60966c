"""Reference answers on the test images: of every ONNX variant, to compare engines with."""

from pathlib import Path
from typing import Any

import numpy as np

from pipeline.base.errors import DataError
from pipeline.parts.bundle import MODEL
from pipeline.parts.index import Loaded, LoadImage, read_index
from pipeline.parts.predict_onnx import onnx_logits


def write_reference_logits(path: Path, *, onnx: Path, data: Path, load: LoadImage) -> None:
    """Writes an .npz with logits of shape (test images, classes) per variant, and `labels`.

    Args:
        path: file to write.
        onnx: folder with one bundle per variant.
        data: folder of the index.
        load: decodes and preprocesses one image.

    Raises:
        DataError: there is no bundle.
    """
    index, root = read_index(data)
    variants = sorted(folder.name for folder in onnx.iterdir() if (folder / MODEL).is_file())
    if not variants:
        msg = f"no bundle in {str(onnx)!r}; run `dvc repro export`"
        raise DataError(msg)
    images = Loaded(root, index.parts["test"], load=load)
    arrays: dict[str, Any] = {variant: onnx_logits(onnx / variant / MODEL, images) for variant in variants}
    arrays["labels"] = index.parts["test"].labels
    np.savez(path, **arrays)
