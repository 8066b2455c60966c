"""Files and folders that appear whole or not at all: a temporary name in the same folder, flushed, then renamed."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def sha256_file(path: Path) -> str:
    """Hash a file in pieces of 1 MiB, so that a large model is never held in memory.

    Returns:
        64 lower-case hexadecimal digits.
    """
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while piece := stream.read(1 << 20):
            digest.update(piece)
    return digest.hexdigest()


def system_text(path: Path) -> str | None:
    """Return the stripped text of a file of the system, or None where the system has or shows no such file."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip("\0 \n\t") or None
    except OSError:
        return None


def cache_folder() -> Path:
    """Return the user's folder for what can be made again; a new one of this process where the user has no home."""
    given, home = os.environ.get("XDG_CACHE_HOME"), os.environ.get("HOME")
    if not given and not home:
        return Path(tempfile.mkdtemp(prefix="slad-edge-"))
    return (Path(given) if given else Path(str(home)) / ".cache") / "slad-edge"


def write_bytes(path: Path, content: bytes) -> None:
    """Write `content` so that a reader sees the old file or the whole new one; missing folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    try:
        with temporary.open("wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)  # noqa: PTH105 - the name says that an existing file is replaced
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, content.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON with an indent of 2, keys in their own order, and a final newline.

    Raises:
        ValueError: `value` holds NaN or infinity, which JSON does not have.
    """
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def replaced_folder(path: Path) -> Iterator[Path]:
    """Yield an empty sibling folder that takes the place of `path` when the block succeeds.

    Nothing is copied: the old folder is renamed aside, the new one renamed in, the old one removed. When the block
    raises, the new folder is removed and the old one has not been touched. A run that was killed leaves
    `.<name>.new-<pid>` or `.<name>.old-<pid>` behind; the next call removes the first and, where the real folder is
    missing, puts the second back.

    Args:
        path: the folder to replace; it need not exist, its parents are created.

    Yields:
        The temporary folder to fill.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_leftovers(path)
    fresh = path.with_name(f".{path.name}.new-{os.getpid()}")
    fresh.mkdir()
    try:
        yield fresh
        _flush_tree(fresh)
        _swap(path, fresh)
    finally:
        _remove(fresh)


def remove_folder(path: Path) -> None:
    """Remove a folder so that no part of it is ever taken for the whole: its name goes first."""
    gone = path.with_name(f".{path.name}.gone-{os.getpid()}")
    path.rename(gone)
    _remove(gone)


def remove_leftovers(folder: Path, *, shared: bool = False) -> None:
    """Remove what killed runs left of folders that they made or removed.

    Args:
        folder: that they were in.
        shared: whether others may be at work in it: what has the id of a process that runs stays.
    """
    for leftover in folder.glob(".*"):
        if not shared or not _is_running(leftover.name.rpartition("-")[2]):
            _remove(leftover)


def _swap(path: Path, fresh: Path) -> None:
    """Put `fresh` in the place of `path`, and the old `path` back should that fail."""
    old = path.with_name(f".{path.name}.old-{os.getpid()}")
    had_old = os.path.lexists(path)
    if had_old:
        path.rename(old)
    try:
        fresh.rename(path)
    except OSError:
        if had_old:
            old.rename(path)
        raise
    flush_folder(path.parent)
    _remove(old)


def _clean_leftovers(path: Path) -> None:
    """Undo what killed runs left beside `path`; folders of processes that still run stay."""
    for kind in ("old", "new"):
        for leftover in sorted(path.parent.glob(f".{path.name}.{kind}-*")):
            if _is_running(leftover.name.rpartition("-")[2]):
                continue
            if kind == "old" and not os.path.lexists(path):
                leftover.rename(path)
            else:
                _remove(leftover)


def _is_running(pid: str) -> bool:
    """Say whether another live process has this id: its folder is then in use, not left over."""
    if not pid.isdecimal() or int(pid) == os.getpid():
        return False
    if os.name != "posix":
        return True  # elsewhere os.kill asks nothing, it ends the process
    try:
        os.kill(int(pid), 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush_tree(folder: Path) -> None:
    """Force to disk what runtimes wrote without fsync, before a rename makes it the only copy."""
    for entry in folder.rglob("*"):
        if entry.is_file():
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())


def flush_folder(folder: Path) -> None:
    """Force a rename to disk, where the system lets a folder be opened (POSIX)."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
