"""A target on another machine in the real `dvc` and `slad`: one like any other, but for where its engines are."""

import hashlib
import json
import os
import re
import shutil
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.clone import BIN, TARGETS, Clone, stages_of
from tests.sshd import Sshd

pytestmark = pytest.mark.slow

PROBES = [f"probe@{name}" for name in ("device", *TARGETS)]
OWN = ("probe@device", "compile@device", "measure@device")
SENT = re.compile(r"sending ([\d.]+) MB, (\d+) of \d+ files")


@dataclass(frozen=True, kw_only=True)
class Remote(Clone):
    """A clone with a target `device`, and the machine that this names."""

    device: Sshd
    overlay: Path
    first: str

    @property
    def work(self) -> Path:
        """What the target's stages use on the device."""
        return self.device.home / "slad-edge/targets/device/work"

    def record(self) -> dict:
        """The measurement record of the target."""
        return json.loads((self.root / "reports/device.json").read_text())

    def blobs(self) -> dict[str, int]:
        """Bytes of all that the device holds of what it was sent, by hash."""
        return {file.name: file.stat().st_size for file in (self.device.home / "slad-edge/blobs").iterdir()}


@pytest.fixture(scope="module")
def remote(finished, tmp_path_factory) -> Iterator[Remote]:
    """A copy of the finished clone, after `slad repro` with a target on another machine."""
    folder = tmp_path_factory.mktemp("remote")
    shutil.copytree(finished.root, folder / "clone")
    overlay = folder / "overlay"
    overlay.mkdir()
    seen = {
        "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": f"{overlay}{os.pathsep}{sysconfig.get_paths()['purelib']}",
    }
    with Sshd(folder / "device", name="shelf", environment=seen) as device:
        environment = {"SLAD_SSH": " ".join(device.command)}
        clone = Clone(folder / "clone", environment)
        done = clone.run(
            "slad", "repro", "experiment=quick", "+target@targets.device=cpu-onnxruntime",
            "targets.device.host=shelf", "+targets.device.install.packages=[]",
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        assert sorted(stages_of(done)) == sorted(
            ["guard", *PROBES, "compile@device", "measure@device", "report", "check"]
        )
        first = done.stdout + done.stderr
        yield Remote(root=clone.root, environment=environment, device=device, overlay=overlay, first=first)


def test_its_stages_run_on_the_device_and_only_manifests_come_back(remote):
    compiled = remote.root / "artifacts/compiled/device"
    names = {file.relative_to(compiled).as_posix() for file in compiled.rglob("*") if file.is_file()}
    assert names == {"fp32/manifest.json", "int8/manifest.json", "skipped.json"}
    for variant, measured in remote.record()["variants"].items():
        manifest = json.loads((compiled / variant / "manifest.json").read_text())
        (engine,) = (remote.work / "engines" / variant).glob("engine.*")
        assert hashlib.sha256(engine.read_bytes()).hexdigest() == measured["engine_sha256"]
        assert manifest["engine"]["sha256"] == measured["engine_sha256"]
        assert measured["accuracy"]["count"] == 450


def test_the_table_and_the_report_have_it_and_name_no_machine(remote):
    rows = [line.split()[0] for line in remote.first.splitlines() if line.startswith(("device ", "cpu-"))]
    told = {name for name in rows if not name.endswith(":")}  # the stages' own lines
    assert told == {"device", *TARGETS}
    assert set(json.loads((remote.root / "reports/summary.json").read_text())["targets"]) == told
    assert "<h3>device" in (remote.root / "reports/report.html").read_text()
    assert not [file for file in (remote.root / "reports").iterdir() if b"shelf" in file.read_bytes()]


def test_a_second_repro_asks_the_devices_and_runs_nothing_else(remote):
    assert sorted(remote.all_ran("dvc", "repro")) == sorted(PROBES)


def test_only_what_changed_is_sent(remote):
    assert [int(count) for _, count in SENT.findall(remote.first)] == [6, 452]  # two bundles; the test images
    before = remote.blobs()
    assert remote.run("slad", "sync", "quantize.subset_size=64").returncode == 0
    done = remote.run("dvc", "repro", "measure@device")
    assert done.returncode == 0, done.stdout + done.stderr
    assert stages_of(done) == ["guard", "quantize@int8", *OWN]
    bundle = {sha256_of(file): file.stat().st_size for file in (remote.root / "artifacts/onnx/int8").iterdir()}
    [(megabytes, count)] = SENT.findall(done.stdout + done.stderr)
    new = {sha256: size for sha256, size in remote.blobs().items() if sha256 not in before}
    model = new.keys() & bundle.keys()
    assert (float(megabytes), int(count)) == (round(sum(new[sha256] for sha256 in model) / 1e6, 2), len(model))
    assert sum(new[sha256] for sha256 in new.keys() - model) < 10_000  # the fingerprint and the section
    assert "environment" not in done.stdout + done.stderr


def test_an_engine_that_is_gone_from_the_device_is_told_with_the_command_that_mends_it(remote):
    shutil.rmtree(remote.work / "engines/int8")
    assert remote.run("slad", "sync", "measure.queries=65").returncode == 0
    done = remote.run("dvc", "repro", "measure@device")
    assert done.returncode != 0
    (line,) = (text for text in done.stderr.splitlines() if text.startswith("error: "))
    assert "its engines of 'device' are not those of artifacts/compiled/device (int8)" in line
    command = line.split("`")[1]
    assert command == "dvc repro -sf compile@device"
    assert remote.all_ran(*command.split()) == ["compile@device"]
    assert remote.all_ran("dvc", "repro", "measure@device") == ["probe@device", "measure@device"]


def test_a_device_that_does_not_answer_stops_everything_before_it_runs(remote):
    before = remote.outputs()
    remote.device.stop()
    done = remote.run("slad", "repro", "distill.rank=4")
    remote.device.start()
    assert (done.returncode, done.stdout) == (10, "")
    assert re.fullmatch(
        "error: nothing was run: target 'device': device 'shelf': it does not answer .*`slad doctor` says more\n",
        done.stderr,
    )
    assert remote.outputs() == before
    assert "distill.rank" not in (remote.root / "params.yaml").read_text()


def test_another_runtime_on_the_device_is_built_for_and_measured_anew(remote):
    """As an upgrade there makes it, and back: a latency that was measured with another version is never taken."""
    installed = remote.record()["runtime_version"]
    package = Path(find_spec("onnxruntime").origin).parent
    other = remote.overlay / "onnxruntime"
    other.mkdir()
    for each in package.iterdir():
        if each.name not in ("__init__.py", "__pycache__"):
            (other / each.name).symlink_to(each)
    (other / "__init__.py").write_text((package / "__init__.py").read_text() + "\n__version__ = '99.1.0'\n")
    assert remote.all_ran("dvc", "repro", "measure@device") == list(OWN)
    assert remote.record()["runtime_version"] == "99.1.0"
    shutil.rmtree(other)
    assert remote.all_ran("dvc", "repro", "measure@device") == list(OWN)
    assert remote.record()["runtime_version"] == installed


def test_the_doctor_examines_the_device_and_spec_has_its_name(remote):
    done = remote.run("slad", "doctor", "--target", "device", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["here"], found["failed"]) == (None, {})
    report = found["devices"]["device"]
    assert report["targets"]["device"]["verdict"] == "will work"
    assert report["facts"]["system"]["interpreter"].startswith(str(remote.device.home))
    assert json.loads(remote.run("slad", "spec", "device").stdout)["host"] == "shelf"


def sha256_of(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()
