"""The host's side of a deployment, as a user has it: a folder with parameters and bundles, and the commands."""

import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

from tests.interrupts import heard
from tests.sshd import Sshd

ROOT = Path(__file__).parents[2]
SERVER = b"exec(base64."  # in the command of the device's server
STEP_LIMIT_S = 120


@dataclass(frozen=True)
class Done:
    """How a command ended, with the lines of its standard error stream."""

    code: int
    output: str
    lines: list[str]

    @property
    def error(self) -> str:
        """The one line that says what went wrong, and nothing that only a programmer could read."""
        assert not any("Traceback" in line for line in self.lines), "\n".join(self.lines)
        (found,) = [line for line in self.lines if line.startswith("error: ")] or [f"no error in {self.lines}"]
        return found


def device_at(folder: Path, name: str, **environment: str) -> Sshd:
    """A device whose environments find numpy, Pillow and the runtime without a network."""
    here = {"PYTHONPATH": sysconfig.get_paths()["purelib"], "OMP_NUM_THREADS": "1"}
    return Sshd(folder, name=name, environment=here | environment)


class Desk:
    """A project's folder with a model, and targets on devices.

    Args:
        folder: not there yet.
        models: folders of bundles of the same form.
        devices: that are reached by their names.
    """

    def __init__(self, folder: Path, models: list[Path], *devices: Sshd) -> None:
        self.folder, self._models = folder, models
        self.onnx = folder / "artifacts/onnx"
        folder.mkdir(parents=True)
        self.ssh_config = folder / "ssh_config"
        self.ssh_config.write_text("".join(f"Include {device.folder / 'ssh_config'}\n" for device in devices))
        self.environment = {
            **os.environ, "PYTHONPATH": str(ROOT), "SLAD_SSH": shlex.join(["ssh", "-F", str(self.ssh_config)]),
            "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        self._targets: dict[str, dict] = {}
        for device in devices:
            self.target(device.name, host=device.name)
            picture(device.home / "image.png")
        self.model(0)

    def target(self, name: str, *, host: str | None = None, **install: object) -> None:
        """Adds a target, or changes how one is installed."""
        section = self._targets.setdefault(
            name,
            {
                "runtime": "onnxruntime", "threads": 1, "host": host,
                "install": {"python": sys.executable, "disk_mb": 1, "memory_mb": 1},
                "variants": {"fp32": {"onnx": "fp32", "precision": "fp32"}},
            },
        )  # fmt: skip
        section["install"] |= install
        self._write()

    def remove(self, name: str) -> None:
        """Takes a target out."""
        del self._targets[name]
        self._write()

    def _write(self) -> None:
        measure = {"profile": "quick", "scenarios": ["SingleStream"], "queries": 64, "seconds": 0.01, "attempts": 1}
        content = {"targets": self._targets, "seed": 0, "measure": measure}
        (self.folder / "params.yaml").write_text(yaml.safe_dump(content, sort_keys=False))

    def reset(self, name: str) -> None:
        """Lets a release of the first model serve, installed as by default."""
        host = self._targets.pop(name)["host"]
        self.target(name, host=host)
        self.model(0)
        self.deployed(name)

    def model(self, number: int) -> None:
        """Puts another model in the place of the one there is."""
        shutil.rmtree(self.onnx / "fp32", ignore_errors=True)
        shutil.copytree(self._models[number % len(self._models)], self.onnx / "fp32")

    def start(self, *arguments: str) -> "subprocess.Popen[str]":
        """Starts `slad`, or the stage that the first argument names."""
        module = ["stages"] if not arguments[0].startswith("stages.") else []
        return subprocess.Popen(
            [sys.executable, "-m", *module, *arguments],
            cwd=self.folder,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=heard,  # noqa: PLW1509 - it calls nothing that another thread could hold
        )

    def slad(self, *arguments: str, on_line: Callable[[str], object] = lambda line: None) -> Done:
        """Runs it to its end; `on_line` is called with each line of its standard error stream as it comes."""
        process = self.start(*arguments)
        lines = []
        for line in process.stderr:
            lines.append(line.rstrip("\n"))
            on_line(lines[-1])
        output = process.stdout.read()
        process.stdout.close()
        process.stderr.close()
        return Done(process.wait(timeout=STEP_LIMIT_S), output, lines)

    def deploy(self, name: str, **options) -> Done:
        """Deploys the model to a target."""
        return self.slad("deploy", "--target", name, "--variant", "fp32", **options)

    def deployed(self, name: str, **options) -> Done:
        """Deploys, which must go well."""
        done = self.deploy(name, **options)
        assert done.code == 0, "\n".join(done.lines)
        return done

    def releases(self, name: str) -> Mapping:
        """What `status --json` says of a target."""
        done = self.slad("status", "--target", name, "--json")
        assert done.code == 0, done.lines
        return json.loads(done.output)[name]


def picture(path: Path) -> None:
    """Writes an image with no symmetry."""
    image = Image.new("RGB", (16, 16))
    image.putdata([(16 * x, 16 * y, x * y) for y in range(16) for x in range(16)])
    image.save(path)


def answer(device: Sshd, target: str, *, folder: str = "slad-edge") -> str:
    """What the release that serves says of an image, on the device itself."""
    done = device.run(f"{folder}/targets/{target}/current/run image.png")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("image.png\t"), done
    return done.stdout


def leftovers(device: Sshd, *, folder: str = "slad-edge") -> list[str]:
    """What lies on a device and nothing needs: temporary names, parts, files and folders that no release uses."""
    root = device.home / folder
    mine = [path for path in root.rglob("*") if "environments" not in path.relative_to(root).parts[:-1]]
    found = [path for path in mine if path.name.startswith(".") or path.suffix == ".part"]
    found += [path for path in (root / "blobs").glob("*") if path.stat().st_nlink == 1]
    records = [json.loads(file.read_text()) for file in root.glob("targets/*/releases/*/release.json")]
    found += [each for each in root.glob("packages/*") if each.name not in {record["package"] for record in records}]
    needed = {record["environment"] for record in records}
    needed |= {file.read_text() for file in root.glob("targets/*/work/environment")}
    found += [each for each in root.glob("environments/*") if each.name not in needed]
    found += [each for each in root.glob("targets/*/releases/*") if not (each / "release.json").is_file()]
    return sorted({str(path.relative_to(root)) for path in found})


def serving(device: Sshd, target: str) -> str | None:
    """The name of the release that serves, by the link alone."""
    link = device.home / "slad-edge/targets" / target / "current"
    return link.readlink().name if link.is_symlink() else None


def forget_others(device: Sshd, target: str) -> None:
    """Removes all releases of a target but the one that serves, and what was sent for them."""
    for folder in (device.home / "slad-edge/targets" / target / "releases").iterdir():
        if folder.name != serving(device, target):
            shutil.rmtree(folder)
    for blob in (device.home / "slad-edge/blobs").iterdir():
        if blob.stat().st_nlink == 1:
            blob.unlink()


def idle(device: Sshd) -> None:
    """Fails where something still runs that a session has started: all of it ends when its host is gone."""
    end = time.monotonic() + STEP_LIMIT_S / 4
    while found := device.sessions():
        if time.monotonic() > end:
            commands = [Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ") for pid in found]
            pytest.fail(f"{device.name} still runs {commands}")
        time.sleep(0.05)


def servers(device: Sshd) -> list[int]:
    """The processes that answer hosts on a device."""
    return [pid for pid in device.sessions() if _is_server(pid)]


def _is_server(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return b"python" in words[0] and any(SERVER in word for word in words)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    """Sends a signal to a process that may have ended."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return
