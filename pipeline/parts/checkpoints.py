"""Resumable checkpoints of a training run: one file, replaced whole, and refused where it belongs to another run."""

import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import torch

from pipeline.base.progress import notice

NAME = "last.pt"
State = dict[str, Any]
UNREADABLE = (OSError, RuntimeError, EOFError, LookupError, TypeError, ValueError, BadZipFile, pickle.UnpicklingError)
"""What torch.load raises for files that are no checkpoint."""


class Checkpoints:
    """The last checkpoint of a run.

    Args:
        folder: holds the file; made when needed.
        settings: all that decides about the result; nested mappings of plain values.
        every_s: seconds between two checkpoints at least; 0 saves after every step.
        writes: whether this process is the one that writes.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, Any], every_s: float, writes: bool = True) -> None:
        self._path = folder / NAME
        self._settings = _flat(settings)
        self._every_s, self._writes = every_s, writes
        self._last = time.monotonic()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough."""
        return self._writes and time.monotonic() - self._last >= self._every_s

    def save(self, state: State) -> None:
        """Writes tensors and plain values so that a kill leaves the old file or the new one, whole."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self._path.with_suffix(".tmp")  # one name: a killed run leaves at most one behind
        with temporary.open("wb") as stream:
            torch.save({"settings": self._settings, "state": state}, stream)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(self._path)
        self._last = time.monotonic()

    def load(self) -> State | None:
        """Returns what was saved last; None, with a notice that says why, where that is no use to this run."""
        if not self._path.is_file():
            return None
        try:
            with ZipFile(self._path) as archive:
                damaged = archive.testzip()  # torch.load does not compare checksums
            if damaged is not None:
                raise BadZipFile(damaged)
            content = torch.load(self._path, map_location="cpu", weights_only=True)
            settings, state = content["settings"], content["state"]
        except UNREADABLE as error:
            self._refuse(f"cannot be read ({' '.join(str(error).split())[:120]})")
            return None
        if settings != self._settings:
            ours = self._settings
            keys = sorted(key for key in settings.keys() | ours.keys() if settings.get(key) != ours.get(key))
            shown = "; ".join(f"{key} was {settings.get(key)!r}, is {ours.get(key)!r}" for key in keys[:4])
            more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
            self._refuse(f"belongs to other parameters ({shown}{more})")
            return None
        found: State = state
        return found

    def _refuse(self, reason: str) -> None:
        if self._writes:
            notice(f"the checkpoint {str(self._path)!r} {reason}; training starts from the beginning")


def discard(folder: Path) -> None:
    """Removes the checkpoint in `folder`: the run's output is in its place."""
    path = folder / NAME
    path.unlink(missing_ok=True)
    path.with_suffix(".tmp").unlink(missing_ok=True)


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in settings.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = list(value) if isinstance(value, tuple) else value
    return flat
