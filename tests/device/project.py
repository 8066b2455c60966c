"""A project that has a target on a device: a folder of its own, where each stage and command runs as a user runs it."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sshd import Sshd

ROOT = Path(__file__).parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
DIGITS = ("artifacts/onnx/fp32", "artifacts/onnx/int8", "artifacts/data")


class Project:
    """A folder with parameters composed of the configurations of this repository.

    Args:
        folder: an existing, empty folder.
        device: that targets are reached by.
        overrides: of the configurations.
    """

    def __init__(self, folder: Path, device: Sshd, *overrides: str) -> None:
        self.folder = folder
        self._environment = {**os.environ, "PYTHONPATH": str(ROOT), "SLAD_SSH": shlex.join(device.command)}
        (folder / "configs").symlink_to(ROOT / "configs")
        done = self.slad("sync", *overrides)
        assert done.returncode == 0, done.stderr

    def take_digits(self) -> None:
        """Let the project have the digits' student that this repository made; skip the test where it has none."""
        missing = [name for name in DIGITS if not (ROOT / name).is_dir()]
        if missing:
            pytest.skip(f"{', '.join(missing)}: not there; run `slad repro` first")
        labels = json.loads((ROOT / "artifacts/data/index.json").read_text())["labels"]
        if labels != [str(digit) for digit in range(10)]:
            pytest.skip("artifacts/data is not of the digits; run `slad repro --reset` first")
        for name in DIGITS:
            (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (self.folder / name).symlink_to(ROOT / name)

    def slad(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the command `slad`."""
        return self._run("stages", *arguments)

    def stage(self, name: str, target: str) -> subprocess.CompletedProcess[str]:
        """Run a target's stage by the command of dvc.yaml."""
        command = DVC[name]["do"]["cmd"].replace("${key}", target)
        return self._run(*shlex.split(command)[2:])

    def deploy(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `python -m deploy`."""
        return self._run("deploy", *arguments)

    def json(self, name: str) -> Any:
        """Read a file."""
        return json.loads((self.folder / name).read_text())

    def _run(self, module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        return subprocess.run(
            command, cwd=self.folder, env=self._environment, capture_output=True, text=True, check=False
        )
