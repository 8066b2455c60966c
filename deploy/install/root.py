"""The folder on a device that all of this lies in.

blobs/                   what was sent, by content
packages/<sha256>/       this package, unpacked, one folder for each of its versions
environments/<key>/      third-party packages
targets/<target>/
    work/                what the stages probe, compile and measure use
    releases/<number>-<content>/
    current              link to the release that serves
"""

import contextlib
import fcntl
import os
import select
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from deploy.errors import DeviceError
from deploy.files import cache_folder
from deploy.install.process import SAY_EVERY_S, Done, HostGoneError, device_command, run
from deploy.install.store import Store

LOCK = "device.lock"
WAIT_S = 0.5
FOR_A_HOST = {"SLAD_FOR_A_HOST": "1"}  # see `deploy.__main__`


@dataclass(frozen=True)
class Root:
    """The folder, and who it works for.

    Attributes:
        folder: absolute.
        package: the unpacked package that runs, below it.
        say: takes lines for the user.
        host: stream that the host keeps open.
    """

    folder: Path
    package: Path
    say: Callable[[str], None]
    host: IO[bytes]

    @property
    def store(self) -> Store:
        """What was sent."""
        return Store(self.folder / "blobs")

    @property
    def environments(self) -> Path:
        """Folder of the environments."""
        return self.folder / "environments"

    def target(self, name: str) -> Path:
        """Return the folder of a target."""
        return self.folder / "targets" / name

    def run(self, command: Sequence[str], *, folder: Path, doing: str) -> Done:
        """Run a program quietly; one that takes long is said to be `doing` what it does."""
        return run(
            command,
            folder=folder,
            on_line=lambda _: None,
            host=self.host,
            on_wait=lambda seconds: self.say(f"{doing}, {seconds:.0f} s"),
        )

    def deploy(self, environment: str, *arguments: str, folder: Path, package: Path | None = None) -> Done:
        """Run `python -m deploy` in an environment, and pass on its lines but for the error it ends with.

        Args:
            environment: key of the environment.
            arguments: of the command.
            folder: to run it in.
            package: another version of this package.

        Raises:
            DeviceError: the environment is not there any more, or the package.
            HostGoneError: the host is gone.
        """
        python, package = self.environments / environment / "bin/python", package or self.package
        for needed in (python, package):
            if not needed.exists():
                msg = f"{needed} is not there any more; deploy again"
                raise DeviceError(msg)
        command = device_command(python, package, *arguments)
        return run(command, folder=folder, on_line=self._pass_on, host=self.host, environment=FOR_A_HOST)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the device, for all folders of this account: two at a time would spoil each other's measurements.

        Raises:
            DeviceError: nothing can be written to the folder.
            HostGoneError: the host is gone.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        if not os.access(self.folder, os.W_OK):
            msg = (
                f"{self.folder} is read-only, or closed to this account; mend that, or choose another `install.folder`"
            )
            raise DeviceError(msg)
        lock = cache_folder() / LOCK
        lock.parent.mkdir(parents=True, exist_ok=True)
        with lock.open("a+") as file:
            self._wait_for(file)
            with contextlib.suppress(OSError):  # a full disk must not keep anyone from rolling back
                file.truncate(0)
                os.write(file.fileno(), f"{os.getpid()}\n".encode())  # no buffer: closing would write it again
            yield

    def _wait_for(self, file: IO[str]) -> None:
        said = -SAY_EVERY_S
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pass
            else:
                return
            if time.monotonic() - said >= SAY_EVERY_S:
                said = time.monotonic()
                file.seek(0)
                self.say(f"waiting: process {file.read().strip() or 'unknown'} works on the device")
            if _has_ended(self.host, WAIT_S):
                raise HostGoneError

    def _pass_on(self, line: str) -> None:
        if not line.startswith("error: "):
            self.say(line)


def _has_ended(stream: IO[bytes], seconds: float) -> bool:
    """Wait for a stream that has nothing to say but that it has ended."""
    return bool(select.select([stream], [], [], seconds)[0])
