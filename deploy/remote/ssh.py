"""The system's OpenSSH: the user's own configuration, agent, jump hosts and checks of host keys, none of them changed.

`SLAD_SSH` names another program, or options of it: "ssh -F other_config". Nothing is ever asked on the terminal: what
ssh would have to ask (a password, an unknown host key) is an error that says what to do.
"""

import contextlib
import os
import re
import shlex
import subprocess
import threading
from typing import BinaryIO, NamedTuple, cast

from deploy.errors import DeviceError

VARIABLE = "SLAD_SSH"
FAILED = 255  # ssh's own exit code for what went wrong between the machines
KEPT = 8192
# Only where the user's configuration leaves them at their defaults: a dead connection would never be noticed.
DEFAULTS = {"serveraliveinterval": ("0", "ServerAliveInterval=15"), "connecttimeout": ("none", "ConnectTimeout=30")}


class Cause(NamedTuple):
    """What ssh says when something is wrong, and what to do."""

    pattern: str
    what: str
    remedy: str


CAUSES = (
    Cause(
        "REMOTE HOST IDENTIFICATION HAS CHANGED",
        "its host key is not the one that this machine knows",
        "if the device was set up anew, remove the old key with `ssh-keygen -R` and log in by `ssh` once; if not, "
        "somebody else may be answering",
    ),
    Cause(
        "Host key verification failed",
        "its host key is not known to this machine",
        "log in by `ssh` once, and compare the key's fingerprint",
    ),
    Cause(
        r"Permission denied \(",  # a banner may have the words
        "it refuses the keys that ssh offers",
        "copy yours with `ssh-copy-id`, or name it in ~/.ssh/config; passwords are not asked for",
    ),
    Cause("Could not resolve hostname", "its name is not known", "check `host` of the target, and ~/.ssh/config"),
    Cause(
        "Connection refused|timed out|No route to host|Network is unreachable|Host is down|Connection closed by|"
        "Connection reset|kex_exchange",
        "it does not answer",
        "is it switched on and in the network, and does its sshd run?",
    ),
)
DROPPED = ("the connection was lost", "run it again: what has arrived is not sent again")
FAILED_TO_CONNECT = ("ssh cannot connect", "try `ssh` by hand with the same name")


class Pipe:
    """A program on another machine, and the two streams to it.

    Args:
        host: as ssh takes it.
        command: for the shell there.

    Attributes:
        requests: its standard input.
        answers: its standard output.

    Raises:
        DeviceError: there is no ssh here.
    """

    def __init__(self, host: str, command: str) -> None:
        self._host = host
        program = ssh_program()
        try:
            options = _defaults(program, host)
            self._process = subprocess.Popen(
                [*program, "-T", "-o", "BatchMode=yes", *options, "--", host, command],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,  # Ctrl-C ends it by our hand, after what we have to say
            )
        except OSError as cause:
            msg = (
                f"{program[0]!r} cannot be started ({cause.strerror}); install OpenSSH's client, or set {VARIABLE} to "
                "another program"
            )
            raise DeviceError(msg) from cause
        self.requests = cast("BinaryIO", self._process.stdin)
        self.answers = cast("BinaryIO", self._process.stdout)
        self._said = bytearray()
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()

    def close(self) -> None:
        """End the connection: at the other end the stream of requests ends, and so does what runs there."""
        with contextlib.suppress(OSError):
            self.requests.close()
        try:
            self._process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._listener.join(timeout=10)
        self.answers.close()

    def failure(self, *, began: bool) -> DeviceError:
        """Say why the other end fell silent.

        Args:
            began: whether it has spoken before.
        """
        self.close()
        said, code = self._said.decode(errors="replace"), self._process.returncode
        lines = [plain(line.strip()) for line in said.splitlines() if line.strip() and not line.startswith("@")]
        last = f" ({lines[-1][:300]})" if lines else ""
        if code == FAILED:
            for cause in () if began else CAUSES:
                if re.search(cause.pattern, said):
                    return DeviceError(f"device {self._host!r}: {cause.what}{last}; {cause.remedy}")
            what, remedy = DROPPED if began else FAILED_TO_CONNECT
            return DeviceError(f"device {self._host!r}: {what}{last}; {remedy}")
        if code in (126, 127):
            remedy = "install Python 3.10 or later, or name it in `install.python` of the target"
            return DeviceError(f"device {self._host!r}: Python cannot be started there{last}; {remedy}")
        return DeviceError(f"device {self._host!r}: what ran there ended with code {code}{last}; run it again")

    def _listen(self) -> None:
        assert self._process.stderr is not None  # a pipe
        while piece := self._process.stderr.read1(1024):  # type: ignore[attr-defined]
            self._said = (self._said + piece)[-KEPT:]
        self._process.stderr.close()


def plain(words: object) -> str:
    """Return what another machine says without what a terminal would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in str(words))


def ssh_program() -> list[str]:
    """Return the program and its options.

    Raises:
        DeviceError: the variable is no command.
    """
    text = os.environ.get(VARIABLE, "").strip() or "ssh"
    try:
        return shlex.split(text)
    except ValueError as cause:
        msg = f'{VARIABLE} {text!r} is no command ({cause}); set it to something like "ssh -F other_config"'
        raise DeviceError(msg) from cause


def _defaults(program: list[str], host: str) -> list[str]:
    """Return the options that the user's configuration leaves to us."""
    told = subprocess.run(
        [*program, "-G", "--", host], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
    ).stdout
    found = dict(line.split(" ", 1) for line in told.splitlines() if " " in line)
    chosen = [option for key, (default, option) in DEFAULTS.items() if found.get(key) == default]
    return [word for option in chosen for word in ("-o", option)]
