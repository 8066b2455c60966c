import csv
import json
import shutil

import numpy as np
import pytest

from deploy.bundle import load_bundle
from deploy.data import load_split
from deploy.errors import EngineError, MeasureError, TargetError
from deploy.measure import loadgen
from deploy.measure.accuracy import Classification
from deploy.measure.statistics import summarise
from deploy.preprocess import load_image
from tests.unit.deploy.conftest import LABELS, write_split
from tests.unit.deploy.measure.conftest import ALL, BUDGET


def test_record_has_exactly_the_contracts_keys(measured):
    record, output, _ = measured
    assert set(record) == {
        "schema", "target", "runtime", "runtime_version", "device", "profile", "minimum", "statistics_engine",
        "data_sha256", "cpus", "state", "attempts", "noise", "partial", "valid", "invalid_reasons", "budget",
        "variants", "differences", "skipped", "failed",
    }  # fmt: skip
    assert (record["schema"], record["target"], record["partial"], record["attempts"]) == (2, "here", None, 1)
    assert record["statistics_engine"]["name"] == ("loadgen" if loadgen.available() else "slad")
    assert (record["profile"], record["valid"]) == ("quick", False)
    assert record["invalid_reasons"][0] == "profile 'quick' is for development"
    assert set(record["state"]) == {"before", "during", "after"}
    assert list(record["variants"]) == ["fp32", "int8"]
    for variant in record["variants"].values():
        assert set(variant) == {
            "precision", "engine_sha256", "onnx_sha256", "engine_bytes", "bundle_bytes", "engine_key", "golden",
            "placement", "accuracy", "resumed", "warm_up", "latency_ms", "queries", "seconds", "scenarios",
            "end_to_end_ms", "memory_mb", "load_seconds", "cold_start_seconds", "energy", "energy_reason",
            "over_budget",
        }  # fmt: skip
    assert json.loads((output / "record.json").read_text()) == record


def test_numbers_follow_from_the_raw_data(measured, pristine, onnx_reference):
    record, output, _ = measured
    split = load_split(pristine / "data", "test")
    samples = np.load(output / "samples.npz", allow_pickle=False)
    with (output / "predictions.csv").open() as stream:
        predictions = list(csv.DictReader(stream))
    logits = np.load(output / "logits.npz", allow_pickle=False)
    assert sorted(logits.files) == ["fp32", "int8"]
    assert sorted(samples.files) == sorted(f"{name}/{scenario}" for name in logits.files for scenario in ALL)
    assert [row["path"] for row in predictions] == [item.name for item in split.items]
    assert record["data_sha256"] == split.sha256
    for name, variant in record["variants"].items():
        times = samples[f"{name}/SingleStream"].tolist()
        assert variant["latency_ms"] == summarise(times)
        assert variant["queries"] == len(times) >= 64
        assert sum(times) / 1e9 < variant["seconds"] < 60
        assert logits[name].shape == (12, 4)
        assert logits[name].dtype == np.float32
        score = Classification(LABELS)
        for row, item in zip(logits[name], split.items, strict=True):
            score.add(row, np.array(item.label))
        assert variant["accuracy"] == score.summary()
        assert [int(row[name]) for row in predictions] == logits[name].argmax(1).tolist()
        assert variant["golden"]["relative_error"] <= variant["golden"]["tolerance"]
    bundle = load_bundle(pristine / "onnx" / "fp32")
    inputs = np.stack([load_image(item.path, bundle.preprocess) for item in split.items])
    np.testing.assert_allclose(logits["fp32"], onnx_reference(bundle.onnx, inputs), atol=1e-4)


def test_all_scenarios_are_measured_and_told_of(measured):
    record, _, lines = measured
    for variant in record["variants"].values():
        assert list(variant["scenarios"]) == list(ALL)
        assert variant["scenarios"]["SingleStream"]["latency_ms"]["value"] > 0
        assert variant["scenarios"]["MultiStream"]["samples_per_query"] == 8
        assert variant["scenarios"]["Offline"]["samples_per_second"]["value"] > 0
    assert sum(line.startswith("latency, ") for line in lines) >= len(ALL)


def test_steps_from_file_to_answer_add_up(measured):
    for variant in measured[0]["variants"].values():
        steps = dict(variant["end_to_end_ms"])
        total = steps.pop("total")["p50"]
        assert set(steps) - {"copy"} == {"decode", "preprocess", "inference", "postprocess"}
        assert 0.3 * total < sum(step["p50"] for step in steps.values()) < 3 * total


def test_start_load_and_memory_are_of_the_engines_own_process(measured):
    for variant in measured[0]["variants"].values():
        assert 20 < variant["memory_mb"] < 2000
        assert 0 < variant["load_seconds"] < variant["cold_start_seconds"] < 60


def test_variants_are_compared_on_the_same_images(measured):
    (found,) = measured[0]["differences"]
    assert (found["variant"], found["reference"]) == ("int8", "fp32")
    accuracy = [measured[0]["variants"][name]["accuracy"]["correct"] for name in ("int8", "fp32")]
    points = found["accuracy_points"]
    assert points["value"] == pytest.approx(100 * (accuracy[0] - accuracy[1]) / 12, abs=1e-3)
    assert points["low"] <= points["value"] <= points["high"]


def test_budget_is_judged_on_what_was_measured(measured):
    assert measured[0]["budget"] == BUDGET
    found = measured[0]["variants"]["fp32"]["over_budget"]
    assert [phrase.split(",")[1] for phrase in found] == [" at most 1e-06 allowed", " at most 5 allowed"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"profile": "fast"}, "got 'fast'"),
        ({"queries": 0}, "got 0"),
        ({"attempts": 0}, "`measure.attempts` should be 1 or more, got 0"),
        ({"seconds": -1.0}, "`measure.seconds` should be a number of 0 or more, got -1.0"),
        ({"scenarios": ("Server",)}, "`measure.scenarios` should hold some of SingleStream, .* got 'Server'"),
    ],
)
def test_wrong_option(measure, changes, message):
    with pytest.raises(TargetError, match=message):
        measure(**changes)


def test_nothing_that_works_writes_no_record(measure, engines):
    for name in ("fp32", "int8"):
        shutil.rmtree(engines / name)
    with pytest.raises(MeasureError, match="2 variants were not measured: 'fp32': .*'int8': "):
        measure()
    assert list(measure.output.iterdir()) == []


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


def test_engines_that_were_never_compiled(measure, tmp_path):
    with pytest.raises(EngineError, match=r"skipped\.json: no such file; run `dvc repro compile@"):
        measure(engines=tmp_path / "none")
