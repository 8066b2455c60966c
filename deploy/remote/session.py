"""One connection to a device: greets it, gives it this package, asks what `deploy.install.server` answers."""

import contextlib
import json
import shlex
import time
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

from deploy.errors import BundleError, DeployError, DeviceError, error_of
from deploy.remote.ssh import Pipe, plain
from deploy.remote.trees import Blob, Tree, hashes
from deploy.remote.wheel import Wheel, device_wheel
from deploy.target import Install, Target

BOOT = (Path(__file__).parent / "boot.py").read_text(encoding="utf-8")
HELLO = b"slad-edge device: "
OLDEST = (3, 10)
PIECE = 1 << 20
SAY_EVERY_S = 2.0
WORTH_SAYING = 10_000  # bytes
ATTEMPTS = 2  # what the device's disk, or a cut, has damaged is sent once more

Say = Callable[[str], None]


class Session:
    """Asks a device; see `connected`.

    Args:
        pipe: to the device.
        host: its name, for messages.
        say: takes lines for the user.
    """

    def __init__(self, pipe: Pipe, host: str, say: Say) -> None:
        self._pipe, self._host, self._say = pipe, host, say

    def ask(self, do: str, **request: Any) -> Any:
        """Ask for something, pass on what the device says meanwhile, and return its answer.

        Raises:
            DeployError: what went wrong there, as the kind of error that it would be here.
            DeviceError: the connection is lost.
        """
        self._write(json.dumps({"do": do, **request}).encode() + b"\n")
        return self._answer()

    def send(self, blobs: Sequence[Blob]) -> int:
        """Send what the device has not, and the rest of what was cut short; return the bytes that were sent.

        Raises:
            DeviceError: the device cannot take it, or the connection is lost.
        """
        wanted = {blob.sha256: blob for blob in blobs}
        sent = 0
        for _ in range(ATTEMPTS):
            left = self._lacking(wanted)
            if not left:
                return sent
            sent += self._send(left, of=len(wanted))
        left = self._lacking(wanted)
        if left:
            first = next((str(blob.source) for blob, _ in left if isinstance(blob.source, Path)), "a text")
            msg = (
                f"device {self._host!r}: {len(left)} files arrived with another content than was listed, first "
                f"{first}; has it changed? `dvc repro` lists it again"
            )
            raise DeviceError(msg)
        return sent

    def check_out(self, tree: Tree, folder: str, *, target: str) -> int:
        """Send a tree, and lay it out as a folder of the target's work; return the bytes that were sent."""
        sent = self.send(list(tree.values()))
        self.ask("check_out", target=target, folder=folder, files=hashes(tree))
        return sent

    def fetch(self, folder: str, patterns: Sequence[str], into: Path, *, target: str) -> None:
        """Copy files of a folder of the target's work into one here.

        Args:
            folder: below the target's folder of work.
            patterns: globs below it.
            into: existing folder.
            target: its name.

        Raises:
            DeviceError: a path leaves the folder, or the connection is lost.
        """
        found = self.ask("fetch", target=target, folder=folder, patterns=list(patterns))
        with understood(self._host):
            files = [(name, (into / name).resolve(), int(size)) for name, size in found.items()]
        for name, file, size in files:
            if into.resolve() not in file.parents:
                msg = f"device {self._host!r}: it names a file {name!r}, which leaves its folder; is it your device?"
                raise DeviceError(msg)
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("wb") as stream:
                self._read(size, stream)

    def tidy(self) -> None:
        """Have what nobody needs any more removed; that it cannot be is told, and spoils nothing."""
        try:
            self.ask("prune")
        except DeployError as error:
            self._say(f"warning: what is not needed any more was not removed: {error}")

    def _lacking(self, wanted: Mapping[str, Blob]) -> list[tuple[Blob, int]]:
        """Return what the device has not, each with the bytes of it that it has.

        Raises:
            DeviceError: it has not the room.
        """
        found = self.ask("lacking", files=[(blob.sha256, blob.size) for blob in wanted.values()])
        with understood(self._host):
            left = [(wanted[sha256], range(wanted[sha256].size + 1)[begun]) for sha256, begun in found["begun"].items()]
            free = int(found["free"])
        needed = sum(blob.size - begun for blob, begun in left)
        if needed > free:
            msg = (
                f"device {self._host!r}: {needed / 1e6:.0f} MB are to be sent, and {free / 1e6:.0f} MB of its "
                "disk are free; make room"
            )
            raise DeviceError(msg)
        return left

    def _send(self, left: Sequence[tuple[Blob, int]], *, of: int) -> int:
        total = sum(blob.size - offset for blob, offset in left)
        if total >= WORTH_SAYING:
            self._say(f"sending {total / 1e6:.2f} MB, {len(left)} of {of} files")
        self._write(json.dumps({"do": "receive", "files": [(b.sha256, b.size) for b, _ in left]}).encode() + b"\n")
        sent, said = 0, time.monotonic()
        for blob, offset in left:
            for piece in _pieces(blob, offset):
                self._write(piece)
                sent += len(piece)
                if time.monotonic() - said >= SAY_EVERY_S:
                    said = time.monotonic()
                    self._say(f"sent {sent / 1e6:.1f} of {total / 1e6:.1f} MB")
        self._answer()
        return sent

    def _answer(self) -> Any:
        while (line := self._pipe.answers.readline()).endswith(b"\n"):
            with understood(self._host):
                found = json.loads(line)
                if "done" in found:
                    return found["done"]
                words, kind = (found["say"], None) if "say" in found else (found["error"], error_of(found["code"]))
            if kind is not None:
                msg = f"device {self._host!r}: {plain(words)}"
                raise kind(msg)
            self._say(plain(words))
        raise self._pipe.failure(began=True)

    def _write(self, content: bytes) -> None:
        try:
            self._pipe.requests.write(content)
            self._pipe.requests.flush()
        except BrokenPipeError:
            self._refused()

    def _refused(self) -> NoReturn:
        """Say why the device has stopped listening: it may have told."""
        self._answer()
        raise self._pipe.failure(began=True)

    def _read(self, size: int, stream: BinaryIO) -> None:
        while size:
            piece = self._pipe.answers.read(min(size, PIECE))
            if not piece:
                raise self._pipe.failure(began=True)
            stream.write(piece)
            size -= len(piece)


