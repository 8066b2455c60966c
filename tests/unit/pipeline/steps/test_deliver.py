"""Merge, export and quantize as one chain: each works on what the step before it wrote."""

import csv
import itertools
import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from deploy.bundle import load_bundle, load_golden
from pipeline.base.errors import BudgetError, DataError, ModelError, ParityError
from pipeline.parts.adapters.inject import inject, own_factors
from pipeline.parts.adapters.saved import trained_state
from pipeline.parts.friendliness import friendliness
from pipeline.parts.groups import group_of, module_of
from pipeline.parts.index import Index, Loaded, read_index, write_index
from pipeline.parts.models import ModelSpec, load_merged
from pipeline.parts.predict import torch_logits
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.steps.export import export
from pipeline.steps.merge import merge_models
from pipeline.steps.quantize.int8 import Int8
from pipeline.steps.quantize.lint import TARGETS, check
from pipeline.steps.quantize.step import Recipe, quantize
from tests import tiny
from tests.unit.pipeline.parts.adapters.families import fill


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """Folders data, distilled, merged, onnx/fp32, onnx/int8 of one small student with random adapters."""
    root = tmp_path_factory.mktemp("chain")
    tiny.prepared(root / "data", tiny.write_images(root / "images"))
    distilled = root / "distilled"
    distilled.mkdir()
    images = Loaded(root / "images", read_index(root / "data")[0].parts["validation"], load=tiny.LOAD.image)
    trained = {}
    for role, which in (("teacher", tiny.TEACHER), ("student", tiny.STUDENT)):
        model = tiny.model(which)
        save_file(model.state_dict(), root / f"{role}.safetensors")
        inject(model, own_factors(model, ("q", "k", "v"), rank=2), scale=2.0)
        fill(model)
        state, described = trained_state(model, list(model.head.parameters()))
        save_file(state, distilled / f"{role}.safetensors", metadata=described)
        trained[role] = tiny.stacked(torch_logits(model, images))
    np.savez(distilled / "validation_logits.npz", places=np.arange(len(images)), **trained)
    (root / "params.yaml").write_text("seed: 0\n")
    (root / "onnx").mkdir()
    merge_to(root, root / "merged")
    export_to(root, root / "onnx/fp32")
    quantize_to(root, root / "onnx/int8")
    return root


def spec(root, which) -> ModelSpec:
    role = "teacher" if which is tiny.TEACHER else "student"
    return replace(which, weights=str(root / f"{role}.safetensors"))


def merge_to(root, output, *, tolerance=1e-5, distilled=None):
    output.mkdir()
    return merge_models(
        output,
        distilled=distilled or root / "distilled",
        data=root / "data",
        teacher=spec(root, tiny.TEACHER),
        student=spec(root, tiny.STUDENT),
        tolerance=tolerance,
        load=tiny.LOAD,
    )


def export_to(root, output, *, tolerance=1e-4):
    output.mkdir()
    return export(
        output,
        merged=root / "merged",
        data=root / "data",
        student=tiny.STUDENT,
        preprocess=vars(tiny.PREPROCESS),
        opset=18,
        tolerance=tolerance,
        golden_count=4,
        params=root / "params.yaml",
        load=tiny.LOAD,
    )


INT8 = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")
RECIPES = {
    "fp16": Recipe(int8=None),
    "int8": Recipe(int8=INT8),
    "int8_full": Recipe(int8=replace(INT8, layers="full")),
    "int8_mlp": Recipe(int8=replace(INT8, layers="mlp")),
    "int8_auto": Recipe(int8=INT8, search=True),
}


def quantize_to(root, output, *, variant=None, data="data", max_drop=100.0):
    output.mkdir(parents=True)
    return quantize(
        output,
        variant=output.name,
        recipe=RECIPES[variant or output.name],
        exported=root / "onnx/fp32",
        data=root / data,
        subset_size=6,
        max_drop=max_drop,
        load=tiny.LOAD,
    )


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


@pytest.mark.parametrize("variant", ["fp32", "int8"])
def test_the_device_takes_each_bundle(chain, variant):
    bundle = load_bundle(chain / "onnx" / variant)
    inputs, outputs = load_golden(bundle)
    np.testing.assert_array_equal(tiny.stacked(onnx_logits(bundle.onnx, inputs)), outputs)
    assert bundle.precision == variant
    validation, root = read_index(chain / "data")[0].parts["validation"], chain / "images"
    known = {tiny.LOAD.image(root / item.path).tobytes(): item.label for item in validation}
    assert {known[image.tobytes()] for image in inputs} == {0, 1, 2}
    assert bundle.lineage["data_sha256"] == read_index(chain / "data")[0].sha256


