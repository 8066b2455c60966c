"""The files of a measurement: the record and, beside it, the raw data its numbers were made from."""

import csv
import io
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.data import Item
from deploy.files import write_bytes, write_json, write_text

SCHEMA = 2  # of the record
RECORD, SAMPLES = "record.json", "samples.npz"


def write_record(
    folder: Path,
    record: Mapping[str, Any],
    *,
    items: Sequence[Item],
    samples: Mapping[str, NDArray[np.int64]],
    answers: Mapping[str, Sequence[int | float | None]],
    logits: Mapping[str, NDArray[np.float32]],
) -> None:
    """Write record.json, samples.npz, predictions.csv and logits.npz.

    Args:
        folder: exists.
        record: plain values.
        items: the test images.
        samples: nanoseconds of each query in the order measured, by "variant/scenario".
        answers: what stands for each item's answer, by variant.
        logits: of shape (kept items, classes, ...), by variant.
    """
    write_bytes(folder / SAMPLES, _npz(samples))
    write_text(folder / "predictions.csv", _predictions_csv(items, answers))
    write_bytes(folder / "logits.npz", _npz(logits))
    write_json(folder / RECORD, record)


def _predictions_csv(items: Sequence[Item], answers: Mapping[str, Sequence[int | float | None]]) -> str:
    rows = ((item.name, item.label, *(column[row] for column in answers.values())) for row, item in enumerate(items))
    return _csv(("path", "label", *answers), rows)


def _npz(arrays: Mapping[str, NDArray[Any]]) -> bytes:
    """Pack arrays as numpy's own function does, whose keywords forbid some names ("file", "allow_pickle")."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w") as member:
                np.lib.format.write_array(member, array, allow_pickle=False)
    return stream.getvalue()


def _csv(header: Sequence[str], rows: Any) -> str:
    stream = io.StringIO(newline="")
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    return stream.getvalue()
