"""A project of the smallest size: every stage runs in it by the very command of dvc.yaml."""

import importlib
import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from stages import boundary
from tests import tiny

ROOT = Path(__file__).parents[2]
DVC = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]
SCHEDULE = {
    "epochs": 2,
    "learning_rate": 0.01,
    "weight_decay": 0.01,
    "warmup_epochs": 0.0,
    "clip_norm": 1.0,
    "ema": 0.0,
    "patience": None,
}
CHAIN = (
    "foundation@tiny",
    "guard",
    "prepare",
    "distill",
    "merge",
    "export",
    "quantize@int8",
    "probe@cpu-openvino",
    "probe@cpu-onnxruntime",
    "compile@cpu-openvino",
    "compile@cpu-onnxruntime",
    "measure@cpu-openvino",
    "measure@cpu-onnxruntime",
    "report",
    "check",
)


@dataclass(frozen=True)
class Result:
    """How a stage ended."""

    code: int
    error: str


@dataclass(frozen=True)
class Project:
    """A folder with parameters, configs, images and artifacts."""

    root: Path

    def run(self, stage: str, capsys, monkeypatch) -> Result:
        """Runs a stage as DVC would, in this process."""
        name, _, key = stage.partition("@")
        command = DVC[name].get("do", DVC[name])["cmd"].replace("${key}", key)
        _, _, module, *arguments = shlex.split(command)
        monkeypatch.chdir(self.root)
        monkeypatch.setattr("sys.argv", [module, *arguments])
        monkeypatch.delenv("DVC_EXP_BASELINE_REV", raising=False)
        monkeypatch.setenv("XDG_CACHE_HOME", str(self.root / ".cache"))
        capsys.readouterr()
        code = 0
        try:
            boundary.run(importlib.import_module(module).main)
        except SystemExit as end:
            code = int(end.code or 0)
        return Result(code, capsys.readouterr().err)

    def set(self, **changes) -> None:
        """Changes values by dotted key (a double underscore for the dot), in configs/ and params.yaml alike."""
        for file in (self.root / "params.yaml", self.root / "configs/config.yaml"):
            content = yaml.safe_load(file.read_text())
            for key, value in changes.items():
                *path, last = key.split("__")
                section = content
                for part in path:
                    section = section[part]
                section[last] = value
            file.write_text(yaml.safe_dump(content, sort_keys=False))

    def snapshot(self) -> dict[str, bytes]:
        """Every output by path; what a run that fails leaves for the next one is none."""
        return {
            file.relative_to(self.root).as_posix(): file.read_bytes()
            for folder in ("artifacts", "reports")
            for file in sorted((self.root / folder).rglob("*"))
            if file.is_file() and "checkpoints" not in file.parts
        }


def parameters(images: Path) -> dict:
    """The committed parameters with small models, few images and few queries."""
    content = yaml.safe_load((ROOT / "params.yaml").read_text())
    content["prepare"] |= {
        "source": "folder",
        "path": str(images),
        "watch": str(images),
        "validation_fraction": 0.25,
        "test_fraction": 0.25,
        "calibration_size": 6,
    }
    content["preprocess"] |= {"resize": tiny.SIZE, "crop": [tiny.SIZE, tiny.SIZE]}
    pair = content["foundations"]["grey32"]
    pair |= {"image_size": tiny.SIZE, "classes": 50, "instances": 2, "batch_size": 50}
    for role, which in (("teacher", tiny.TEACHER), ("student", tiny.STUDENT)):
        weights = f"artifacts/foundation/tiny/{role}.safetensors"
        content[role] |= {"weights": weights, "image_size": tiny.SIZE, "overrides": which.overrides}
        pair[role] |= {"overrides": which.overrides, "schedule": SCHEDULE}
    content["foundations"] = {"tiny": pair}
    content["distill"] |= {"schedule": SCHEDULE, "rank": 2, "batch_size": 6}
    content["measure"] |= {"profile": "quick", "queries": 64, "seconds": 0.01, "attempts": 1}
    return content


@pytest.fixture(scope="session")
def finished(tmp_path_factory) -> Project:
    """A project in which every stage has run."""
    root = tmp_path_factory.mktemp("finished")
    images = tiny.write_images(root / "images")
    (root / "configs").mkdir()
    text = yaml.safe_dump(parameters(images), sort_keys=False)
    (root / "params.yaml").write_text(text)
    (root / "configs/config.yaml").write_text(text)
    project = Project(root)
    with pytest.MonkeyPatch.context() as monkeypatch:
        for stage in CHAIN:
            result = project.run(stage, _Silent(), monkeypatch)
            assert result.code == 0, f"{stage}: {result.error}"
    return project


class _Silent:
    """Stands where `capsys` does in a session fixture, which cannot have it."""

    def readouterr(self):
        return self

    err = "see the captured output"


@pytest.fixture
def project(finished, tmp_path) -> Project:
    """A copy of the finished project that a test may spoil."""
    copy = tmp_path / "project"
    shutil.copytree(finished.root, copy)
    copied = Project(copy)
    copied.set(prepare__path=str(copy / "images"), prepare__watch=str(copy / "images"))
    return copied
