"""The base package and one runtime, alone in a new environment, do all that a device must do."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime"])
def test_a_device_needs_no_host_package(finished, tmp_path, runtime):
    python = tmp_path / "venv/bin/python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    install = [python, "-m", "pip", "install", "-q", "-c", ROOT / "constraints.txt", f"{ROOT}[{runtime}]"]
    subprocess.run(install, check=True, capture_output=True)
    target = f"cpu-{runtime}"
    spec = yaml.safe_load((finished.root / "params.yaml").read_text())["targets"][target]
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    onnx, test_images = finished.root / "artifacts/onnx", sorted((finished.root / "images").rglob("*.png"))[:3]

    def deploy(command, *arguments):
        line = [python, "-I", "-m", "deploy", command, *arguments]
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    here = ("--target", target, "--device", "device.json", "--spec", "spec.json", "--onnx", onnx)
    asked = ("--target", target, "--spec", "spec.json")
    assert "verdict" in deploy("doctor", *asked)
    deploy("fingerprint", *asked, "--output", "device.json")
    deploy("build", *here, "--output", "engines")
    measuring = (
        "--queries",
        "64",
        "--seconds",
        "0.1",
        "--profile",
        "quick",
        "--data",
        finished.root / "artifacts/data",
    )
    deploy("measure", *here, *measuring, "--engines", "engines", "--output", "measured")
    printed = deploy("run", "--bundle", onnx / "int8", "--engine", "engines/int8", *test_images)
    tested = deploy("selftest", "--bundle", onnx / "int8", "--engine", "engines/int8")

    assert tested.startswith(f"int8 on {target}: relative error ")
    assert [line.split("\t")[0] for line in printed.splitlines()] == [str(image) for image in test_images]
    record = json.loads((tmp_path / "measured/record.json").read_text())
    ours = json.loads((finished.root / f"reports/{target}.json").read_text())
    accuracy = {name: variant["accuracy"] for name, variant in record["variants"].items()}
    assert accuracy == {name: variant["accuracy"] for name, variant in ours["variants"].items()}
    listed = subprocess.run([python, "-m", "pip", "list", "--format=json"], check=True, capture_output=True, text=True)
    names = {package["name"] for package in json.loads(listed.stdout)}
    assert not names & {"torch", "timm", "dvc", "nncf", "hydra-core", "pydantic", "rich", "typer"}
