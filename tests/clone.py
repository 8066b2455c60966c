"""A repository with the working tree's files, in which tests drive the real `dvc` and `slad`."""

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
BIN = Path(sys.executable).parent
TARGETS = ("cpu-openvino", "cpu-onnxruntime")


@dataclass(frozen=True)
class Clone:
    """A repository.

    Attributes:
        root: its folder.
        environment: of its commands, besides the test's own.
    """

    root: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def run(self, *command: str) -> subprocess.CompletedProcess[str]:
        """Runs a command of this environment in the clone, with the clone's own packages."""
        environment = {key: value for key, value in os.environ.items() if not key.startswith("DVC_")}
        environment |= {"PATH": f"{BIN}{os.pathsep}{environment['PATH']}", "PYTHONPATH": str(self.root)}
        return subprocess.run(
            command,
            cwd=self.root,
            env={**environment, **self.environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )

    def ran(self, *command: str) -> list[str]:
        """Runs a command that must succeed, and returns the stages that it ran, but for those that always run."""
        return [stage for stage in self.all_ran(*command) if not stage.startswith("probe@")]

    def all_ran(self, *command: str) -> list[str]:
        """Runs a command that must succeed, and returns the stages that it ran."""
        done = self.run(*command)
        assert done.returncode == 0, done.stdout + done.stderr
        return stages_of(done)

    def outputs(self) -> dict[str, bytes]:
        """Every output by path."""
        files = [*self.root.glob("artifacts/**/*"), *self.root.glob("reports/*")]
        return {str(file.relative_to(self.root)): file.read_bytes() for file in files if file.is_file()}


def stages_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    """The stages that a command of DVC began."""
    return [line.split("'")[1] for line in done.stdout.splitlines() if line.startswith("Running stage")]


def made_clone(root: Path) -> Clone:
    """Copies the working tree into an empty folder, and commits it."""
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).is_file():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, root / name)
    git = ["git", "-c", "user.name=test", "-c", "user.email=test@example.com"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "start"]):
        subprocess.run([*git, *command], cwd=root, check=True)
    for key, value in (("user.name", "test"), ("user.email", "test@example.com")):
        subprocess.run(["git", "config", key, value], cwd=root, check=True)
    return Clone(root)
