"""Labelled images named in a list: CSV with a header, or one JSON object per line."""

import csv
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.base.errors import DataError
from pipeline.parts.index import Item, Items
from pipeline.parts.sources.listing import ALL, SPLIT_NAMES, Finding, Listing, inside, is_image, refuse_one_class

KEYS = {"path", "label", "split"}


def list_listed(file: Path) -> Listing:
    """Reads a list of `path` (below the list's folder), `label` and, if the images are split already, `split`.

    A file that ends with .csv has a header; any other holds JSON lines.

    Raises:
        DataError: a line that lacks one of them or has an unknown split, a path that leaves the folder or stands twice,
            or fewer than two labels.
    """
    root = file.parent.resolve()
    rows, seen = [], set()
    for number, row in _rows(file):
        where = f"{str(file)!r}, line {number}"
        path = inside(_text(row, "path", where), where=where)
        if path in seen:
            msg = f"{where}: {path!r} stands in the list before; keep one line"
            raise DataError(msg)
        seen.add(path)
        rows.append((path, _text(row, "label", where), _split(row, where)))
    labels = tuple(sorted({label for _, label, _ in rows}))
    refuse_one_class(labels, f"{str(file)!r}")
    places = {label: place for place, label in enumerate(labels)}
    missing = {path for path in seen if not os.path.isfile(root / path)}  # noqa: PTH113 - Path's raises for long names
    findings = [Finding("unpaired", (path,), "in the list, but there is no such file") for path in sorted(missing)]
    findings += [Finding("ignored", (path,), "an image in no row of the list") for path in _beside(root, seen)]
    names = dict.fromkeys(split for _, _, split in rows)
    if "train" not in names and ALL not in names:
        msg = f"{str(file)!r} has no row with the split 'train'; add some, or leave the split out"
        raise DataError(msg)
    if ALL in names and len(names) > 1:
        msg = f"{str(file)!r} has rows with and without a split; give one to all, or to none"
        raise DataError(msg)
    parts = {
        name: Items.of(
            Item(path, places[label], "") for path, label, split in rows if split == name and path not in missing
        )
        for name in names
    }
    return Listing(labels=labels, root=root, parts=parts, findings=findings)


def _beside(root: Path, listed: set[str]) -> list[str]:
    """Returns the images that lie where listed ones do."""
    folders = {(root / path).parent for path in listed}
    files = (file for folder in folders if folder.is_dir() for file in folder.iterdir() if is_image(file))
    return sorted({file.relative_to(root).as_posix() for file in files} - listed)


def _rows(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yields line numbers and rows."""
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            if file.suffix.lower() == ".csv":
                reader = csv.DictReader(stream)
                if not {"path", "label"} <= set(reader.fieldnames or ()):
                    msg = f"{str(file)!r} has the columns {reader.fieldnames}; its first line must name path and label"
                    raise DataError(msg)
                yield from ((reader.line_num, row) for row in reader)
            else:
                yield from (
                    (number, _object(line, file, number)) for number, line in enumerate(stream, 1) if line.strip()
                )
    except (UnicodeDecodeError, csv.Error) as error:
        msg = f"{str(file)!r} cannot be read ({error}); save it as UTF-8"
        raise DataError(msg) from error


def _object(line: str, file: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        msg = f"{str(file)!r}, line {number} is no JSON ({error.msg}); a list of another form must end with .csv"
        raise DataError(msg) from error
    if not isinstance(row, dict):
        msg = f"{str(file)!r}, line {number} holds {type(row).__name__}; give an object with path and label"
        raise DataError(msg)
    return row


def _text(row: dict[str, Any], key: str, where: str) -> str:
    value = row.get(key)
    if value is None or value == "" or isinstance(value, list | dict):
        msg = f"{where}: `{key}` is {value!r}; every row needs path and label"
        raise DataError(msg)
    return str(value)


def _split(row: dict[str, Any], where: str) -> str:
    value = row.get("split")
    if value in (None, ""):
        return ALL
    split = SPLIT_NAMES.get(str(value).lower())
    if split is None:
        msg = f"{where}: split {value!r} is unknown; use train, val or test"
        raise DataError(msg)
    return split
