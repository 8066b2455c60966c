import csv
import json
import shutil
from dataclasses import replace

import numpy as np
import pytest

from deploy import device as device_module
from deploy import measure as module
from deploy.accuracy import Classification
from deploy.bundle import load_bundle
from deploy.data import load_split
from deploy.engine import engine_key, load_engine, read_manifest, write_manifest
from deploy.errors import EngineError, ImageError, MeasureError, TargetError
from deploy.latency import summarise
from deploy.measure import Timing, check_record, measure_target
from deploy.preprocess import load_image
from deploy.runtime import Placement
from tests.unit.deploy.conftest import write_split


@pytest.fixture
def measure(plant, device, engines, runtime, spec_of, tmp_path, monkeypatch):
    monkeypatch.setattr(device_module.os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    output = tmp_path / "measured"
    output.mkdir()

    def run(**changes):
        options = {
            "target": "here",
            "spec": spec_of(runtime),
            "engines": engines,
            "onnx_root": plant.onnx_root,
            "data": plant.data,
            "device": device,
            "on_progress": lambda line: None,
        }
        timing = {"queries": 40, "seconds": 0.0, "warmup_seconds": 0.0, "profile": "standard", "seed": 0}
        timing |= {name: changes.pop(name) for name in timing.keys() & changes}
        return measure_target(output, timing=Timing(**timing), **{**options, **changes})

    run.output = output
    return run


def test_record_has_exactly_the_contracts_keys(measure, device, runtime):
    record = measure()
    assert set(record) == {
        "schema", "target", "runtime", "runtime_version", "device", "state", "profile", "scenario",
        "statistics_engine", "minimum", "valid", "invalid_reasons", "budget", "variants", "skipped", "failed",
    }  # fmt: skip
    assert (record["schema"], record["target"], record["runtime"]) == (1, "here", runtime)
    assert record["device"] == device
    assert (record["scenario"], record["statistics_engine"]) == ("SingleStream", "slad")
    assert record["minimum"] == {"queries": 40, "seconds": 0.0}
    assert (record["valid"], record["invalid_reasons"], record["skipped"], record["failed"]) == (True, [], {}, {})
    assert set(record["state"]) == {"before", "after"}
    assert list(record["variants"]) == ["fp32", "int8"]
    for variant in record["variants"].values():
        assert set(variant) == {
            "precision", "engine_sha256", "onnx_sha256", "engine_bytes", "accuracy", "latency_ms", "queries", "seconds",
            "load_seconds", "golden", "engine_key", "placement", "memory_mb", "over_budget",
        }  # fmt: skip
    assert json.loads((measure.output / "record.json").read_text()) == record
    check_record(record)


def test_numbers_follow_from_the_raw_data(measure, plant, onnx_reference):
    record = measure()
    split = load_split(plant.data, "test")
    labels = [item.label for item in split.items]
    with (measure.output / "latency.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    with (measure.output / "predictions.csv").open() as stream:
        predictions = list(csv.DictReader(stream))
    logits = np.load(measure.output / "logits.npz", allow_pickle=False)
    assert sorted(logits.files) == ["fp32", "int8"]
    assert [row["path"] for row in predictions] == [item.name for item in split.items]
    for name, variant in record["variants"].items():
        times = [round(float(row["latency_us"]) * 1000) for row in rows if row["variant"] == name]
        assert variant["latency_ms"] == summarise(times)
        assert variant["queries"] == len(times) == 48
        assert variant["seconds"] == pytest.approx(sum(times) / 1e9, abs=1e-4)
        assert logits[name].shape == (12, 4)
        assert logits[name].dtype == np.float32
        score = Classification()
        for row, label in zip(logits[name], labels, strict=True):
            score.add(row, np.array(label))
        assert variant["accuracy"] == score.summary()
        assert [int(row[name]) for row in predictions] == logits[name].argmax(1).tolist()
        assert variant["golden"]["relative_error"] <= variant["golden"]["tolerance"]
    bundle = load_bundle(plant.onnx_root / "fp32")
    inputs = np.stack([load_image(item.path, bundle.preprocess) for item in split.items])
    np.testing.assert_allclose(logits["fp32"], onnx_reference(bundle.onnx, inputs), atol=1e-4)


def test_latency_is_timed_on_one_prepared_test_image(measure, monkeypatch, plant):
    seen = {}

    def fake(callables, **options):
        seen.update({name: call.args[0] for name, call in callables.items()}, **options)
        return {name: [1000] * 3 for name in callables}

    monkeypatch.setattr(module, "measure_interleaved", fake)
    record = measure(queries=7, seconds=1.5, warmup_seconds=0.25, seed=3)
    first = load_split(plant.data, "test").items[0]
    image = load_image(first.path, load_bundle(plant.onnx_root / "fp32").preprocess)
    np.testing.assert_array_equal(seen["fp32"], image[None])
    assert (seen["queries"], seen["seconds"], seen["warmup_seconds"], seen["seed"]) == (7, 1.5, 0.25, 3)
    assert record["variants"]["int8"]["latency_ms"]["p50"] == 0.001


def test_quick_profile_is_never_valid(measure):
    record = measure(profile="quick")
    assert (record["profile"], record["valid"]) == ("quick", False)
    assert record["invalid_reasons"] == ["profile 'quick' is for development"]


def test_busy_device_makes_the_run_invalid_in_words(measure, monkeypatch):
    monkeypatch.setattr(device_module.os, "getloadavg", lambda: (999.0, 0, 0))
    record = measure()
    assert not record["valid"]
    assert "load average 999.0" in record["invalid_reasons"][0]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "fast"}, "got 'fast'"),
        ({"queries": 0}, "got 0"),
        ({"seconds": -1.0}, "`measure.seconds` should be a number of 0 or more, got -1.0"),
        ({"warmup_seconds": float("nan")}, "`measure.warmup_seconds` should .* got nan"),
    ],
)
def test_wrong_option(measure, changes, message):
    with pytest.raises(TargetError, match=message):
        measure(**changes)


