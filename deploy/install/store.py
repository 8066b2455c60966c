"""What a device was sent, by content: a file that is there already is never sent again, one cut short goes on."""

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from deploy.errors import DeviceError
from deploy.files import replaced_folder, sha256_file

PIECE = 1 << 20
PART = ".part"


class Store:
    """Files by their sha256, read-only, in one folder; what was received of others lies beside them as `.part`.

    Args:
        folder: of the files; made when it is needed.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lacking(self, wanted: Sequence[tuple[str, int]]) -> dict[str, int]:
        """Say what must still be sent.

        Every file is read: one that the device's disk has damaged is removed, and sent again.

        Args:
            wanted: sha256 and bytes of each file.

        Returns:
            Bytes that are here already, by the sha256 of each file that is not here whole.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        found = {}
        for sha256, size in wanted:
            file, part = self._folder / sha256, self._part(sha256)
            if file.is_file() and file.stat().st_size == size and sha256_file(file) == sha256:
                continue
            file.unlink(missing_ok=True)
            begun = part.stat().st_size if part.is_file() else 0
            if begun > size:
                part.unlink()
                begun = 0
            found[sha256] = begun
        return found

    def receive(self, sha256: str, size: int, stream: BinaryIO) -> bool:
        """Take what is missing of a file from a stream.

        Args:
            sha256: of the whole file.
            size: of the whole file, in bytes.
            stream: gives what follows the bytes that `lacking` counted.

        Returns:
            Whether the file is here now; False where its content is not what was named, and nothing of it stays.

        Raises:
            EOFError: the stream ended early; what came stays for the next time.
            OSError: the file could not be written, and nothing of it stays: the disk may be full.
        """
        part = self._part(sha256)
        try:
            with part.open("ab") as file:
                while (left := size - file.tell()) > 0:
                    piece = stream.read(min(PIECE, left))
                    if not piece:
                        raise EOFError
                    file.write(piece)
                file.flush()
                os.fsync(file.fileno())
        except OSError:
            part.unlink(missing_ok=True)
            raise
        if sha256_file(part) != sha256:
            part.unlink()
            return False
        part.replace(self._folder / sha256)
        (self._folder / sha256).chmod(0o444)  # not before: a part that a kill leaves here must be open to writing
        return True

    def lay_out(self, folder: Path, files: Mapping[str, str]) -> None:
        """Make a folder of files that are here: links where the file system has them, which take no room.

        Args:
            folder: an existing folder.
            files: sha256 by relative POSIX path.

        Raises:
            DeviceError: a path leaves the folder, or a file is not here.
        """
        for name, sha256 in files.items():
            pure = PurePosixPath(name)
            if pure.is_absolute() or ".." in pure.parts or not (self._folder / sha256).is_file():
                msg = f"{folder}: {name!r} leaves the folder or was not sent ({sha256[:12]}); deploy again"
                raise DeviceError(msg)
            there = folder / pure
            there.parent.mkdir(parents=True, exist_ok=True)
            link(self._folder / sha256, there)

    def check_out(self, folder: Path, files: Mapping[str, str]) -> None:
        """Replace a folder by one of files that are here, whole or not at all; see `lay_out`."""
        with replaced_folder(folder) as fresh:
            self.lay_out(fresh, files)

    def prune(self) -> int:
        """Remove what no folder has a link to, and what was cut short; return the bytes that are free again.

        Where the file system has no links, all is sent again the next time.
        """
        freed = 0
        for file in self._folder.glob("*"):
            status = file.stat()
            if status.st_nlink == 1:
                file.unlink()
                freed += status.st_size
        return freed

    def _part(self, sha256: str) -> Path:
        return self._folder / f"{sha256}{PART}"


def link(file: str | Path, there: str | Path) -> None:
    """Give a file a second name; a copy where the file system cannot."""
    try:
        os.link(file, there)
    except OSError:
        shutil.copyfile(file, there)
