"""A JSON document of this package: read once, then asked for fields by dotted name, with errors that name both."""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from deploy.errors import DeployError

SCHEMA = 1


class Document:
    """One checked JSON object.

    Attributes:
        path: the file, for messages.
        error: raised for every fault, so that a bundle and a manifest keep their own exit codes.
        remedy: the last words of every message: what the user can do.
    """

    def __init__(self, path: Path, content: Mapping[str, Any], *, error: type[DeployError], remedy: str) -> None:
        self.path = path
        self.content = content
        self.error = error
        self.remedy = remedy

    def fail(self, what: str) -> NoReturn:
        """Raise an error about this file."""
        msg = f"{self.path}: {what}; {self.remedy}"
        raise self.error(msg)

    def get(self, key: str) -> Any:
        """Return the value of a dotted key.

        Raises:
            DeployError: of the document's own kind, when a part of the key is missing.
        """
        value: Any = self.content
        for part in key.split("."):
            if not isinstance(value, dict) or part not in value:
                self.fail(f"key `{key}` is missing")
            value = value[part]
        return value

    def text(self, key: str) -> str:
        """Return a string that is not empty."""
        value = self.get(key)
        if not isinstance(value, str) or not value:
            self.fail(f"`{key}` should be a string that is not empty, got {value!r}")
        return value

    def choice(self, key: str, known: tuple[str, ...]) -> str:
        """Return a string that is one of `known`."""
        value = self.text(key)
        if value not in known:
            self.fail(f"`{key}` should be one of {', '.join(known)}, got {value!r}")
        return value

    def integer(self, key: str, *, minimum: int = 1) -> int:
        """Return an integer of at least `minimum`; `true` is no integer here."""
        value = self.get(key)
        if type(value) is not int or value < minimum:
            self.fail(f"`{key}` should be an integer of {minimum} or more, got {value!r}")
        return value

    def number(self, key: str) -> float:
        """Return a finite number."""
        value = self.get(key)
        if not _is_number(value):
            self.fail(f"`{key}` should be a number, got {_short(value)}")
        return float(value)

    def texts(self, key: str) -> tuple[str, ...]:
        """Return a list of at least one string."""
        value = self.get(key)
        if not isinstance(value, list) or not value or not all(isinstance(item, str) for item in value):
            self.fail(f"`{key}` should be a list of strings, got {_short(value)}")
        return tuple(value)

    def integers(self, key: str, *, length: int) -> tuple[int, ...]:
        """Return a list of exactly `length` integers of 1 or more."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != length or not all(type(v) is int and v > 0 for v in value):
            self.fail(f"`{key}` should be {length} integers of 1 or more, got {_short(value)}")
        return tuple(value)

    def numbers(self, key: str, *, length: int) -> tuple[float, ...]:
        """Return a list of exactly `length` finite numbers."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != length or not all(_is_number(v) for v in value):
            self.fail(f"`{key}` should be {length} numbers, got {_short(value)}")
        return tuple(float(v) for v in value)

    def mapping(self, key: str) -> dict[str, Any]:
        """Return an object."""
        value = self.get(key)
        if not isinstance(value, dict):
            self.fail(f"`{key}` should be an object, got {_short(value)}")
        return value


def read_document(path: Path, *, error: type[DeployError], remedy: str, schema: int = SCHEMA) -> Document:
    """Read a JSON object and check its `schema`.

    Raises:
        DeployError: of kind `error`, when the file is missing, is no JSON object, or has another schema version.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError):
        msg = f"{path}: no such file; {remedy}"
        raise error(msg) from None
    except OSError as cause:
        msg = f"{path}: cannot be read ({cause.strerror}); {remedy}"
        raise error(msg) from cause
    except UnicodeDecodeError as cause:
        msg = f"{path}: is not valid JSON ({cause}); {remedy}"
        raise error(msg) from cause
    return parse_document(text, path=path, error=error, remedy=remedy, schema=schema)


def parse_document(text: str, *, path: Path, error: type[DeployError], remedy: str, schema: int = SCHEMA) -> Document:
    """Take a text for the JSON object of a file; see `read_document`."""
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as cause:
        msg = f"{path}: is not valid JSON ({str(cause).splitlines()[0]}); {remedy}"
        raise error(msg) from cause
    if not isinstance(content, dict):
        msg = f"{path}: should hold a JSON object, got {_short(content)}; {remedy}"
        raise error(msg)
    document = Document(path, content, error=error, remedy=remedy)
    theirs = document.get("schema")
    if type(theirs) is not int or theirs != schema:
        document.fail(f"has schema {theirs!r}, this slad-edge reads schema {schema}")
    return document


def _is_number(value: object) -> bool:
    return type(value) in (int, float) and math.isfinite(value)  # type: ignore[arg-type]


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
