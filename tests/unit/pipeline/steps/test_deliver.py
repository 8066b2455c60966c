"""What merge and export write."""

import csv
import json
import shutil
from collections import Counter

import numpy as np
import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file

from deploy.bundle import load_bundle, load_golden
from pipeline.base.errors import ModelError, ParityError
from pipeline.parts.friendliness import friendliness
from pipeline.parts.index import Loaded, read_index
from pipeline.parts.models import load_merged
from pipeline.parts.predict import torch_logits
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.parts.program import program_logits
from tests import tiny
from tests.unit.pipeline.steps.chained import export_to, merge_to


@pytest.mark.parametrize("role", ["teacher", "student"])
def test_merging_changed_only_the_adapted_weights(chain, role):
    merged, plain = load_file(chain / f"merged/{role}.safetensors"), load_file(chain / f"{role}.safetensors")
    assert merged.keys() == plain.keys()
    assert (merged["blocks.0.attn.qkv.weight"] - plain["blocks.0.attn.qkv.weight"]).abs().max() > 1e-3
    assert torch.equal(merged["blocks.0.mlp.fc1.weight"], plain["blocks.0.mlp.fc1.weight"])


def test_merging_kept_the_answers(chain):
    record = json.loads((chain / "merged/parity.json").read_text())
    assert record["max_abs_error"] <= 1e-5
    assert record["samples"] == 9


def test_accuracies_are_those_of_the_merged_networks(chain):
    record = json.loads((chain / "merged/accuracy.json").read_text())
    assert record.keys() == {"schema", "metric", "teacher", "student"}
    index, root = read_index(chain / "data")
    for role, which in (("teacher", tiny.TEACHER), ("student", tiny.STUDENT)):
        model, _ = load_merged(chain / "merged", role, which)
        images = Loaded(root, index.parts["test"], load=tiny.LOAD.image)
        answers = tiny.stacked(torch_logits(model, images)).argmax(1)
        expected = 100 * (answers == index.parts["test"].labels).mean()
        assert record[role] == {"test_accuracy_percent": pytest.approx(expected, abs=1e-3)}


def rows_of(path, key):
    with path.open(newline="") as file:
        return {row[key]: row for row in csv.DictReader(file)}


