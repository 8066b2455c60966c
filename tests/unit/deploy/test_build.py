import hashlib
import json
from dataclasses import replace

import numpy as np
import pytest

from deploy import build as module
from deploy import isolated
from deploy.build import build_target
from deploy.errors import EngineError, TargetError
from deploy.runtimes import get_runtime
from deploy.target import read_target


@pytest.fixture
def build(plant, device, tmp_path):
    lines = []

    def run(spec, **changes):
        options = {"target": "here", "spec": spec, "onnx_root": plant.onnx_root, "device": device}
        build_target(tmp_path / "out", **{**options, **changes}, on_progress=lines.append)
        return tmp_path / "out", lines

    run.lines = lines
    return run


def listed_skips(folder):
    content = json.loads((folder / "skipped.json").read_text())
    assert content["schema"] == 1
    return content["skipped"]


def test_every_variant_is_built_with_its_manifest(build, plant, runtime, spec_of, device):
    folder, lines = build(spec_of(runtime))
    assert listed_skips(folder) == {}
    for name in ("fp32", "int8"):
        manifest = json.loads((folder / name / "manifest.json").read_text())
        engine = folder / name / manifest["engine"]["file"]
        model = plant.onnx_root / name / "model.onnx"
        assert {entry.name for entry in (folder / name).iterdir()} == {engine.name, "manifest.json"}
        assert manifest["engine"]["sha256"] == hashlib.sha256(engine.read_bytes()).hexdigest()
        assert manifest["engine"]["bytes"] == engine.stat().st_size
        assert manifest["onnx_sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
        assert (manifest["variant"], manifest["precision"], manifest["bundle_variant"]) == (name, name, name)
        assert (manifest["runtime"], manifest["device"], manifest["threads"]) == (runtime, device, 1)
        assert sum(manifest["placement"]["nodes"].values()) >= 3
        assert manifest["placement"]["strays"] == {"count": 0, "first": []}
        assert manifest["build_seconds"] >= 0
    assert [line.split(": ")[0] for line in lines] == ["here/fp32"] * 2 + ["here/int8"] * 2
    assert "built in" in lines[1]


def test_bf16_is_built_or_skipped_by_name(build, runtime, spec_of):
    folder, _ = build(spec_of(runtime, fp32=("fp32", "fp32"), half=("fp32", "bf16")))
    reason = get_runtime(runtime).supports(read_target("t", spec_of(runtime)).settings("bf16"))
    assert listed_skips(folder) == ({"half": reason} if reason else {})
    assert (folder / "half").is_dir() == (reason is None)


def test_variant_without_hardware_support_is_skipped_with_the_reason(build, runtime, spec_of, monkeypatch):
    module = get_runtime(runtime)
    monkeypatch.setattr(module, "supports", lambda settings: "no VNNI" if settings.precision == "int8" else None)
    folder, lines = build(spec_of(runtime))
    assert listed_skips(folder) == {"int8": "no VNNI"}
    assert lines[-1] == "here/int8: skipped, no VNNI"


def test_sweep_goes_on_past_failed_variants_and_names_all(build, plant, runtime, spec_of, tmp_path):
    (plant.onnx_root / "fp32" / "model.onnx").write_bytes(b"tampered")
    spec = spec_of(runtime, a=("fp32", "fp32"), b=("none", "fp32"), c=("int8", "int8"))
    with pytest.raises(
        EngineError, match=r"2 of 3 variants failed: 'a': .*model\.onnx.*; 'b': .*no such file"
    ) as caught:
        build(spec)
    assert "\n" not in str(caught.value)
    assert (tmp_path / "out" / "c" / "manifest.json").is_file()
    assert listed_skips(tmp_path / "out") == {}


def relist(bundle, edit):
    files = {}
    for name in ("model.onnx", "golden.npz"):
        content = (bundle / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(bundle / "bundle.json", files=files)


def test_engine_beyond_its_tolerance_is_refused(build, bundle, runtime, spec_of, edit):
    inputs = np.zeros((8, 3, 16, 16), np.float32)
    np.savez(bundle / "golden.npz", inputs=inputs, outputs=np.ones((8, 4), np.float32))
    relist(bundle, edit)
    with pytest.raises(EngineError, match=r"'fp32': .* on the golden inputs, at most 0\.001 allowed"):
        build(spec_of(runtime))


def test_model_the_runtime_refuses(build, bundle, runtime, spec_of, edit):
    (bundle / "model.onnx").write_bytes(b"junk")
    relist(bundle, edit)
    with pytest.raises(EngineError, match=r"'fp32': .*model\.onnx: .* cannot (build|compile) it for fp32"):
        build(spec_of(runtime))


@pytest.mark.parametrize(("onnx", "precision"), [("fp32", "int8"), ("int8", "fp32"), ("int8", "bf16")])
def test_precision_must_fit_the_bundle(build, runtime, spec_of, onnx, precision, monkeypatch):
    monkeypatch.setattr(get_runtime(runtime), "supports", lambda settings: None)
    with pytest.raises(EngineError, match=rf"`targets\.here\.variants\.v` asks for precision '{precision}'"):
        build(spec_of(runtime, v=(onnx, precision)))


def test_unknown_option_is_refused_before_anything_is_built(build, runtime, spec_of, tmp_path):
    spec = spec_of(runtime)
    spec["variants"]["int8"]["batch"] = 8
    with pytest.raises(TargetError, match=r"`targets\.here\.variants\.int8\.batch` is unknown"):
        build(spec)
    assert not (tmp_path / "out").exists()


def test_fingerprint_of_another_machine_is_refused(build, runtime, spec_of, device, tmp_path):
    with pytest.raises(EngineError, match=r"memory_gb .*; run `dvc repro probe@here`"):
        build(spec_of(runtime), device={**device, "memory_gb": 4096})
    assert not (tmp_path / "out").exists()


def test_build_over_its_time_limit(build, runtime, spec_of, monkeypatch):
    monkeypatch.setattr(isolated, "SAY_EVERY_S", 0.01)
    limited = replace(read_target("here", spec_of(runtime, fp32=("fp32", "fp32"))), build_limit_s=0.05)
    monkeypatch.setattr(module, "read_target", lambda name, spec: limited)
    with pytest.raises(EngineError, match=r"the build was ended after 0\.05 s; raise `build_limit_s` of the target"):
        build(spec_of(runtime))
    assert any(": building, 0 s" in line for line in build.lines)
