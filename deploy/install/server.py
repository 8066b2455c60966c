"""The device's side of a connection: requests on the standard input, one line of JSON each, answers on the output.

A request is {"do": name, ...}; `receive` is followed by the files' bytes. Answers are lines: {"say": text} for the
user, then {"done": value}, or {"code": exit code, "error": text}; `fetch` is followed by the files' bytes. Between a
request and its answer the host says nothing: a stream that ends means that it is gone, and all that runs for it is
ended.
"""

import contextlib
import json
import re
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from deploy.errors import DeployError, DeviceError
from deploy.files import remove_folder, remove_leftovers, system_text, write_text
from deploy.install import environment, releases
from deploy.install.process import HostGoneError, RemoteError, reason_of
from deploy.install.root import Root

Request = Mapping[str, Any]
MEMINFO = Path("/proc/meminfo")
PIECE = 1 << 20
FULL = 10_000_000  # bytes


class Server:
    """Answers one host.

    Args:
        folder: where all of it lies, absolute.
        package: the unpacked package that runs.
        requests: the host's stream.
        answers: to the host.
    """

    def __init__(self, folder: Path, package: Path, requests: BinaryIO, answers: BinaryIO) -> None:
        self._requests, self._answers = requests, answers
        self._root = Root(folder, package, say=lambda line: self._answer({"say": line}), host=requests)
        self._held = contextlib.ExitStack()
        self._following: list[Path] = []
        self._doing: dict[str, Callable[[Request], Any]] = {
            "room": self._room,
            "lock": self._lock,
            "lacking": self._lacking,
            "receive": self._receive,
            "check_out": self._check_out,
            "ready": self._ready,
            "environment": self._environment,
            "command": self._command,
            "fetch": self._fetch,
            "remove": self._remove,
            "install": self._install,
            "roll_back": self._roll_back,
            "status": self._status,
            "prune": self._prune,
        }

    def serve(self) -> None:
        """Answer until the host has no more requests.

        Raises:
            HostGoneError: the host is gone.
            EOFError: it went while it sent files.
        """
        with self._held:
            for line in iter(self._requests.readline, b""):
                request = json.loads(line)
                if not self._answered(request) and request["do"] == "receive":
                    return  # what it still sends is no request

    def _answered(self, request: Request) -> bool:
        """Do what is asked and answer; return whether it went well."""
        try:
            done = self._doing[request["do"]](request)
        except RemoteError as error:
            self._answer({"code": error.code, "error": f"{error}{self._full()}"})
        except DeployError as error:
            self._answer({"code": error.exit_code, "error": str(error)})
        except OSError as error:
            remedy = "check the free space, and whether this account may write there"
            self._answer({"code": DeviceError.exit_code, "error": f"{error}; {remedy}"})
        else:
            self._answer({"done": done})
            self._send()
            return True
        return False

    def _full(self) -> str:
        """Say that the disk is full, where it is: a runtime that cannot write an engine may tell something else."""
        free = shutil.disk_usage(self._root.folder).free
        return f"; only {free / 1e6:.1f} MB of its disk are free, make room" if free < FULL else ""

    def _send(self) -> None:
        """Let the files follow that `fetch` has named."""
        for file in self._following:
            with file.open("rb") as stream:
                shutil.copyfileobj(stream, self._answers, PIECE)
        self._following = []
        self._answers.flush()

    def _answer(self, value: Mapping[str, Any]) -> None:
        self._answers.write(json.dumps(value).encode() + b"\n")
        self._answers.flush()

    def _room(self, request: Request) -> dict[str, Any]:
        """Say what this device has left, in 10^6 bytes, and its time in seconds since 1970."""
        del request
        folder = self._root.folder
        folder.mkdir(parents=True, exist_ok=True)
        found = re.search(r"^MemAvailable:\s*(\d+) kB", system_text(MEMINFO) or "", re.MULTILINE)
        return {
            "disk_mb": shutil.disk_usage(folder).free // 10**6,
            "memory_mb": int(found[1]) * 1024 // 10**6 if found else None,
            "clock": time.time(),
        }

    def _lock(self, request: Request) -> None:
        del request
        self._held.enter_context(self._root.locked())
        if not self._root.package.is_dir():  # another host has pruned it while this one waited
            msg = f"{self._root.package} is not there any more: another release of slad-edge was at work; run it again"
            raise DeviceError(msg)

    def _lacking(self, request: Request) -> dict[str, Any]:
        begun = self._root.store.lacking([(sha256, size) for sha256, size in request["files"]])
        return {"begun": begun, "free": shutil.disk_usage(self._root.folder).free}

    def _receive(self, request: Request) -> list[str]:
        """Take files, and return those that arrived damaged."""
        store = self._root.store
        return [sha256 for sha256, size in request["files"] if not store.receive(sha256, size, self._requests)]

    def _check_out(self, request: Request) -> None:
        self._root.store.check_out(self._work(request) / request["folder"], request["files"])

    def _ready(self, request: Request) -> bool:
        return environment.is_ready(self._root, _environment(request))

    def _environment(self, request: Request) -> str:
        return environment.make_environment(self._root, _environment(request))

    def _command(self, request: Request) -> dict[str, Any]:
        """Run `python -m deploy` in the target's folder of work; return what it printed, and why it failed."""
        work = self._work(request)
        work.mkdir(parents=True, exist_ok=True)
        write_text(work / releases.ENVIRONMENT, request["environment"])
        done = self._root.deploy(request["environment"], *request["arguments"], folder=work)
        if done.code not in (0, *request["good"]):
            raise RemoteError(done.code, reason_of(done))
        return {"output": done.output, "reason": reason_of(done) if done.code else None}

    def _fetch(self, request: Request) -> dict[str, int]:
        """Return the bytes of each file, by path below a folder of work; the files follow in this order."""
        folder = self._work(request) / request["folder"]
        found = (file for pattern in request["patterns"] for file in sorted(folder.glob(pattern)))
        self._following = [file for file in found if file.is_file()]
        return {file.relative_to(folder).as_posix(): file.stat().st_size for file in self._following}

    def _remove(self, request: Request) -> None:
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._work(request) / request["folder"])

    def _install(self, request: Request) -> dict[str, Any]:
        return releases.install(self._root, releases.Wanted(**request["release"]))

    def _roll_back(self, request: Request) -> dict[str, Any]:
        return releases.roll_back(self._root, request["target"], to=request["to"])

    def _status(self, request: Request) -> dict[str, Any]:
        return releases.status(self._root.target(request["target"]))

    def _prune(self, request: Request) -> int:
        """Remove what no target needs any more; return the bytes that are free again."""
        del request
        environments, packages = releases.used(self._root)
        for folder, needed in (
            (self._root.environments, environments),
            (self._root.package.parent, {*packages, self._root.package.name}),
        ):
            # Packages are unpacked before the device is held.
            remove_leftovers(folder, shared=folder == self._root.package.parent)
            for each in folder.glob("[!.]*"):
                if each.name not in needed:
                    remove_folder(each)
        return self._root.store.prune()

    def _work(self, request: Request) -> Path:
        return self._root.target(request["target"]) / "work"


def _environment(request: Request) -> environment.Wanted:
    return environment.Wanted(**request["wanted"])


def main(folder: Path, package: Path, requests: BinaryIO, answers: BinaryIO) -> int:
    """Serve one host; return an exit code that only a log on the device would show."""
    try:
        Server(folder, package, requests, answers).serve()
    except (HostGoneError, EOFError, BrokenPipeError):
        return DeviceError.exit_code
    return 0
