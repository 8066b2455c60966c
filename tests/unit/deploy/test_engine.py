import json
import shutil
import sys

import pytest

from deploy import engine as module
from deploy.engine import load_engine, read_manifest, write_manifest
from deploy.errors import EngineError, RuntimeMissingError


@pytest.fixture
def folder(engines):
    return engines / "fp32"


@pytest.fixture
def never_loaded(monkeypatch):
    """Loading a foreign engine can crash the process, so the runtime must not even be asked."""
    monkeypatch.setattr(module, "get_runtime", lambda name: pytest.fail("the runtime was reached"))


def test_manifest_is_the_contracts(folder, device, runtime):
    content = json.loads((folder / "manifest.json").read_text())
    assert list(content) == [
        "schema", "target", "variant", "precision", "runtime", "runtime_version", "onnx_sha256", "bundle_variant",
        "engine", "options", "device", "build_seconds",
    ]  # fmt: skip
    assert set(content["engine"]) == {"file", "sha256", "bytes"}
    assert content["device"] == device
    assert content["runtime_version"] == device["runtime_version"]


def test_manifest_round_trip(folder, tmp_path):
    manifest = read_manifest(folder)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_engine_loads_on_its_own_device(folder, device):
    loaded = load_engine(folder, device=device, threads=1)
    assert loaded.manifest.variant == "fp32"
    assert loaded.load_seconds > 0


def test_engine_serves_a_target_of_another_name(folder, device):
    assert load_engine(folder, device={**device, "target": "other"}).engine


@pytest.mark.usefixtures("never_loaded")
def test_tampered_engine(folder, device):
    path = next(folder.glob("engine.*"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(EngineError, match=r"it has sha256 \w{12}, \w{12} in the manifest; .*compile@here"):
        load_engine(folder, device=device)


@pytest.mark.usefixtures("never_loaded")
def test_truncated_engine(folder, device):
    path = next(folder.glob("engine.*"))
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(EngineError, match=r"it has 100 bytes, \d+ in the manifest"):
        load_engine(folder, device=device)


@pytest.mark.usefixtures("never_loaded")
def test_missing_engine_and_missing_folder(folder, device, tmp_path):
    next(folder.glob("engine.*")).unlink()
    with pytest.raises(EngineError, match="the file is missing"):
        load_engine(folder, device=device)
    with pytest.raises(EngineError, match=r"manifest\.json: no such file; build it with `dvc repro compile@"):
        load_engine(tmp_path / "none", device=device)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize(
    ("key", "value", "phrase"),
    [
        ("machine_id", "0" * 16, "machine_id '.*' here, '0{16}' in the manifest"),
        ("architecture", "aarch64", "architecture '.*' here, 'aarch64' in the manifest"),
        ("python", "3.10.1", "python '.*' here, '3.10.1' in the manifest"),
        ("cpu", {"model": "Cortex", "cores": 6, "features": []}, "cpu.model '.*' here, 'Cortex' in the manifest"),
        ("runtime_version", "1.0", "runtime_version '.*' here, '1.0' in the manifest"),
    ],
)
def test_engine_of_another_machine(folder, device, edit, key, value, phrase):
    edit(folder / "manifest.json", **{f"device__{key}": value})
    with pytest.raises(EngineError, match=f"{phrase}.*; build it again with `dvc repro -f compile@here`"):
        load_engine(folder, device=device)


@pytest.mark.usefixtures("never_loaded")
def test_runtime_version_of_the_manifest_itself_counts(folder, device, edit):
    edit(folder / "manifest.json", runtime_version="0.1")
    with pytest.raises(EngineError, match=r"runtime_version '.*' here, '0\.1' in the manifest"):
        load_engine(folder, device=device)


@pytest.mark.usefixtures("never_loaded")
def test_other_number_of_threads_is_stale(folder, device):
    with pytest.raises(EngineError, match="threads 2 asked for, 1 in the manifest"):
        load_engine(folder, device=device, threads=2)


@pytest.mark.usefixtures("never_loaded")
@pytest.mark.parametrize("name", ["../engine", "/engine", "..", "a\\b"])
def test_engine_file_outside_its_folder(folder, device, edit, name):
    edit(folder / "manifest.json", engine__file=name)
    with pytest.raises(EngineError, match=r"`engine\.file` .* leaves the engine's folder"):
        load_engine(folder, device=device)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "fp64"}, "`precision` should be one of"),
        ({"engine": {}}, r"key `engine\.file` is missing"),
        ({"options": []}, "`options` should be an object"),
        ({"schema": 9}, "has schema 9"),
        ({"build_seconds": "x"}, "`build_seconds` should be a number"),
    ],
)
def test_faulty_manifest(folder, edit, changes, message):
    edit(folder / "manifest.json", **changes)
    with pytest.raises(EngineError, match=message):
        read_manifest(folder)


def test_runtime_that_is_gone(folder, device, runtime, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(RuntimeMissingError):
        load_engine(folder, device=device)


def test_engine_of_the_other_runtime_is_foreign(built, device, runtime, tmp_path):
    other = next(name for name in built if name != runtime)
    shutil.copytree(built[other] / "fp32", tmp_path / "other")
    with pytest.raises(EngineError, match=f"runtime '{runtime}' here, '{other}' in the manifest"):
        load_engine(tmp_path / "other", device=device)
