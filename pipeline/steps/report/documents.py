"""Reads JSON records of known schemas, and archives of arrays; what is missing or malformed is refused in words."""

import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.base.errors import DataError

SCHEMA = 1
TRAINING_SCHEMA = 2  # of the training record
MEASUREMENT_SCHEMA = 2  # of the measurement record of a target
REMEDY = "run `dvc repro`"
Json = Mapping[str, Any]
T = TypeVar("T")


def read_json(path: Path, *, schema: int = SCHEMA) -> dict[str, Any]:
    """Reads a record of one schema.

    Raises:
        DataError: the file is missing, not JSON, or of another schema.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        msg = f"No record at {str(path)!r}: {REMEDY}"
        raise DataError(msg) from None
    except ValueError as error:
        msg = f"Record {str(path)!r} is not JSON ({error}): delete it and {REMEDY}"
        raise DataError(msg) from error
    found = content.get("schema") if isinstance(content, dict) else None
    if not isinstance(content, dict) or found != schema:
        msg = f"Record {str(path)!r} has schema {found!r}, this version reads {schema}: {REMEDY}"
        raise DataError(msg)
    return content


def read_optional(path: Path, *, schema: int = SCHEMA) -> dict[str, Any] | None:
    """As `read_json`, but None where there is no such file."""
    return read_json(path, schema=schema) if path.is_file() else None


def read_arrays(path: Path | None) -> dict[str, NDArray[Any]]:
    """Reads every array of an .npz; an absent file has none.

    Raises:
        DataError: the file cannot be read.
    """
    if path is None or not path.is_file():
        return {}
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        msg = f"Arrays {str(path)!r} cannot be read ({error}): delete the file and {REMEDY}"
        raise DataError(msg) from error


def field(record: Json, key: str, kind: type[T], *, source: Path) -> T:
    """Takes the value at a dotted key; whole numbers pass as float, but nothing that is not finite.

    Raises:
        DataError: the key is missing or holds another kind of value.
    """
    value: Any = record
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    wrong = not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool)
    if wrong or (isinstance(value, float) and not math.isfinite(value)):
        msg = f"Record {str(source)!r}: `{key}` is {value!r}, expected {kind.__name__}: {REMEDY}"
        raise DataError(msg)
    return value  # type: ignore[no-any-return]  # checked just above
