"""Programs that run for a host: their lines are passed on as they come, and they end when the host is gone."""

import contextlib
import ctypes
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO

from deploy.child import PR_SET_PDEATHSIG, how_it_ended

# The folder that a program is started in must not be searched for modules, as `python -m` would.
CODE = "import sys; sys.path[0] = sys.argv.pop(1); from deploy.__main__ import main; sys.exit(main(sys.argv[1:]))"
KEPT_LINES = 200
SAY_EVERY_S = 10.0


class HostGoneError(Exception):
    """The host has closed the connection: what runs for it is of no use to anyone."""


class RemoteError(Exception):
    """A command of this package ended with an error of its own.

    Args:
        code: its exit code, which says what kind of error it is.
        message: what it said.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


@dataclass(frozen=True)
class Done:
    """A program that has ended.

    Attributes:
        code: its exit code.
        output: what it wrote to its standard output.
        lines: the last ones of its standard error stream.
    """

    code: int
    output: str
    lines: tuple[str, ...]


def device_command(python: Path, package: Path, *arguments: str) -> list[str]:
    """Return the command that runs `python -m deploy` of an unpacked device package in an environment."""
    return [str(python), "-c", CODE, str(package), *arguments]


def run(
    command: Sequence[str],
    *,
    folder: Path,
    on_line: Callable[[str], None],
    host: IO[bytes],
    on_wait: Callable[[float], None] = lambda _: None,
    environment: Mapping[str, str] | None = None,
) -> Done:
    """Run a program in a folder to its end.

    Args:
        command: the program and its arguments.
        folder: to run it in.
        on_line: called with each line of its standard error stream.
        host: the stream that the host keeps open.
        on_wait: called with the seconds that have passed, every `SAY_EVERY_S` in which the program said nothing.
        environment: variables besides this process's own.

    Raises:
        HostGoneError: the host closed its stream; the program and all that it started have been killed.
        OSError: the program could not be started.
    """
    child = subprocess.Popen(
        command,
        cwd=folder,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        preexec_fn=partial(_die_with, os.getpid()) if sys.platform == "linux" else None,  # noqa: PLW1509 - one thread
    )
    try:
        output, lines = _listen(child, on_line=on_line, on_wait=on_wait, host=host)
        return Done(child.wait(), output, tuple(lines[-KEPT_LINES:]))
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        for stream in (child.stdout, child.stderr):
            if stream is not None:
                stream.close()


def _die_with(parent: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it ended before it could be asked for
        os._exit(1)


def _listen(
    child: "subprocess.Popen[bytes]",
    *,
    on_line: Callable[[str], None],
    on_wait: Callable[[float], None],
    host: IO[bytes],
) -> tuple[str, list[str]]:
    """Read both streams to their ends; the host's must have nothing to say meanwhile but that it is gone."""
    output, rest, lines = bytearray(), b"", []
    began = time.monotonic()
    with selectors.DefaultSelector() as selector:
        for stream in (child.stdout, child.stderr, host):
            assert stream is not None  # pipes
            selector.register(stream, selectors.EVENT_READ)
        while selector.get_map().keys() - {host.fileno()}:
            ready = selector.select(SAY_EVERY_S)
            if not ready:
                on_wait(time.monotonic() - began)
            for key, _ in ready:
                if key.fileobj is host:
                    raise HostGoneError
                piece = os.read(key.fd, 1 << 16)
                if not piece:
                    selector.unregister(key.fileobj)
                elif key.fileobj is child.stdout:
                    output += piece
                else:
                    *whole, rest = (rest + piece).split(b"\n")
                    for line in whole:
                        lines.append(line.decode(errors="replace").rstrip("\r"))
                        on_line(lines[-1])
    if rest:
        lines.append(rest.decode(errors="replace"))
        on_line(lines[-1])
    return output.decode(errors="replace"), lines


def reason_of(done: Done) -> str:
    """Return what a command of this package said when it failed, without the word "error"; else how it ended."""
    for line in done.lines:
        if line.startswith("error: "):
            return line.removeprefix("error: ")
    last = next((line for line in reversed(done.lines) if line.strip()), "")
    return f"what ran there {how_it_ended(done.code, last.encode())}; `slad doctor` tries each runtime by itself"
