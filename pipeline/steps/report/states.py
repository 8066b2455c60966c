"""What a record says of a device, as rows of a table: nested keys joined by dots, a spread of values in one cell."""

from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.steps.report import figures
from pipeline.steps.report.documents import Json

TIMES = ("before", "during", "after")
SPREAD = ("min", "low", "median", "max")  # of one quantity over cores or time


def flatten(record: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """Nested keys as dotted ones, in order; a list of records by number, and a spread as one text."""
    for key, found in record.items():
        numbered = isinstance(found, list) and any(isinstance(item, Mapping) for item in found)
        value = {str(number): item for number, item in enumerate(found)} if numbered else found
        if not isinstance(value, Mapping):
            yield f"{prefix}{key}", value
        elif value and set(value) <= set(SPREAD):
            yield f"{prefix}{key}", ", ".join(f"{name} {figures.plain(value[name])}" for name in value)
        elif value:
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", []


def rows(state: Json) -> list[tuple[str, ...]]:
    """(what, before, during, after) of a device's state; "-" where it was not recorded at that time."""
    found = [dict(flatten(state.get(when) or {})) for when in TIMES]
    keys = dict.fromkeys(key for each in found for key in each)
    return [(key, *(figures.plain(each[key]) if key in each else "-" for each in found)) for key in keys]