@contextlib.contextmanager
def understood(host: str) -> Iterator[None]:
    """Turn what an answer lacks, or has too much, into an error that names the device.

    Raises:
        DeviceError: the block could not make sense of the answer.
    """
    try:
        yield
    except (AttributeError, LookupError, TypeError, ValueError) as cause:
        msg = (
            f"device {host!r}: its answer makes no sense ({type(cause).__name__}: {plain(cause)}); does something "
            "there write to the output of each session?"
        )
        raise DeviceError(msg) from cause


@contextlib.contextmanager
def connected(target: Target, *, say: Say) -> Iterator[Session]:
    """Connect to a target's device, greet it, check that it can serve, and give it this package.

    Args:
        target: with a `host`.
        say: takes lines for the user.

    Raises:
        DeviceError: it cannot be reached, or is no Linux with Python 3.10, or of another architecture.
    """
    assert target.host is not None  # checked by who calls
    wheel = device_wheel()
    asked = {
        "folder": target.install.folder, "sha256": wheel.sha256, "bytes": len(wheel.content), "python": OLDEST,
    }  # fmt: skip
    # In letters that mean nothing to any shell: the account's may be another one than sh.
    code, argument = (b64encode(text.encode()).decode() for text in (BOOT, json.dumps(asked)))
    start = f"import base64;exec(base64.b64decode('{code}'))"
    pipe = Pipe(target.host, shlex.join([target.install.python, "-I", "-c", start, argument]))
    try:
        _greet(pipe, target, host=target.host, wheel=wheel, say=say)
        yield Session(pipe, target.host, say)
    finally:
        pipe.close()


def _greet(pipe: Pipe, target: Target, *, host: str, wheel: Wheel, say: Say) -> None:
    """Hear what the device is, and give it this package where it is not there."""
    with understood(host):
        hello = _hear(pipe, began=False)
        _check(hello, target.install, host=host)
        if hello["there"]:
            return
    say(f"sending the device package, {len(wheel.content) / 1e3:.0f} kB")
    with contextlib.suppress(BrokenPipeError):  # its answer tells more
        pipe.requests.write(wheel.content)
        pipe.requests.flush()
    with understood(host):
        if (error := _hear(pipe, began=True)["error"]) is not None:
            msg = (
                f"device {host!r}: the package cannot be unpacked in {plain(hello['root'])} ({plain(error)}); check "
                "the free space, and whether this account may write there"
            )
            raise DeviceError(msg)


def _hear(pipe: Pipe, *, began: bool) -> dict[str, Any]:
    """Read on to a line of the boot program: an account's start-up files may print what they like."""
    for line in iter(pipe.answers.readline, b""):
        if line.startswith(HELLO):
            content: dict[str, Any] = json.loads(line[len(HELLO) :])
            return content
    raise pipe.failure(began=began)


def _check(hello: dict[str, Any], install: Install, *, host: str) -> None:
    faults = []
    if tuple(hello["python"]) < OLDEST:
        found = ".".join(map(str, hello["python"]))
        faults.append(
            f"its {install.python} is Python {found}, 3.10 is the oldest; name a newer one in `install.python`"
        )
    if hello["system"] != "Linux":
        faults.append(f"it runs {hello['system']}; only Linux can be deployed to")
    if install.architecture not in (None, hello["machine"]):
        faults.append(
            f"it is {hello['machine']}, the target says {install.architecture}; is `host` the right one? Else change "
            "`install.architecture`"
        )
    if faults:
        msg = f"device {host!r}: {'; '.join(faults)}"
        raise DeviceError(msg)


def _pieces(blob: Blob, offset: int) -> Iterator[bytes]:
    """Read a blob from a position on; a file that is shorter by now is filled up, and refused by its hash there."""
    if isinstance(blob.source, bytes):
        yield blob.source[offset:]
        return
    left = blob.size - offset
    try:
        with blob.source.open("rb") as stream:
            stream.seek(offset)
            while left:
                piece = stream.read(min(left, PIECE)) or bytes(min(left, PIECE))
                left -= len(piece)
                yield piece
    except OSError as cause:
        msg = f"{blob.source}: cannot be read any more ({cause.strerror}); `dvc repro` lists it again"
        raise BundleError(msg) from cause
