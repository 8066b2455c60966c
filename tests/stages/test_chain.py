import json
from collections import Counter

import onnx
import pytest

from pipeline.parts.index import read_index
from tests.stages.conftest import CHAIN

# What a stage writes that depends on the clock or the noise of the machine.
UNSTEADY = ("artifacts/compiled", "artifacts/measured", "artifacts/distill/cost.", "reports")


def test_every_stage_wrote_its_outputs(finished):
    written = finished.snapshot()
    for path in (
        "artifacts/data/index.json",
        "artifacts/foundation/tiny/teacher.safetensors",
        "artifacts/foundation/tiny/student.safetensors",
        "artifacts/distill/teacher.safetensors",
        "artifacts/distill/student.safetensors",
        "artifacts/distill/metrics.json",
        "artifacts/distill/curves.csv",
        "artifacts/distill/cka.csv",
        "artifacts/distill/cost.json",
        "artifacts/distill/cost.csv",
        "artifacts/merged/teacher.safetensors",
        "artifacts/merged/student.safetensors",
        "artifacts/merged/friendliness.json",
        "artifacts/merged/friendliness.csv",
        "artifacts/merged/friendliness_groups.csv",
        "artifacts/onnx/fp32/bundle.json",
        "artifacts/onnx/int8/bundle.json",
        "artifacts/device/cpu-openvino.json",
        "artifacts/compiled/cpu-openvino/int8/manifest.json",
        "artifacts/measured/cpu-onnxruntime/record.json",
        "reports/cpu-openvino.json",
        "reports/report.html",
        "reports/summary.json",
        "reports/accuracy_latency.svg",
        "reports/check.txt",
    ):
        assert written[path], path


def test_no_temporary_file_and_no_checkpoint_is_left(finished):
    assert [path for path in finished.snapshot() if "/." in path or "/checkpoints/" in path] == []


@pytest.mark.parametrize("target", ["cpu-openvino", "cpu-onnxruntime"])
def test_a_record_ties_every_number_to_its_engine(finished, target):
    root = finished.root
    record = json.loads((root / f"reports/{target}.json").read_text())
    tests = len(read_index(root / "artifacts/data")[0].parts["test"])
    assert {"fp32", "int8"} <= set(record["variants"])
    for name, variant in record["variants"].items():
        manifest = json.loads((root / f"artifacts/compiled/{target}/{name}/manifest.json").read_text())
        assert variant["engine_sha256"] == manifest["engine"]["sha256"]
        assert variant["accuracy"]["count"] == tests
        assert variant["queries"] >= 64
    assert record["failed"] == {}
    assert record["valid"] is False  # a quick profile is never valid


def test_the_summary_judges_every_target(finished):
    summary = json.loads((finished.root / "reports/summary.json").read_text())
    assert set(summary["targets"]) == {"cpu-openvino", "cpu-onnxruntime"}
    assert all(target["words"] and target["chosen"] for target in summary["targets"].values())


@pytest.mark.slow
def test_a_second_run_gives_the_same_bytes(project, capsys, monkeypatch):
    # The copy's images lie elsewhere, which its index and lineage name: both runs are made in the copy.
    before, after = (_all_outputs(project, capsys, monkeypatch) for _ in range(2))
    assert before.keys() == after.keys()
    changed = [path for path in before if before[path] != after[path]]
    assert [path for path in changed if not path.startswith(UNSTEADY)] == []


def _all_outputs(project, capsys, monkeypatch):
    for stage in CHAIN[1:]:
        result = project.run(stage, capsys, monkeypatch)
        assert result.code == 0, result.error
    return project.snapshot()


@pytest.mark.slow
def test_the_same_engines_give_the_same_accuracy(project, capsys, monkeypatch):
    def accuracies():
        record = json.loads((project.root / "reports/cpu-openvino.json").read_text())
        return {name: variant["accuracy"] for name, variant in record["variants"].items()}

    before = accuracies()
    for stage in ("compile@cpu-openvino", "measure@cpu-openvino"):
        assert project.run(stage, capsys, monkeypatch).code == 0
    assert accuracies() == before


def test_onnxruntime_multiplies_linear_layers_in_int8(finished):
    engine = onnx.load(finished.root / "artifacts/compiled/cpu-onnxruntime/int8/engine.onnx")
    kinds = Counter(node.op_type for node in engine.graph.node)
    assert kinds["MatMulIntegerToFloat"] == 2 * 4  # blocks, and qkv, proj, fc1, fc2
