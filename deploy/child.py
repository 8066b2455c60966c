"""Processes of our own: found where this one finds its modules, and gone when it is gone."""

import contextlib
import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, TextIO

PR_SET_PDEATHSIG = 1
# Modules are looked for where the parent looks, wherever either was started.
CODE = "import sys; sys.path[:] = sys.argv[3:]; from deploy.child import begin; begin(*sys.argv[1:3])"


def start(entry: str, **options: Any) -> "subprocess.Popen[Any]":
    """Start `deploy.<entry>.main()` in a process, and a group, of its own.

    Args:
        entry: name of a module of this package.
        options: of `subprocess.Popen`.
    """
    command = [sys.executable, "-c", CODE, entry, str(os.getpid()), *sys.path]
    return subprocess.Popen(command, start_new_session=True, **options)


def end(child: "subprocess.Popen[Any]") -> None:
    """Kill a child and all that it has started, and take its exit code."""
    if child.poll() is None:
        if hasattr(os, "killpg"):
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        else:
            child.kill()
    for stream in (child.stdin, child.stdout, child.stderr):
        if stream is not None:
            with contextlib.suppress(OSError):  # what was written and not read any more
                stream.close()
    child.wait()


def begin(entry: str, parent: str) -> None:
    """Run an entry in the child, which ends with its parent where the system lets it."""
    import importlib

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(parent):  # it ended before it could be asked for
            sys.exit(1)
    importlib.import_module(f"deploy.{entry}").main()


@contextlib.contextmanager
def voice() -> Iterator[TextIO]:
    """Yield the standard output, and send what libraries print there to the standard error stream, from C++ too."""
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as stream:
        os.dup2(2, 1)
        yield stream


def how_it_ended(code: int, printed: bytes) -> str:
    """Say how a child ended, with its last words."""
    if code < 0:
        known = {each.value: each.name for each in signal.Signals}
        how = f"was ended by {known.get(-code, f'signal {-code}')}"
    else:
        how = f"ended with code {code}"
    words = [line.strip() for line in printed.decode(errors="replace").splitlines() if line.strip()]
    return f"{how} ({words[-1][:300]})" if words else how
