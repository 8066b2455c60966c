"""`slad lint`, as a user starts it."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from stages.__main__ import app
from tests.unit.pipeline.steps.quantize.graphs import Graph, external, layer_norm, linear


@pytest.fixture
def slad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments):
        return CliRunner().invoke(app, ["lint", *arguments])

    return invoke


def write(folder, model, *, precision=None, onnx="model.onnx"):
    (folder / "model.onnx").write_bytes(model.SerializeToString())
    if precision:
        (folder / "bundle.json").write_text(json.dumps({"schema": 1, "precision": precision, "onnx": onnx}))


def test_a_clean_file_is_one_line(slad, tmp_path):
    write(tmp_path, linear(), precision="int8")
    result = slad("model.onnx")
    assert result.exit_code == 0
    assert result.stdout == (
        "model.onnx: legal for tensorrt10, tensorrt11, openvino, onnxruntime; 3 Q and DQ nodes, precision int8\n"
    )
    assert (
        "legal for openvino, tensorrt11;" in slad("model.onnx", "--target", "openvino", "--target", "tensorrt11").stdout
    )


def test_findings_are_printed_and_counted(slad, tmp_path):
    write(tmp_path, linear(zero=np.uint8(128)))
    result = slad("model.onnx")
    assert result.exit_code == 4
    lines = result.stdout.splitlines()
    assert [line.split(": ")[:2] for line in lines] == [
        ["unsigned", "'q' (QuantizeLinear)"],
        ["zero-point", "'q' (QuantizeLinear)"],
    ]
    assert all("to do: let `slad repro`" in line for line in lines)
    assert (
        result.stderr
        == "error: 'model.onnx' breaks rules in 2 place(s): unsigned, zero-point; what to do stands above\n"
    )


def test_the_bundle_says_the_precision_unless_the_user_does(slad, tmp_path):
    write(tmp_path, layer_norm(1), precision="int8")
    assert slad("model.onnx").stdout.startswith("no-quantizer: graph 'small'")
    assert slad("model.onnx", "--precision", "fp32").exit_code == 0
    assert slad("model.onnx", "--precision", "fp16").stdout.startswith("fp16-layernorm")
    write(tmp_path, layer_norm(1), precision="int8", onnx="other.onnx")
    assert "no precision claimed" in slad("model.onnx").stdout


def test_external_data_is_judged_before_it_is_read(slad, tmp_path):
    write(tmp_path, external(linear(), "../outside.bin"))
    result = slad("model.onnx")
    assert result.exit_code == 4
    assert result.stdout.startswith("external-data: tensor ")
    assert len(result.stdout.splitlines()) == 1


def garbage(folder):
    (folder / "model.onnx").write_bytes(b"\xff\x00 no protobuf")


def empty(folder):
    (folder / "model.onnx").write_bytes(b"")


def spoiled_bundle(folder):
    write(folder, linear())
    (folder / "bundle.json").write_text("{")


@pytest.mark.parametrize(
    ("prepare", "arguments", "code", "words"),
    [
        (lambda _: None, [], 4, "'model.onnx': no such file; give the path of an ONNX file"),
        (lambda folder: (folder / "model.onnx").mkdir(), [], 4, "cannot be read (Is a directory); give the path"),
        (garbage, [], 4, "'model.onnx' is no ONNX file; give the path"),
        (empty, [], 4, "'model.onnx' is no ONNX file, or one without a graph; give the path"),
        (spoiled_bundle, [], 4, "'bundle.json' cannot be read"),
        (
            lambda folder: write(folder, linear()),
            ["--target", "tpu"],
            2,
            "target 'tpu' is unknown; choose of tensorrt10",
        ),
        (
            lambda folder: write(folder, linear()),
            ["--precision", "int4"],
            2,
            "precision 'int4' is unknown; choose of int8",
        ),
    ],
    ids=["missing", "folder", "garbage", "empty", "bundle", "target", "precision"],
)
def test_what_cannot_be_checked_is_one_line_with_the_remedy(slad, tmp_path, prepare, arguments, code, words):
    prepare(tmp_path)
    result = slad("model.onnx", *arguments)
    assert result.exit_code == code
    assert words in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert result.stdout == ""


def test_what_is_no_valid_onnx_is_not_called_legal(slad, tmp_path):
    model = linear()
    model.graph.node[0].op_type = "Foo"
    write(tmp_path, model)
    result = slad("model.onnx")
    assert result.exit_code == 4
    assert "'model.onnx' is no valid ONNX (No Op registered for Foo" in result.stderr


def test_a_graph_that_reads_its_own_output_ends_in_one_line(slad, tmp_path):
    graph = Graph((1, 2, 4, 4))
    shape = graph.constant("shape", np.int64([1, 2, 4, 4]))
    graph.node("Reshape", "b", shape, output="a", name="one")
    graph.node("Reshape", "a", shape, output="b", name="two")
    scores = graph.node("Softmax", graph.node("MatMul", "a", "x"))
    write(tmp_path, graph.model(graph.node("MatMul", scores, "x")))
    result = slad("model.onnx")
    assert result.exit_code == 4
    assert "reads its own output" in result.stderr


def test_targets_may_be_given_with_commas(slad, tmp_path):
    write(tmp_path, linear())
    assert "legal for tensorrt10, openvino;" in slad("model.onnx", "--target", "tensorrt10,openvino").stdout