def test_skipped_variant_is_recorded_as_such(measure, engines, edit):
    shutil.rmtree(engines / "int8")
    edit(engines / "skipped.json", skipped={"int8": "no VNNI"})
    record = measure()
    assert (list(record["variants"]), record["skipped"], record["failed"]) == (["fp32"], {"int8": "no VNNI"}, {})


def test_failed_variant_is_recorded_and_the_others_are_measured(measure, engines):
    path = next((engines / "int8").glob("engine.*"))
    path.write_bytes(path.read_bytes()[:-1])
    record = measure()
    assert list(record["variants"]) == ["fp32"]
    assert "bytes" in record["failed"]["int8"]
    assert json.loads((measure.output / "record.json").read_text()) == record
    with pytest.raises(MeasureError, match=r"1 variants were not measured: 'int8': engine .*compile@here"):
        check_record(record)


def test_nothing_that_works_writes_no_record(measure, engines):
    for name in ("fp32", "int8"):
        shutil.rmtree(engines / name)
    with pytest.raises(MeasureError, match="2 variants were not measured: 'fp32': .*'int8': "):
        measure()
    assert list(measure.output.iterdir()) == []


def test_engine_of_another_model_is_stale(measure, engines, device):
    manifest = replace(read_manifest(engines / "fp32"), onnx_sha256="f" * 64)
    key = engine_key(onnx_sha256="f" * 64, device=device, settings=manifest.settings)
    write_manifest(engines / "fp32", replace(manifest, key=key))
    assert "is stale: built in fp32 from ONNX ffffffffffff" in measure()["failed"]["fp32"]


def test_engine_that_has_fallen_back_since_it_was_built(measure, engines, monkeypatch):
    fallen = Placement(asked="GPU", nodes={"CPU": 2}, strays=("a", "b"))

    def load(folder, **options):
        loaded = load_engine(folder, **options)
        if folder.name == "int8":
            monkeypatch.setattr(type(loaded.engine), "placement", lambda engine: fallen)
        else:
            loaded.engine.placement()
        return loaded

    monkeypatch.setattr(module, "load_engine", load)
    assert "2 of 2 nodes do not run on GPU (2 on CPU), first a, b" in measure()["failed"]["int8"]


def test_other_power_mode_makes_the_run_invalid(measure, monkeypatch, spec_of, runtime):
    monkeypatch.setattr(device_module, "power_mode", lambda: "15W")
    assert measure(spec={**spec_of(runtime), "power_mode": "15W"})["valid"]
    record = measure(spec={**spec_of(runtime), "power_mode": "MAXN"})
    assert record["invalid_reasons"] == ["the device was in power mode '15W', the target asks for 'MAXN'"]


def test_budget_is_judged_on_what_was_measured(measure, spec_of, runtime):
    budget = {"latency_ms": 0.000001, "percentile": 99, "size_mb": 1000, "memory_mb": 5}
    record = measure(spec={**spec_of(runtime, fp32=("fp32", "fp32")), "budget": budget})
    found = record["variants"]["fp32"]
    assert record["budget"] == budget
    assert 20 < found["memory_mb"] < 2000
    assert [phrase.split(",")[1] for phrase in found["over_budget"]] == [" at most 1e-06 allowed", " at most 5 allowed"]


def test_engine_that_fails_the_golden_check(measure, monkeypatch):
    check = module.check_golden

    def spoiled(engine, bundle, *, precision):
        return type(check(engine, bundle, precision=precision))(0.5, 0.1, 1.0)

    monkeypatch.setattr(module, "check_golden", spoiled)
    with pytest.raises(MeasureError, match="'int8': .*relative error 0.5"):
        measure()


def test_labels_of_other_data(measure, plant, edit):
    edit(plant.data / "index.json", labels=["a", "b", "c", "d"])
    with pytest.raises(MeasureError, match="'fp32': .*labels are not the data's"):
        measure()


def test_other_device_is_refused(measure, device):
    with pytest.raises(EngineError, match="probe@here"):
        measure(device={**device, "machine_id": "0" * 16})
    assert list(measure.output.iterdir()) == []


def test_empty_test_split(measure, plant):
    write_split(plant.data, "test", [])
    with pytest.raises(MeasureError, match="the test split is empty"):
        measure()


def test_missing_truncated_and_changed_test_image(measure, plant):
    path = load_split(plant.data, "test").items[5].path
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with pytest.raises(ImageError, match=r"0005\.png: cannot be decoded"):
        measure()
    path.unlink()
    with pytest.raises(ImageError, match=r"0005\.png: no such file"):
        measure()
    path.write_bytes(load_split(plant.data, "test").items[6].path.read_bytes())
    with pytest.raises(MeasureError, match=r"0005\.png: sha256 \w{12}, \w{12} in the index"):
        measure()


def test_engines_that_were_never_compiled(measure, tmp_path):
    with pytest.raises(EngineError, match=r"skipped\.json: no such file; run `dvc repro compile@"):
        measure(engines=tmp_path / "none")
