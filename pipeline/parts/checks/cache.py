"""What was seen of files that have not changed since."""

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType

from pipeline.base.progress import notice
from pipeline.parts.checks.look import Seen

PATIENCE = 60.0  # seconds for which another process may write
VERSION = 1  # of what a look finds; another one forgets everything


class Cache:
    """A file of what was seen, by path and by what the file system says of the file.

    Args:
        file: SQLite database, made where there is none; one that is damaged is begun anew, and one that cannot be used
            is done without. None keeps nothing.
    """

    def __init__(self, file: Path | None) -> None:
        self._file = file
        self._base = None if file is None else _opened(file)

    def __enter__(self) -> "Cache":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._base is not None:
            self._base.close()

    def get(self, path: Path, stamp: str) -> Seen | None:
        """Returns what was seen of a file that had this `stamp`."""
        if self._base is None:
            return None
        wanted = "SELECT seen FROM seen WHERE path = ? AND stamp = ?"
        try:
            row = self._base.execute(wanted, (str(path), stamp)).fetchone()
        except sqlite3.Error as error:
            self._give_up(error)
            return None
        if row is None:
            return None
        content = json.loads(row[0])
        return Seen(**content | {"pixels": tuple(map(tuple, content["pixels"]))})

    def put(self, seen: Iterable[tuple[Path, str, Seen]]) -> None:
        """Keeps what was seen of files, by path and stamp."""
        if self._base is None:
            return
        rows = [(str(path), stamp, json.dumps(asdict(one))) for path, stamp, one in seen]
        try:
            with self._base:
                self._base.executemany("INSERT OR REPLACE INTO seen VALUES (?, ?, ?)", rows)
        except sqlite3.Error as error:
            self._give_up(error)

    def _give_up(self, error: sqlite3.Error) -> None:
        """Goes on without the file: it cannot be written, the disk is full, a page of it is damaged."""
        _say_unusable(self._file, error)
        if self._base is not None:
            self._base.close()
        self._base = None


def stamp_of(path: Path) -> str:
    """Returns what tells a changed file: size, times, inode.

    The change time, which nobody can set, tells of a file that was replaced by one of the same size and date.

    Raises:
        OSError: there is no such file.
    """
    stat = path.stat()
    return f"{stat.st_size}-{stat.st_mtime_ns}-{stat.st_ctime_ns}-{stat.st_ino}"


def _opened(file: Path) -> sqlite3.Connection | None:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _open(file)
        except sqlite3.OperationalError:  # it is locked, or cannot be written: no reason to begin anew
            raise
        except sqlite3.DatabaseError as error:
            notice(f"{str(file)!r} is damaged ({error}): it is begun anew, and all files are read again")
            file.unlink()
            return _open(file)
    except (OSError, sqlite3.OperationalError) as error:
        _say_unusable(file, error)
        return None


def _say_unusable(file: Path | None, error: Exception) -> None:
    notice(f"{str(file)!r} cannot be used ({error}): files are read again, now and the next time")


def _open(file: Path) -> sqlite3.Connection:
    base = sqlite3.connect(file, timeout=PATIENCE)
    if base.execute("PRAGMA user_version").fetchone()[0] != VERSION:
        base.execute("DROP TABLE IF EXISTS seen")
        base.execute("CREATE TABLE seen (path TEXT PRIMARY KEY, stamp TEXT, seen TEXT)")
        base.execute(f"PRAGMA user_version = {VERSION}")
    base.execute("SELECT count(*) FROM seen WHERE path = ''").fetchone()
    return base