def test_int8_names_the_file_it_came_from(chain):
    parent = load_bundle(chain / "onnx/fp32").onnx_sha256
    assert load_bundle(chain / "onnx/int8").lineage["parent_sha256"] == parent


def test_every_quantiser_is_symmetric_and_signed(chain):
    model = onnx.load(chain / "onnx/int8/model.onnx")
    values = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer}
    quantisers = [n for n in model.graph.node if n.op_type == "QuantizeLinear"]
    assert len(quantisers) > 8
    for node in quantisers:
        assert values[node.input[2]].dtype == np.int8
        assert not values[node.input[2]].any()


@pytest.mark.parametrize("variant", RECIPES)
def test_every_variant_is_a_bundle_with_its_records(chain, tmp_path, variant):
    parity = quantize_to(chain, tmp_path / variant)
    bundle = load_bundle(tmp_path / variant)
    assert bundle.precision == variant.partition("_")[0]
    check(onnx.load(bundle.onnx), targets=TARGETS, precision=bundle.precision)
    record = json.loads((tmp_path / variant / "quantization.json").read_text())
    assert (record["variant"], record["precision"], record["targets"]) == (variant, bundle.precision, list(TARGETS))
    calibration = read_index(chain / "data")[0].parts["calibration"]
    assert sorted(record["calibration_sha256"]) == sorted(item.sha256 for item in calibration)
    how = RECIPES[variant].int8
    if how is None:
        assert 0 < record["range"]["norm_largest"] <= record["range"]["largest"] < 65504
    else:
        assert {key: record[key] for key in ("layers", "smooth_quant", "bias_correction")} == vars(how)
        assert record["left_out"] == []
    written = json.loads((tmp_path / variant / "parity.json").read_text())
    assert (written["from"], written["to"], written["tolerance"]) == ("onnx", variant, None)
    assert written["change_low_points"] <= parity.points <= written["change_high_points"]


def test_groups_are_left_out_until_the_budget_is_met(chain, tmp_path, monkeypatch):
    """INT8 hurts none of these tiny networks, so what each reaches is said for it: FP32, then every try."""
    told = itertools.chain([90.0, 87.0, 89.6], itertools.repeat(89.4))
    monkeypatch.setattr("pipeline.steps.quantize.step._Judge.percent", lambda *_: next(told))
    quantize_to(chain, tmp_path / "int8_auto", max_drop=0.5)
    record = json.loads((tmp_path / "int8_auto/quantization.json").read_text())
    ranked = list(record["sensitivity"])
    assert (record["max_drop"], len(ranked)) == (0.5, 10)
    assert record["tries"][:2] == [{"left_out": 0, "drop": 3.0}, {"left_out": 9, "drop": 0.4}]
    assert record["left_out"] == ranked[:9]
    nodes = onnx.load(tmp_path / "int8_auto/model.onnx").graph.node
    back = {node.output[0] for node in nodes if node.op_type == "DequantizeLinear"}
    readers = {group_of(module_of(node.name)) for node in nodes if back & set(node.input)}
    assert readers == {ranked[-1]}
    assert {group_of(module_of(name)) for name in record["not_quantised"]} == set(ranked[:9])


def test_a_budget_that_cannot_be_met_leaves_nothing(chain, tmp_path):
    with pytest.raises(BudgetError, match="no INT8 network is within `quantize.max_drop` -1 points"):
        quantize_to(chain, tmp_path / "int8_auto", max_drop=-1.0)  # none may be better
    assert list((tmp_path / "int8_auto").iterdir()) == []


def test_two_runs_give_the_same_bytes(chain, tmp_path):
    (tmp_path / "onnx").mkdir()
    merge_to(chain, tmp_path / "merged")
    export_to(chain, tmp_path / "onnx/fp32")
    quantize_to(chain, tmp_path / "onnx/int8")
    merged = ("student.safetensors", "friendliness.json", "friendliness.csv", "friendliness_groups.csv")
    files = (*(f"merged/{name}" for name in merged), "onnx/fp32/model.onnx", "onnx/int8/model.onnx")
    files = (*files, "onnx/int8/quantization.json")
    for file in (*files, "onnx/int8/golden.npz"):
        assert (chain / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_an_empty_calibration_list_is_refused(chain, tmp_path):
    index, root = read_index(chain / "data")
    (chain / "empty").mkdir(exist_ok=True)
    parts = index.parts | {"calibration": index.parts["calibration"][:0]}
    write_index(Index(index.labels, str(root), parts), chain / "empty")
    with pytest.raises(DataError, match="calibration list .* is empty"):
        quantize_to(chain, tmp_path / "int8", data="empty")
