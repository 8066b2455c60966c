"""Merge, export and quantize as one chain: each works on what the step before it wrote."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import numpy as np
import onnx
import pytest
import timm
import torch
from onnx import numpy_helper
from safetensors.torch import load_file, save_file

from deploy.bundle import load_bundle, load_golden
from pipeline.base.errors import DataError, ModelError, ParityError
from pipeline.parts.adapters.inject import inject, own_factors
from pipeline.parts.adapters.saved import trained_state
from pipeline.parts.index import Index, Loaded, read_index, write_index
from pipeline.parts.models import ModelSpec, load_merged
from pipeline.parts.predict import torch_logits
from pipeline.parts.predict_onnx import onnx_logits
from pipeline.steps.export import export, to_onnx
from pipeline.steps.merge import merge_models
from pipeline.steps.quantize.lint import check_quantizers
from pipeline.steps.quantize.step import attention_matmuls, post_training_int8, quantize
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


def quantize_to(root, output, *, attention=False, data="data"):
    output.mkdir()
    return quantize(
        output,
        variant=output.name,
        exported=root / "onnx/fp32",
        data=root / data,
        subset_size=6,
        attention=attention,
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


def test_a_merge_beyond_its_tolerance_is_refused(chain, tmp_path):
    with pytest.raises(ParityError, match="merged differs from torch"):
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
        "parity.json",
        "accuracy.json",
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
        (rescaled, ParityError, "saved student differs from trained student"),
        (other_head, ParityError, "saved student differs from trained student"),
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


def produced_by(model):
    return {output: node for node in model.graph.node for output in node.output}


def inputs_that_are_dequantised(model, names):
    maker = produced_by(model)
    nodes = [node for node in model.graph.node if node.name in names]
    assert len(nodes) == len(names)
    return [getattr(maker.get(name), "op_type", "") == "DequantizeLinear" for n in nodes for name in n.input]


def test_attention_stays_in_floating_point_unless_asked(chain, tmp_path):
    names = attention_matmuls(onnx.load(chain / "onnx/fp32/model.onnx"))
    assert len(names) == 4  # two in each of two blocks
    assert not any(inputs_that_are_dequantised(onnx.load(chain / "onnx/int8/model.onnx"), names))
    quantize_to(chain, tmp_path / "int8_full", attention=True)
    assert any(inputs_that_are_dequantised(onnx.load(tmp_path / "int8_full/model.onnx"), names))


def test_two_runs_give_the_same_bytes(chain, tmp_path):
    (tmp_path / "onnx").mkdir()
    merge_to(chain, tmp_path / "merged")
    export_to(chain, tmp_path / "onnx/fp32")
    quantize_to(chain, tmp_path / "onnx/int8")
    for file in ("merged/student.safetensors", "onnx/fp32/model.onnx", "onnx/int8/model.onnx", "onnx/int8/golden.npz"):
        assert (chain / file).read_bytes() == (tmp_path / file).read_bytes(), file


def test_an_empty_calibration_list_is_refused(chain, tmp_path):
    index, root = read_index(chain / "data")
    (chain / "empty").mkdir(exist_ok=True)
    parts = index.parts | {"calibration": index.parts["calibration"][:0]}
    write_index(Index(index.labels, str(root), parts), chain / "empty")
    with pytest.raises(DataError, match="calibration list .* is empty"):
        quantize_to(chain, tmp_path / "int8", data="empty")


def spoiled(chain, change) -> onnx.ModelProto:
    model = onnx.load(chain / "onnx/int8/model.onnx")
    node = next(n for n in model.graph.node if n.op_type == "QuantizeLinear")
    tensors = {t.name: t for t in model.graph.initializer}
    change(node, tensors)
    return model


def replaced(tensor, array):
    tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda n, t: replaced(t[n.input[2]], np.array(128, dtype=np.uint8)), "zero point is uint8"),
        (lambda n, t: replaced(t[n.input[2]], np.array(-84, dtype=np.int8)), "zero point is -84, not 0"),
        (lambda n, t: replaced(t[n.input[1]], np.array(0, dtype=np.float32)), "not positive"),
        (lambda n, _: n.input.pop(), "zero point is absent, which means UINT8"),
        (lambda n, _: n.input.__setitem__(1, "computed"), "'computed' is no constant"),
    ],
    ids=["unsigned", "asymmetric", "zero scale", "no zero point", "computed scale"],
)
def test_quantisers_that_a_runtime_rejects_are_refused(chain, change, words):
    with pytest.raises(ModelError, match=words):
        check_quantizers(spoiled(chain, change))


def test_a_file_without_quantisers_is_not_int8(chain):
    with pytest.raises(ModelError, match="no QuantizeLinear"):
        check_quantizers(onnx.load(chain / "onnx/fp32/model.onnx"))


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            "test_resnet",
            marks=pytest.mark.xfail(
                strict=True, raises=ModelError, reason="NNCF makes the quantisers behind a ReLU unsigned"
            ),
        ),
        "test_efficientnet",
    ],
)
def test_cnns_get_quantisers_that_every_runtime_takes(name):
    images = np.random.default_rng(0).standard_normal((4, 3, 32, 32), dtype=np.float32)
    model = timm.create_model(name, num_classes=3)
    quantised = post_training_int8(to_onnx(model, torch.from_numpy(images[:1]), opset=18), images, ignored=[])
    check_quantizers(quantised)
