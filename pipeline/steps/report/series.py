"""Reads what the report draws: training curves and latency samples."""

import csv
import math
from pathlib import Path

import numpy as np

from pipeline.base.errors import DataError
from pipeline.steps.report.documents import REMEDY, read_arrays

Series = dict[str, list[tuple[float, float]]]
Samples = dict[str, list[float]]
SINGLE_STREAM = "/SingleStream"  # ends the name of an array of its samples


def read_rows(path: Path) -> list[dict[str, str]]:
    """Reads a CSV file by column; no rows where there is no file.

    Raises:
        DataError: it is no CSV file.
    """
    if not path.is_file():
        return []
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return list(csv.DictReader(file))
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"{str(path)!r} is not a CSV file ({error}): delete it and {REMEDY}"
        raise DataError(msg) from error


def _number(text: str | None, *, path: Path) -> float | None:
    """The value of a cell; None where it is empty or not finite, since neither can be drawn."""
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        msg = f"{str(path)!r} holds {text!r} where a number belongs: delete it and {REMEDY}"
        raise DataError(msg) from None
    return value if math.isfinite(value) else None


def read_curves(path: Path) -> Series:
    """Reads `curves.csv` as column -> (epoch, value) pairs; empty where there is no file."""
    series: Series = {}
    for row in read_rows(path):
        epoch = _number(row.pop("epoch", None), path=path)
        row.pop("phase", None)  # a name
        for column, text in row.items():
            value = _number(text, path=path)
            if epoch is not None and value is not None:
                series.setdefault(column, []).append((epoch, value))
    return series


def read_latencies(path: Path) -> Samples:
    """Reads SingleStream's samples of `samples.npz` as variant -> latencies in milliseconds; empty without a file.

    Raises:
        DataError: it is no archive, or of something else than nanoseconds.
    """
    found = {name: array for name, array in read_arrays(path).items() if name.endswith(SINGLE_STREAM)}
    odd = next((name for name, array in found.items() if array.dtype != np.int64 or array.ndim != 1), None)
    if odd is not None:
        shape = f"{found[odd].dtype} of shape {found[odd].shape}"
        msg = f"{str(path)!r}: {odd!r} holds {shape}, expected a row of int64: delete it and {REMEDY}"
        raise DataError(msg)
    milliseconds = {name.removesuffix(SINGLE_STREAM): array[array > 0] / 1e6 for name, array in found.items()}
    return {name: values.tolist() for name, values in milliseconds.items() if values.size}
