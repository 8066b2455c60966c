"""A device for tests that is reached over SSH: an sshd of the test's own on 127.0.0.1, stopped with all it has started.

    with Sshd(tmp_path, name="device") as device:
        subprocess.run([*device.command, device.name, "echo hello"])

`device.command` is what `SLAD_SSH` takes, as a list. The device has a home of its own, `tmp_path / "home"`, in which
each command starts, as on a real device; the file system is the machine's unless `prefix` leads into another one.
"""

import contextlib
import os
import pwd
import shlex
import shutil
import signal
import socket
import subprocess
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Self

import pytest

PROGRAM = "/usr/sbin/sshd"  # must be absolute: sshd starts itself anew for each connection
MARK = "SLAD_TEST_DEVICE"
SEPARATION = Path("/run/sshd")  # root's sshd does not start without it; a service's start makes it
START_LIMIT_S = 120
WITH_US = ("setpriv", "--pdeathsig", "KILL")  # it ends with the process that started it, also where that is killed
KEY_FILES = ("host_key", "user_key")


def require() -> None:
    """Skip the test, by name, where the machine has no OpenSSH."""
    missing = [name for name in ("ssh", "ssh-keygen", "setpriv", PROGRAM) if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{', '.join(missing)}: not installed; Debian's packages are openssh-server and openssh-client")


class Sshd:
    """An sshd that one key opens, and the configuration of an `ssh` that has this key.

    Args:
        folder: keys, configurations, log and home; it must be empty or not there yet.
        name: how the client calls the device.
        environment: set in each session, over what sshd sets by itself.
        seen: `folder` as the device sees it, where it has a file system of its own.
        prefix: command that runs another one on the device, such as `chroot ROOT`; all that it has started must end
            when it is killed.
    """

    def __init__(
        self,
        folder: Path,
        *,
        name: str = "device",
        environment: Mapping[str, str] | None = None,
        seen: Path | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        require()
        self.folder, self.name = folder, name
        self._seen, self._prefix = seen or folder, list(prefix)
        self._mark = uuid.uuid4().hex
        self._environment = {"HOME": str(self.seen_home), MARK: self._mark, **(environment or {})}
        self._process: subprocess.Popen[bytes] | None = None
        self._port = 0
        (folder / "home").mkdir(parents=True)
        for file in KEY_FILES:
            self._make_key(file)
        shutil.copyfile(folder / "user_key.pub", folder / "authorized_keys")

    @property
    def command(self) -> list[str]:
        """The client that knows the device by `name`."""
        return ["ssh", "-F", str(self.folder / "ssh_config")]

    @property
    def home(self) -> Path:
        """The home of the device, as this machine sees it."""
        return self.folder / "home"

    @property
    def seen_home(self) -> Path:
        """The home of the device, as the device sees it."""
        return self._seen / "home"

    @property
    def log(self) -> str:
        """What sshd has said."""
        return (self.folder / "sshd.log").read_text(errors="replace")

    def run(self, command: str, **options) -> subprocess.CompletedProcess[str]:
        """Run a command line on the device; options are those of `subprocess.run`."""
        options = {"capture_output": True, "text": True, "stdin": subprocess.DEVNULL} | options
        return subprocess.run([*self.command, self.name, command], check=False, **options)

    def start(self) -> None:
        """Start sshd, on the port it had before, and wait until it answers.

        Raises:
            RuntimeError: it ended, or did not answer, with its log.
        """
        if self._port == 0:
            self._choose_port()
        if os.geteuid() == 0 and not self._prefix:
            SEPARATION.mkdir(exist_ok=True)
        with (self.folder / "sshd.log").open("ab") as log:
            self._process = subprocess.Popen(
                [*WITH_US, *self._prefix, PROGRAM, "-D", "-e", "-f", str(self._seen / "sshd_config")],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        end = time.monotonic() + START_LIMIT_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > end:
                self.stop()
                msg = f"sshd does not answer on port {self._port}: {self.log.strip() or 'no message'}"
                raise RuntimeError(msg)
            time.sleep(0.02)

    def stop(self) -> None:
        """End sshd and all that its sessions have started."""
        if self._process is None:
            return
        while found := self.processes():
            _kill(found)
            self._process.poll()  # a dead child is there until its code is taken
        self._process.wait()
        self._process = None

    def restart(self) -> None:
        """Stop as `stop` does, and start on the same port."""
        self.stop()
        self.start()

    def drop(self) -> None:
        """Cut all connections as a network that fails does.

        Clients end with 255. What runs on the device runs on, with closed pipes; `processes` has it.
        """
        parents = _parents()
        own = [pid for pid in self.processes() if _is_sshd(pid)]
        _kill(pid for pid in own if parents.get(pid) in own)  # the topmost one accepts connections

    def change_host_key(self) -> None:
        """Give the device another host key than the one the client knows."""
        self._make_key("host_key")
        self.restart()

    def processes(self) -> list[int]:
        """Return the ids of all processes of the device: sshd, its sessions, and whatever they have started."""
        if self._process is None:
            return []
        return sorted({*descendants(self._process.pid), *self.sessions()})

    def sessions(self) -> list[int]:
        """Return the ids of the processes that the commands of sessions have started."""
        return [pid for pid in _parents() if _has(pid, f"{MARK}={self._mark}")]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def _make_key(self, file: str) -> None:
        path = self.folder / file
        path.unlink(missing_ok=True)
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", file, "-f", path], check=True)

    def _choose_port(self) -> None:
        """Take a free port, and write the configurations that name it."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        (self.folder / "sshd_config").write_text("\n".join([*self._server_lines(), ""]))
        (self.folder / "ssh_config").write_text("\n".join([*self._client_lines(), ""]))
        public = (self.folder / "host_key.pub").read_text()
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self._port} {public}")

    def _server_lines(self) -> Iterator[str]:
        yield "ListenAddress 127.0.0.1"
        yield f"Port {self._port}"
        yield f"HostKey {self._seen / 'host_key'}"
        yield f"AuthorizedKeysFile {self._seen / 'authorized_keys'}"
        yield from ("AuthenticationMethods publickey", "PasswordAuthentication no", "KbdInteractiveAuthentication no")
        yield from ("UsePAM no", "PidFile none", "UseDNS no")
        yield "StrictModes no"  # the folder of a test may lie under one that others can write
        yield "SetEnv " + " ".join(f'"{key}={value}"' for key, value in self._environment.items())
        # A session starts in the user's own home, whatever HOME says.
        yield 'ForceCommand cd && exec "$SHELL" -c "${SSH_ORIGINAL_COMMAND:-exec $SHELL}"'
        if self._takes("PerSourcePenalties=no"):
            yield "PerSourcePenalties no"  # OpenSSH 9.8 and later lock out an address whose connections were cut

    def _takes(self, option: str) -> bool:
        """Say whether this release of sshd has an option."""
        command = [PROGRAM, "-t", "-f", "/dev/null", "-h", str(self._seen / "host_key"), "-o", option]
        done = subprocess.run([*self._prefix, *command], capture_output=True, text=True, check=False)
        return "Bad configuration option" not in done.stderr

    def _client_lines(self) -> Iterator[str]:
        yield f"Host {self.name}"
        yield from ("HostName 127.0.0.1", f"Port {self._port}")
        yield f"User {'root' if self._prefix else pwd.getpwuid(os.getuid()).pw_name}"
        yield f"IdentityFile {shlex.quote(str(self.folder / 'user_key'))}"
        yield from ("IdentitiesOnly yes", "IdentityAgent none", "GlobalKnownHostsFile /dev/null")
        yield f"UserKnownHostsFile {shlex.quote(str(self.folder / 'known_hosts'))}"

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), timeout=START_LIMIT_S) as connection:
                return connection.recv(4) == b"SSH-"
        except (ConnectionError, TimeoutError):
            return False


def descendants(pid: int) -> list[int]:
    """Return the ids of a process and of all below it that have not ended."""
    parents = _parents()
    return [each for each in parents if pid in _line(each, parents)]


def alive(pid: int) -> bool:
    """Say whether a process has not ended; one whose exit code nobody has taken yet has."""
    return pid in _parents()


def _parents() -> dict[int, int]:
    """Return the id of each process of the machine that has not ended, and its parent's."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            state, parent = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[:2]
            if state != "Z":
                found[int(folder.name)] = int(parent)
    return found


def _line(pid: int, parents: Mapping[int, int]) -> Iterator[int]:
    """Yield a process and those above it, up to the first that has ended."""
    while pid in parents:
        yield pid
        pid = parents[pid]


def _kill(pids: Iterable[int]) -> None:
    for pid in pids:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def _is_sshd(pid: int) -> bool:
    """Say whether a process is one of sshd's own; emulated, the emulator is the first word of its command."""
    with contextlib.suppress(OSError):
        words = Path(f"/proc/{pid}/cmdline").read_text(errors="replace").split("\0")[:2]
        return words[0].startswith("sshd") or PROGRAM in words
    return False


def _has(pid: int, setting: str) -> bool:
    try:
        return setting in Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    except OSError:
        return False
