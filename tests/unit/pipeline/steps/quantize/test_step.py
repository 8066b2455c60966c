"""What quantize writes."""

import itertools
import json

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from deploy.bundle import load_bundle, load_golden
from pipeline.base.errors import BudgetError, DataError
from pipeline.parts.bundle import read_bundle
from pipeline.parts.groups import group_of, module_of
from pipeline.parts.index import Index, read_index, write_index
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.steps.quantize.lint import TARGETS, check
from tests import tiny
from tests.unit.pipeline.steps.chained import RECIPES, export_to, merge_to, quantize_to


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


QUICK = ("fp16", "int8", "int8_fp16")


@pytest.mark.parametrize(
    "variant", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in RECIPES]
)
def test_every_variant_is_a_bundle_with_its_records(chain, tmp_path, variant):
    parity = quantize_to(chain, tmp_path / variant)
    bundle = load_bundle(tmp_path / variant)
    assert bundle.precision == ("int8_fp16" if variant.endswith("_fp16") else variant.partition("_")[0])
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


def test_int8_with_an_fp16_rest_is_a_bundle_with_its_records(chain, tmp_path):
    quantize_to(chain, tmp_path / "int8_fp16")
    bundle = read_bundle(tmp_path / "int8_fp16")
    assert (bundle["precision"], bundle["golden"]["tolerance"]["int8_fp16"]) == ("int8_fp16", 0.1)
    model = onnx.load(tmp_path / "int8_fp16/model.onnx")
    check(model, targets=TARGETS, precision="int8_fp16")
    assert model.opset_import[0].version == 19
    record = json.loads((tmp_path / "int8_fp16/quantization.json").read_text())
    assert (record["precision"], record["layers"], record["rest"]) == ("int8_fp16", "linear", "fp16")
    assert 0 < record["range"]["norm_largest"] <= record["range"]["largest"] < 65504
    assert record["not_quantised"] == []


@pytest.mark.slow
def test_the_budget_is_that_of_the_file_with_its_fp16_rest(chain, tmp_path, monkeypatch):
    judged = []
    monkeypatch.setattr("pipeline.steps.quantize.step._Judge.percent", lambda _, model: judged.append(model) or 90.0)
    quantize_to(chain, tmp_path / "int8_auto_fp16")
    written = onnx.load(tmp_path / "int8_auto_fp16/model.onnx")
    kinds = [
        {tensor.name: tensor.data_type for tensor in model.graph.initializer}
        for model in (onnx.load_from_string(judged[-1]), written)
    ]
    assert kinds[0] == kinds[1]
    assert onnx.TensorProto.FLOAT16 in kinds[0].values()


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_budget_that_cannot_be_met_leaves_nothing(chain, tmp_path):
    with pytest.raises(BudgetError, match="no INT8 network is within `quantize.max_drop` -1 points"):
        quantize_to(chain, tmp_path / "int8_auto", max_drop=-1.0)  # none may be better
    assert list((tmp_path / "int8_auto").iterdir()) == []


@pytest.mark.slow
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
