import hashlib

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper

from deploy.bundle import load_bundle, load_golden
from pipeline.parts.bundle import BundleInfo, save_onnx, write_bundle
from pipeline.parts.predict import at_once, torch_logits
from pipeline.parts.predict_onnx import onnx_logits
from tests import tiny

INFO = BundleInfo(
    name="net",
    variant="fp32",
    precision="fp32",
    preprocess=vars(tiny.PREPROCESS),
    labels=["a", "b"],
    lineage={"git_revision": None, "params_sha256": "p", "data_sha256": "d", "parent_sha256": None},
)


def graph() -> onnx.ModelProto:
    """Mean over pixels, then a linear layer to two classes."""
    weight = helper.make_tensor("w", TensorProto.FLOAT, [3, 2], np.arange(6, dtype=np.float32))
    axes = helper.make_tensor("axes", TensorProto.INT64, [2], [2, 3])
    nodes = [
        helper.make_node("ReduceMean", ["image", "axes"], ["mean"], keepdims=0, doc_string="from /home/somebody"),
        helper.make_node("MatMul", ["mean", "w"], ["logits"]),
    ]
    nodes[0].metadata_props.add(key="stack_trace", value="/home/somebody/model.py")
    image = helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, tiny.SIZE, tiny.SIZE])
    logits = helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 2])
    body = helper.make_graph(nodes, "net", [image], [logits], [weight, axes])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def test_the_device_reads_what_the_host_wrote(tmp_path):
    images = np.random.default_rng(0).standard_normal((4, 3, tiny.SIZE, tiny.SIZE), dtype=np.float32)
    save_onnx(graph(), tmp_path)
    write_bundle(tmp_path, INFO, golden=images)
    bundle = load_bundle(tmp_path)
    inputs, outputs = load_golden(bundle)
    assert bundle.labels == ("a", "b")
    assert bundle.preprocess == tiny.PREPROCESS
    assert bundle.input_shape == (1, 3, tiny.SIZE, tiny.SIZE)
    assert bundle.onnx_sha256 == hashlib.sha256((tmp_path / "model.onnx").read_bytes()).hexdigest()
    np.testing.assert_array_equal(inputs, images)
    expected = images.mean(axis=(2, 3)) @ np.arange(6, dtype=np.float32).reshape(3, 2)
    np.testing.assert_allclose(outputs, expected, atol=1e-5)


def test_the_file_holds_no_path_of_this_machine(tmp_path):
    path = save_onnx(graph(), tmp_path)
    assert b"somebody" not in path.read_bytes()


def test_the_same_graph_gives_the_same_bytes(tmp_path):
    for name in "ab":
        (tmp_path / name).mkdir()
    one, two = save_onnx(graph(), tmp_path / "a"), save_onnx(graph(), tmp_path / "b")
    assert one.read_bytes() == two.read_bytes()


def test_a_broken_graph_is_not_written(tmp_path):
    broken = graph()
    broken.graph.node[1].input[1] = "nowhere"
    with pytest.raises(onnx.checker.ValidationError, match="nowhere"):
        save_onnx(broken, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_logits_of_many_images_are_those_of_each(tmp_path):
    images = np.random.default_rng(0).standard_normal((300, 3, tiny.SIZE, tiny.SIZE), dtype=np.float32)
    model = tiny.model(tiny.STUDENT)
    together = tiny.stacked(torch_logits(model, images))
    with torch.inference_mode():
        alone = model(torch.from_numpy(images[299:])).numpy()
    np.testing.assert_allclose(together[299:], alone, atol=1e-5)
    assert tiny.stacked(onnx_logits(save_onnx(graph(), tmp_path), images)).shape == (300, 2)


class Counted:
    """Images that note how many were asked for at once."""

    def __init__(self, count):
        self.count, self.asked = count, []

    def __len__(self):
        return self.count

    def __getitem__(self, which):
        self.asked.append(len(range(*which.indices(self.count))))
        return np.zeros((self.asked[-1], 3, tiny.SIZE, tiny.SIZE), np.float32)


def test_few_images_are_held_at_once(tmp_path):
    images = Counted(600)
    assert tiny.stacked(torch_logits(tiny.model(tiny.STUDENT), images)).shape == (600, 3)
    assert images.asked == [1, 256, 256, 87]
    images = Counted(5)
    list(onnx_logits(save_onnx(graph(), tmp_path), images))
    assert images.asked == [1] * 5


def test_large_images_are_predicted_a_few_at_once():
    assert [at_once(3 * side**2) for side in (16, 512, 4096)] == [256, 16, 1]