def test_the_student_is_measured_for_int8_before_and_after(chain):
    index, root = read_index(chain / "data")
    images = Loaded(root, index.parts["calibration"], load=tiny.LOAD.image)
    pretrained, merged = tiny.model(tiny.STUDENT), load_merged(chain / "merged", "student", tiny.STUDENT)[0]
    found = {"before": friendliness(pretrained, images), "after": friendliness(merged, images)}
    rows = rows_of(chain / "merged/friendliness.csv", "layer")
    inside = {f"blocks.{i}.{name}" for i in (0, 1) for name in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")}
    assert rows.keys() == {"patch_embed.proj", "head"} | inside
    for name in rows.keys() - {"head"}:
        for when, layers in found.items():
            for measure in ("outlier_ratio", "kurtosis", "sqnr_db"):
                expected = getattr(layers[name], measure)
                assert float(rows[name][f"{measure}_{when}"]) == pytest.approx(expected, abs=0.006), (name, measure)
    assert rows["patch_embed.proj"]["sqnr_db_before"] == rows["patch_embed.proj"]["sqnr_db_after"]
    assert rows["blocks.0.attn.qkv"]["sqnr_db_before"] != rows["blocks.0.attn.qkv"]["sqnr_db_after"]
    assert rows["head"]["sqnr_db_before"] == ""  # the file may have one, but training starts another
    assert float(rows["head"]["sqnr_db_after"]) == pytest.approx(found["after"]["head"].sqnr_db, abs=0.006)


def test_the_metric_of_int8_is_the_worst_of_its_tables(chain):
    record = json.loads((chain / "merged/friendliness.json").read_text())
    assert (record["images"], record["layers"], record["layers_not_observed"]) == (6, 9, 0)
    groups = rows_of(chain / "merged/friendliness_groups.csv", "group")
    layers = rows_of(chain / "merged/friendliness.csv", "layer")
    del groups["head"], layers["head"]
    for when in ("before", "after"):
        lowest = min(groups, key=lambda name: float(groups[name][f"{when}_db"]))
        assert record[when]["lowest_group"] == lowest
        assert record[when]["lowest_group_sqnr_db"] == float(groups[lowest][f"{when}_db"])
        for measure in ("outlier_ratio", "kurtosis"):
            values = [float(row[f"{measure}_{when}"]) for row in layers.values()]
            assert record[when][f"largest_{measure}"] == max(values)


def test_logits_of_the_test_images_are_kept_for_the_chain(chain):
    index, root = read_index(chain / "data")
    images = Loaded(root, index.parts["test"], load=tiny.LOAD.image)
    with np.load(chain / "merged/test_logits.npz") as arrays:
        logits = dict(arrays)
    assert logits.keys() == {"adapted", "merged"}
    model, _ = load_merged(chain / "merged", "student", tiny.STUDENT)
    np.testing.assert_allclose(logits["merged"], tiny.stacked(torch_logits(model, images)), atol=1e-6)
    assert 0 < np.abs(logits["merged"] - logits["adapted"]).max() < 1e-4
    saved = json.loads((chain / "merged/saved_parity.json").read_text())
    assert (saved["from"], saved["to"], saved["passed"]) == ("torch student", "adapted student", True)


def test_a_merge_beyond_its_tolerance_is_refused(chain, tmp_path):
    with pytest.raises(ParityError, match="merged teacher differs from adapted"):
        merge_to(chain, tmp_path / "merged", tolerance=1e-12)
    assert not (tmp_path / "merged/student.safetensors").exists()


@pytest.fixture
def distilled(chain, tmp_path):
    """A copy of what was trained, that a test may spoil."""
    return shutil.copytree(chain / "distilled", tmp_path / "distilled")


def test_without_a_teacher_only_the_student_is_merged(chain, distilled, tmp_path):
    with np.load(distilled / "validation_logits.npz") as logits:
        np.savez(distilled / "validation_logits.npz", places=logits["places"], student=logits["student"])
    (distilled / "teacher.safetensors").unlink()
    merge_to(chain, tmp_path / "merged", distilled=distilled)
    assert {file.name for file in (tmp_path / "merged").iterdir()} == {
        "student.safetensors",
        "saved_parity.json",
        "parity.json",
        "test_logits.npz",
        "accuracy.json",
        "friendliness.json",
        "friendliness.csv",
        "friendliness_groups.csv",
    }
    assert "teacher" not in json.loads((tmp_path / "merged/accuracy.json").read_text())


def rescaled(distilled):
    path = distilled / "student.safetensors"
    save_file(load_file(path), path, metadata={"scale": "4.0"})


def other_head(distilled):
    path = distilled / "student.safetensors"
    state = load_file(path)
    save_file(state | {"head.weight": -state["head.weight"]}, path, metadata={"scale": "2.0"})


def wider(distilled):
    path = distilled / "student.safetensors"
    state = load_file(path)
    save_file(state | {"blocks.0.q.a": torch.zeros(2, 24)}, path, metadata={"scale": "2.0"})


def gone(distilled):
    (distilled / "student.safetensors").unlink()


@pytest.mark.parametrize(
    ("spoil", "error", "words"),
    [
        (rescaled, ParityError, "adapted student differs from torch student"),
        (other_head, ParityError, "adapted student differs from torch student"),
        (wider, ModelError, r"factors of 'blocks.0.q' have shapes \(2, 24\).*maps 16 to 16; run `dvc repro distill`"),
        (gone, ModelError, "student.safetensors'; run `dvc repro distill` again"),
    ],
    ids=["scale", "head", "shape", "missing"],
)
def test_a_record_that_is_not_what_was_trained_is_refused(chain, distilled, tmp_path, spoil, error, words):
    spoil(distilled)
    with pytest.raises(error, match=words):
        merge_to(chain, tmp_path / "merged", distilled=distilled)
    assert not (tmp_path / "merged/student.safetensors").exists()


def test_the_onnx_file_answers_like_the_student(chain):
    images = np.random.default_rng(0).standard_normal((5, 3, tiny.SIZE, tiny.SIZE), dtype=np.float32)
    model, labels = load_merged(chain / "merged", "student", tiny.STUDENT)
    assert labels == ["class_0", "class_1", "class_2"]
    np.testing.assert_allclose(
        tiny.stacked(onnx_logits(chain / "onnx/fp32/model.onnx", images)),
        tiny.stacked(torch_logits(model, images)),
        atol=1e-4,
    )


def test_the_graph_is_what_a_compiler_wants(chain):
    model = onnx.load(chain / "onnx/fp32/model.onnx")
    kinds = Counter(node.op_type for node in model.graph.node)
    assert kinds["LayerNormalization"] == 5  # two in each of two blocks, one at the end
    assert kinds["ReduceMean"] == kinds["Pow"] == 0
    assert [d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim] == [1, 3, tiny.SIZE, tiny.SIZE]
    assert model.opset_import[0].version == 18


def test_an_export_beyond_its_tolerance_is_refused(chain, tmp_path):
    with pytest.raises(ParityError, match="onnx differs from merged"):
        export_to(chain, tmp_path / "fp32", tolerance=1e-12)
    assert not (tmp_path / "fp32/bundle.json").exists()


@pytest.mark.slow
def test_a_program_beside_the_onnx_file_answers_like_it(chain, tmp_path):
    export_to(chain, tmp_path / "fp32", program=True)
    bundle = load_bundle(tmp_path / "fp32")
    inputs, outputs = load_golden(bundle)
    np.testing.assert_allclose(tiny.stacked(program_logits(bundle.program, inputs)), outputs, atol=1e-5)
    assert json.loads((tmp_path / "fp32/program_parity.json").read_text())["passed"]


@pytest.mark.slow
def test_a_program_that_answers_otherwise_is_refused(chain, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.steps.export.program_logits", lambda *_: np.ones((9, 3), np.float32))
    with pytest.raises(ParityError, match="program differs from onnx"):
        export_to(chain, tmp_path / "fp32", program=True)
    assert not (tmp_path / "fp32/bundle.json").exists()
