"""The environment that engines run in on a device: a virtual environment with what a runtime needs, made once."""

import contextlib
import hashlib
import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.errors import DeviceError
from deploy.files import remove_folder, write_json
from deploy.install.process import Done
from deploy.install.root import Root

READY = "ready.json"


@dataclass(frozen=True)
class Wanted:
    """What an environment is made of.

    Attributes:
        system_site_packages: whether it sees the packages of the system, such as JetPack's TensorRT.
        requirements: of pip.
        wheels: sha256 of files that were sent, by name; where there are any, pip looks nowhere else.
    """

    system_site_packages: bool
    requirements: Sequence[str]
    wheels: Mapping[str, str]

    @property
    def key(self) -> str:
        """Name it by all that decides what it is, this interpreter too."""
        parts = [
            platform.python_version(), sys.executable, platform.machine(), self.system_site_packages,
            list(self.requirements), dict(self.wheels),
        ]  # fmt: skip
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def is_ready(root: Root, wanted: Wanted) -> bool:
    """Say whether an environment was made whole, and still starts."""
    folder = root.environments / wanted.key
    return (folder / READY).is_file() and _starts(root, folder)


def make_environment(root: Root, wanted: Wanted) -> str:
    """Make an environment where it is not there whole, or does not start any more; return its key.

    A virtual environment cannot be renamed, so it is made in its place, and `ready.json` is written last.

    Raises:
        DeviceError: venv or pip failed; nothing of the environment stays.
        HostGoneError: the host is gone.
    """
    folder = root.environments / wanted.key
    if is_ready(root, wanted):
        return wanted.key
    if (folder / READY).is_file():
        root.say("the environment does not start any more: it is made again")
    if folder.exists():
        remove_folder(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    wheels = root.environments / f".{wanted.key}.wheels"
    with contextlib.ExitStack() as undo:
        undo.callback(shutil.rmtree, wheels, ignore_errors=True)
        with contextlib.ExitStack() as unfinished:
            unfinished.callback(shutil.rmtree, folder, ignore_errors=True)
            _create(root, folder, wanted)
            root.store.check_out(wheels, wanted.wheels)
            _install(root, folder, wanted, wheels)
            os.sync()  # else a power cut could leave empty files beside the mark that says all is there
            write_json(folder / READY, {"requirements": list(wanted.requirements), "wheels": sorted(wanted.wheels)})
            unfinished.pop_all()
    return wanted.key


def interpreter(folder: Path) -> Path:
    """Return an environment's Python."""
    return folder / "bin/python"


def _starts(root: Root, folder: Path) -> bool:
    """Say whether an environment's Python runs: the system's own, which it is a link to, may have been replaced."""
    try:
        check = [str(interpreter(folder)), "-c", "import sys"]
        return root.run(check, folder=folder, doing="starting the environment").code == 0
    except OSError:
        return False


def _create(root: Root, folder: Path, wanted: Wanted) -> None:
    doing = f"making an environment of Python {platform.python_version()}"
    root.say(doing)
    flags = ["--system-site-packages"] if wanted.system_site_packages else []
    # In two steps: venv would keep to itself why pip could not be installed.
    make = [sys.executable, "-m", "venv", "--without-pip", *flags, str(folder)]
    add_pip = [str(interpreter(folder)), "-Im", "ensurepip", "--upgrade", "--default-pip"]
    for command in (make, add_pip):
        done = root.run(command, folder=folder.parent, doing=doing)
        if done.code:
            version = ".".join(platform.python_version_tuple()[:2])
            remedy = "see to what it names"
            if "No module named" in "\n".join(done.lines):
                remedy = f"on Debian and Ubuntu `sudo apt install python{version}-venv`"
            msg = f"{sys.executable} cannot make a virtual environment ({_last_words(done)}); {remedy}"
            raise DeviceError(msg)


def _install(root: Root, folder: Path, wanted: Wanted, wheels: Path) -> None:
    if not wanted.requirements:
        return
    names = ", ".join(requirement.partition(";")[0].strip() for requirement in wanted.requirements)
    doing = f"pip installs what applies of {names}"
    root.say(doing)
    source = ["--no-index", "--find-links", str(wheels)] if wanted.wheels else []
    pip = [str(interpreter(folder)), "-m", "pip", "install", "--disable-pip-version-check", "--no-input", *source]
    done = root.run([*pip, *wanted.requirements], folder=folder.parent, doing=doing)
    if done.code:
        where = "among the wheels that were sent" if wanted.wheels else "in the index that pip uses on the device"
        msg = (
            f"pip cannot install {names} ({_last_words(done)}); is all of it {where}? "
            "`install.packages` and `install.wheels` of the target say what is installed from where"
        )
        raise DeviceError(msg)


def _last_words(done: Done) -> str:
    """Return what pip or venv complained of: the first line that is marked as an error, else the last one."""
    lines = [line.strip() for line in (*done.lines, *done.output.splitlines()) if line.strip()]
    marked = [line for line in lines if line.lower().startswith(("error", "oserror"))]
    return (marked or lines[-1:] or [f"exit code {done.code}"])[0][:300]
