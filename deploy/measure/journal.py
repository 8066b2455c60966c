"""Answers as they come, on disk: a run that was ended on a slow device goes on where it was."""

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray


class Journal:
    """Two files that only grow: rows of int64, and the logits of some items in float32.

    The files carry the hash of all that decides about the answers in their name, so that another engine or other data
    begin anew. What was cut short by a kill is dropped: only items whose row and logits are both whole count.

    Args:
        folder: made where it is missing; holds one journal.
        about: what decides about the answers, JSON values.
        row: shape of a row.
        logits: shape of the logits of one item.
        kept: places of the items whose logits are kept, rising.
    """

    def __init__(
        self,
        folder: Path,
        about: Mapping[str, Any],
        *,
        row: tuple[int, ...],
        logits: tuple[int, ...],
        kept: Sequence[int],
    ) -> None:
        self._row, self._logits, self._kept = row, logits, list(kept)
        told = json.dumps([dict(about), row, logits, self._kept], sort_keys=True)
        key = hashlib.sha256(told.encode()).hexdigest()[:16]
        self._paths = (folder / f"{key}.rows", folder / f"{key}.logits")
        folder.mkdir(parents=True, exist_ok=True)
        for other in folder.iterdir():
            if other not in self._paths:
                other.unlink()
        self._cut()
        self._streams: tuple[BinaryIO, BinaryIO] = (self._paths[0].open("ab"), self._paths[1].open("ab"))

    def __enter__(self) -> "Journal":
        """Return the journal; at the end its files are closed, and stay."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close the files."""
        with contextlib.suppress(OSError):  # a full disk has been told of by the write that met it
            self.flush()
        for stream in self._streams:
            with contextlib.suppress(OSError):
                stream.close()

    def rows(self) -> list[NDArray[np.int64]]:
        """Return what is kept of the items so far."""
        return list(np.fromfile(self._paths[0], np.int64).reshape(-1, *self._row))

    def logits(self) -> NDArray[np.float32]:
        """Return the kept logits so far, of shape (items, ...)."""
        self.flush()
        return np.fromfile(self._paths[1], np.float32).reshape(-1, *self._logits)

    def add(self, row: NDArray[np.int64], logits: NDArray[np.float32]) -> None:
        """Take the next item."""
        if self._next in self._wanted:
            self._streams[1].write(logits.tobytes())
        self._streams[0].write(np.ascontiguousarray(row, np.int64).tobytes())
        self._next += 1

    def flush(self) -> None:
        """Hand what was added to the system, the logits first: a row counts only with them."""
        for stream in reversed(self._streams):
            stream.flush()

    def _cut(self) -> None:
        """Cut both files to the items that are whole in both."""
        self._wanted = frozenset(self._kept)
        sizes = [8 * int(np.prod(self._row)), 4 * int(np.prod(self._logits))]
        found = [path.stat().st_size if path.exists() else 0 for path in self._paths]
        have = [there // size for there, size in zip(found, sizes, strict=True)]
        whole = next((place for nth, place in enumerate(self._kept) if nth >= have[1]), have[0])
        self._next = min(have[0], whole)
        ends = (self._next, sum(place < self._next for place in self._kept))
        for path, size, end in zip(self._paths, sizes, ends, strict=True):
            with path.open("ab") as stream:
                os.truncate(stream.fileno(), end * size)
