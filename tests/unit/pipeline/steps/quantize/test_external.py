"""Weights in other files are taken from the model's own folder only, and nothing is read before that is sure."""

import numpy as np
import pytest
from onnx import TensorProto, helper

from pipeline.base.errors import ModelError
from pipeline.steps.quantize.lint import TARGETS, lint
from tests.unit.pipeline.steps.quantize.graphs import I8, Graph, external, linear

FLOAT = TensorProto.FLOAT


def broken(model, **options) -> set[str]:
    return {finding.rule.id for finding in lint(model, targets=TARGETS, **options)}


def write(folder, model):
    """Writes the data of all initialisers to `folder`/w.bin and lets the model point there."""
    (folder / "w.bin").write_bytes(b"".join(tensor.raw_data for tensor in model.graph.initializer))
    return external(model, "w.bin")


def test_scales_in_a_file_beside_the_model_are_read(tmp_path):
    assert broken(write(tmp_path, linear()), folder=tmp_path) == set()
    assert broken(write(tmp_path, linear(zero=I8(7))), folder=tmp_path) == {"zero-point"}


def absolute(folder, model):
    write(folder, linear())
    return external(model, str(folder / "w.bin"))


def upwards(folder, model):
    write(folder.parent, linear())
    return external(model, "../w.bin")


def respanned(folder, model, key, value):
    model = write(folder, model)
    next(entry for entry in model.graph.initializer[0].external_data if entry.key == key).value = value
    return model


def linked(folder, model):
    model = write(folder, model)
    (folder / "w.bin").rename(folder / "real.bin")
    (folder / "w.bin").symlink_to("real.bin")
    return model


def linked_folder(folder, model):
    (folder / "real").mkdir()
    write(folder / "real", linear())
    (folder / "sub").symlink_to("real")
    return external(model, "sub/w.bin")


OUTSIDE = {
    "absolute": (absolute, "an absolute path"),
    "windows": (lambda _, model: external(model, "C:\\w.bin"), "an absolute path"),
    "upwards": (upwards, "leads out of the folder"),
    "backslashes": (lambda _, model: external(model, "..\\w.bin"), "leads out of the folder"),
    "link": (linked, "a symbolic link"),
    "linked folder": (linked_folder, "a symbolic link"),
    "missing": (lambda _, model: external(model, "gone.bin"), "is no file in"),
    "no name": (lambda _, model: external(model, ""), "a file without a name"),
    "too short": (lambda folder, model: respanned(folder, model, "offset", "999"), "ends at byte"),
    "no number": (lambda folder, model: respanned(folder, model, "length", "all"), "are no byte counts"),
}


@pytest.mark.parametrize(("spoil", "words"), OUTSIDE.values(), ids=OUTSIDE)
def test_data_outside_the_folder_is_refused(tmp_path, spoil, words):
    (tmp_path / "model").mkdir()
    findings = lint(spoil(tmp_path / "model", linear(zero=I8(7))), targets=TARGETS, folder=tmp_path / "model")
    assert {finding.rule.id for finding in findings} == {"external-data"}  # nothing is read then, so no zero point
    assert words in findings[0].text


def test_without_a_folder_no_external_data_is_taken(tmp_path):
    assert broken(write(tmp_path, linear())) == {"external-data"}


def outside():
    """A Constant node whose data lies elsewhere."""
    tensor = TensorProto(name="inner", data_type=FLOAT, data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    return helper.make_node("Constant", [], ["o"], value=tensor)


def test_external_data_of_constants_in_branches_is_found():
    body = helper.make_graph([outside()], "body", [], [helper.make_tensor_value_info("o", FLOAT, None)])
    graph = Graph()
    condition = graph.constant("condition", np.array(True))
    model = graph.model(graph.node("If", condition, then_branch=body, else_branch=body))
    assert [finding.node for finding in lint(model, targets=TARGETS)] == ["tensor 'inner'"]


def test_external_data_of_constants_in_functions_is_found():
    graph = Graph()
    model = graph.model(graph.node("Own", domain="own"), domains=("own",))
    model.functions.append(helper.make_function("own", "Own", [], ["o"], [outside()], model.opset_import[:1]))
    assert [finding.node for finding in lint(model, targets=TARGETS)] == ["tensor 'inner'"]


def test_a_scale_that_does_not_fit_its_file_is_an_error(tmp_path):
    model = respanned(tmp_path, linear(), "length", "1")
    with pytest.raises(ModelError, match="constant 'q_scale' of the ONNX file cannot be read"):
        lint(model, targets=TARGETS, folder=tmp_path)
