"""Reference answers on the test images: of every ONNX variant, to compare engines with, and of the teacher."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from pipeline.base.errors import DataError
from pipeline.parts.bundle import MODEL
from pipeline.parts.data import LoadImage, labels_of, stacked
from pipeline.parts.index import read_index
from pipeline.parts.predict import onnx_logits, torch_logits


def write_reference_logits(path: Path, *, onnx: Path, teacher: nn.Module | None, data: Path, load: LoadImage) -> None:
    """Writes an .npz with logits of shape (test images, classes) per variant and of the teacher, and `labels`.

    Args:
        path: file to write.
        onnx: folder with one bundle per variant.
        teacher: the trained teacher, where the method had one.
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
    images = stacked(root, index.splits["test"], load=load)
    arrays: dict[str, Any] = {variant: onnx_logits(onnx / variant / MODEL, images) for variant in variants}
    arrays["labels"] = labels_of(index.splits["test"])
    if teacher is not None:
        arrays["teacher"] = torch_logits(teacher, images)
    np.savez(path, **arrays)
