import json
import shutil
import sys
from dataclasses import replace

import pytest

from deploy.engine import check_placement, engine_key, load_engine, read_manifest, write_manifest
from deploy.errors import EngineError, RuntimeMissingError
from deploy.runtime import Placement, Settings
from deploy.runtimes import RUNTIMES, get_runtime
from deploy.target import read_target


@pytest.fixture
def folder(engines):
    return engines / "fp32"


@pytest.fixture
def never_loaded(monkeypatch):
    """Loading a foreign engine can crash the process, so the runtime must not even be asked."""
    for name in RUNTIMES:
        monkeypatch.setattr(get_runtime(name), "load", lambda *_: pytest.fail("the runtime was reached"))


def test_manifest_is_the_contracts(folder, device, runtime):
    content = json.loads((folder / "manifest.json").read_text())
    assert list(content) == [
        "schema", "target", "variant", "precision", "runtime", "runtime_version", "onnx_sha256", "bundle_variant",
        "key", "engine", "threads", "options", "told", "placement", "device", "power_mode", "build_seconds",
    ]  # fmt: skip
    assert set(content["engine"]) == {"file", "sha256", "bytes"}
    assert content["device"] == device
    assert content["runtime_version"] == device["runtime_version"]


@pytest.mark.parametrize("threads", [0, 3])
def test_manifest_round_trip(folder, tmp_path, threads):
    manifest = replace(read_manifest(folder), threads=threads)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_engine_loads_on_its_own_device(folder, device, spec_of, runtime):
    loaded = load_engine(folder, device=device, target=read_target("here", spec_of(runtime)))
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
        ("l4t", "36.3", "l4t None here, '36.3' in the manifest"),
        ("place", {"driver": "550.1"}, "place.driver None here, '550.1' in the manifest"),
    ],
)
def test_engine_of_another_machine(folder, device, edit, key, value, phrase):
    edit(folder / "manifest.json", **{f"device__{key}": value})
    with pytest.raises(EngineError, match=f"{phrase}.*; build it again with `dvc repro -sf compile@here`"):
        load_engine(folder, device=device)


@pytest.mark.usefixtures("never_loaded")
def test_runtime_version_of_the_manifest_itself_counts(folder, device, edit):
    edit(folder / "manifest.json", runtime_version="0.1")
    with pytest.raises(EngineError, match="the manifest does not fit itself: it was edited"):
        load_engine(folder, device=device)


@pytest.mark.usefixtures("never_loaded")
def test_manifest_of_another_model_than_its_key_says(folder, device, edit):
    edit(folder / "manifest.json", onnx_sha256="0" * 64)
    with pytest.raises(EngineError, match="the manifest does not fit itself: it was edited"):
        load_engine(folder, device=device)


def test_key_is_made_of_model_device_and_settings(device):
    settings = Settings(precision="int8", threads=1, options={"device": "CPU"})
    same = {"onnx_sha256": "a", "device": device, "settings": settings}
    key = engine_key(**same)
    assert len(key) == 16
    assert key == engine_key(**{**same, "device": {**device, "target": "other"}})
    others = [
        {"onnx_sha256": "b"},
        {"device": {**device, "runtime_version": "0"}},
        {"device": {**device, "l4t": "36.4.3"}},
        {"settings": replace(settings, options={"device": "GPU"})},
        {"settings": replace(settings, threads=2)},
        {"settings": replace(settings, precision="fp32")},
    ]
    assert len({key, *(engine_key(**{**same, **change}) for change in others)}) == 1 + len(others)


@pytest.mark.usefixtures("never_loaded")
def test_other_threads_and_options_are_stale(folder, device, spec_of, runtime):
    target = read_target("here", {**spec_of(runtime), "threads": 2})
    name = next(name for name, option in target.options.items() if isinstance(option, str))
    target = replace(target, options={**target.options, name: "another"})
    with pytest.raises(EngineError, match=f"threads 2 asked for, 1 in the manifest; {name} 'another' asked for"):
        load_engine(folder, device=device, target=target)


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
        ({"told": []}, "`told` should be an object"),
        ({"runtime": "tflite"}, "`runtime` should be one of"),
        ({"power_mode": 3}, "`power_mode` should be a string"),
        ({"schema": 9}, "has schema 9"),
        ({"build_seconds": "x"}, "`build_seconds` should be a number"),
    ],
)
def test_faulty_manifest(folder, edit, changes, message):
    edit(folder / "manifest.json", **changes)
    with pytest.raises(EngineError, match=message):
        read_manifest(folder)


@pytest.mark.usefixtures("never_loaded")
def test_options_of_another_release(folder, device):
    manifest = read_manifest(folder)
    name = next(iter(manifest.options))
    options = {key: value for key, value in manifest.options.items() if key != name} | {"devcie": "CPU"}
    settings = replace(manifest.settings, options=options)
    key = engine_key(onnx_sha256=manifest.onnx_sha256, device=device, settings=settings)
    write_manifest(folder, replace(manifest, options=options, key=key))
    words = f"option 'devcie' in the manifest, unknown here; option '{name}' not in the manifest; build it again with"
    with pytest.raises(EngineError, match=words):
        load_engine(folder, device=device)
    assert set(read_manifest(folder).as_target().options) == {*manifest.options}


FALLEN_BACK = [
    (
        Placement(asked="CUDA", nodes={"CUDA": 2, "CPU": 1}, strays=("Add_1",)),
        "fp32",
        "1 of 3 nodes do not run on CUDA ",
    ),
    (
        Placement(asked="CPU", nodes={"CPU": 3}, precisions={"f32": 3}),
        "int8_bf16",
        "none of its 3 nodes computes in int8",
    ),
    (
        Placement(asked="CPU", nodes={"CPU": 3}, precisions={"f32": 3}),
        "bf16",
        r"in bf16 \(f32 3\); take the variant out",
    ),
]


@pytest.mark.parametrize(("placement", "precision", "message"), FALLEN_BACK)
def test_silent_fallback_is_an_error_that_a_target_may_allow(placement, precision, message):
    settings = Settings(precision=precision, threads=0, options={})
    options = {"target": "gpu", "name": "v"}
    with pytest.raises(EngineError, match=message) as caught:
        check_placement(placement, settings, allow_fallback=False, **options)
    assert "`targets.gpu.allow_fallback`" in str(caught.value)
    check_placement(placement, settings, allow_fallback=True, **options)


@pytest.mark.parametrize(
    ("precisions", "precision"), [({}, "int8"), ({"f32": 1}, "fp32"), ({"u8": 1, "f32": 9}, "int8_fp16")]
)
def test_what_the_runtime_does_not_say_is_no_fallback(precisions, precision):
    placement = Placement(asked="CPU", nodes={"CPU": 1}, precisions=precisions)
    settings = Settings(precision=precision, threads=0, options={})
    check_placement(placement, settings, target="t", allow_fallback=False, name="v")


def test_runtime_that_is_gone(folder, device, runtime, monkeypatch):
    monkeypatch.setitem(sys.modules, runtime, None)
    with pytest.raises(RuntimeMissingError):
        load_engine(folder, device=device)


def test_engine_of_the_other_runtime_is_foreign(built, device, runtime, tmp_path):
    other = next(name for name in built if name != runtime)
    shutil.copytree(built[other] / "fp32", tmp_path / "other")
    with pytest.raises(EngineError, match=f"runtime '{runtime}' here, '{other}' in the manifest"):
        load_engine(tmp_path / "other", device=device)
