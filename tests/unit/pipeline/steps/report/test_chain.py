from itertools import pairwise

import numpy as np
import pytest

from pipeline.base.errors import DataError
from pipeline.steps.report.chain import assemble, compare, read_host
from pipeline.steps.report.records import read_targets


def chains_of(project, target="cpu-openvino"):
    host = read_host(
        project.path("merged"), onnx=project.path("onnx"), reference_logits=project.path("reference_logits.npz")
    )
    found = next(
        each
        for each in read_targets(project.path("measured"), ["cpu-onnxruntime", "cpu-openvino"])
        if each.name == target
    )
    return {chain.variant: chain for chain in assemble(found, host=host)}


def compared(reference, found, labels, tolerance=0.1):
    reference, found = np.array(reference, np.float32), np.array(found, np.float32)
    return compare(reference, found, targets=np.array(labels), ends=("a", "b"), tolerance=tolerance)


def test_hops_follow_the_files_an_engine_came_from(project):
    chains = chains_of(project)
    assert [hop.name for hop in chains["bf16"].hops] == [
        "torch -> adapted",
        "adapted -> merged",
        "merged -> ONNX fp32",
        "ONNX fp32 -> engine bf16",
    ]
    assert [hop.name for hop in chains["int8"].hops] == [
        "torch -> adapted",
        "adapted -> merged",
        "merged -> ONNX fp32",
        "ONNX fp32 -> ONNX int8",
        "ONNX int8 -> engine int8",
    ]


def test_what_was_saved_is_as_recorded_on_the_validation_split(project):
    hop = chains_of(project)["int8"].hops[0]
    assert (hop.max_abs_error, hop.mean_abs_error, hop.relative_error) == (3.1e-3, 3.1e-3 / 5, 3.1e-4)
    assert (hop.accuracy_from, hop.low, hop.high) == (97.5, -0.5, 0.5)
    assert (hop.images, hop.split, hop.passed) == (360, "validation", True)


def test_every_hop_after_it_is_on_the_same_test_images(project):
    hops = chains_of(project)["int8"].hops[1:]
    assert {(hop.images, hop.split) for hop in hops} == {(450, "test")}
    for one, other in pairwise(hops):
        assert one.accuracy_to == other.accuracy_from
    assert [hop.passed for hop in hops] == [True, True, None, True]  # quantisation may change answers
    quantised = hops[2]
    assert quantised.agreement_percent == pytest.approx(100 * 447 / 450)
    assert quantised.points == pytest.approx(-100 * 3 / 450)
    assert quantised.low < quantised.points < quantised.high


def test_a_hop_beyond_what_its_stage_allowed_has_failed(project):
    with np.load(project.path("merged/test_logits.npz")) as arrays:
        np.savez(project.path("merged/test_logits.npz"), adapted=arrays["adapted"], merged=arrays["merged"] + 5e-4)
    hops = chains_of(project)["fp32"].hops
    assert [hop.passed for hop in hops[1:3]] == [False, True]  # within 10 x 1e-5, and 10 x 1e-4


def test_worst_hop_is_named(project):
    chains = chains_of(project)
    assert chains["int8"].worst == (
        "ONNX fp32 -> ONNX int8 lost the most: 0.67 points (95 % interval of the change -1.53 to 0.2, so it may be "
        "chance) on the test split"
    )
    assert chains["fp32"].worst == "no hop lost accuracy on its images"


def test_a_loss_beyond_chance_is_said_to_be_one(project):
    with np.load(project.path("reference_logits.npz")) as arrays:
        content = dict(arrays)
    content["int8"][:60] = -content["int8"][:60]
    np.savez(project.path("reference_logits.npz"), **content)
    worst = chains_of(project)["int8"].worst
    assert worst.startswith("ONNX fp32 -> ONNX int8 lost the most: 12.")
    assert "chance" not in worst


def test_engine_that_loses_accuracy_is_the_worst(project):
    with np.load(project.path("reference_logits.npz")) as arrays:
        broken = np.roll(arrays["fp32"], 1, axis=1)
    np.savez(project.path("measured/cpu-openvino/logits.npz"), fp32=broken, bf16=broken, int8=broken)
    chain = chains_of(project)["int8"]
    assert chain.worst.startswith("ONNX int8 -> engine int8 lost the most: 99.33 points (95 %")
    assert chain.engine.passed is False


def test_engine_hop_is_computed_from_logits():
    hop = compared([[4, 0], [0, 2], [1, 0]], [[4, 0], [0, 2], [0.9, 1.2]], [0, 1, 0])
    assert hop.max_abs_error == pytest.approx(1.2)
    assert hop.relative_error == pytest.approx(0.3)
    assert hop.cosine == pytest.approx((1 + 1 + 0.9 / 1.5) / 3)
    assert hop.agreement_percent == pytest.approx(200 / 3)
    assert (hop.accuracy_from, hop.accuracy_to) == (100, pytest.approx(200 / 3))
    assert (hop.passed, hop.images, hop.split) == (False, 3, "test")


def test_without_a_tolerance_nothing_passes_or_fails():
    assert compared([[1, 0]], [[1, 0]], [0], tolerance=None).passed is None


def test_logits_that_are_not_finite_fail():
    hop = compared([[1, 0]], [[np.nan, 0]], [0])
    assert hop.passed is False
    assert hop.max_abs_error is None
    assert "not finite" in hop.missing


def test_logits_of_zero_have_no_relative_error():
    hop = compared([[0, 0]], [[0, 0]], [0])
    assert (hop.relative_error, hop.cosine, hop.passed) == (None, None, None)


def test_shapes_that_differ_are_not_compared():
    assert "shapes do not match" in compared([[1, 0]], [[1, 0, 0]], [0]).missing


@pytest.mark.parametrize(
    ("remove", "expected"),
    [
        ("reference_logits.npz", "no logits of fp32 and no targets"),
        ("measured/cpu-openvino/logits.npz", "no logits of fp32 on cpu-openvino"),
    ],
)
def test_absent_logits_are_not_measured(project, remove, expected):
    project.path(remove).unlink()
    chain = chains_of(project)["fp32"]
    assert chain.engine.missing == expected
    assert chain.engine.points is None
    assert chain.worst.startswith("no measured hop lost accuracy on its images (")
    assert chain.worst.endswith("ONNX fp32 -> engine fp32 not measured)")


def test_absent_array_is_not_measured(project):
    with np.load(project.path("reference_logits.npz")) as arrays:
        kept = {name: arrays[name] for name in ("fp32", "targets")}
    np.savez(project.path("reference_logits.npz"), **kept)
    chains = chains_of(project)
    assert chains["int8"].engine.missing == "no logits of int8"
    assert chains["fp32"].engine.missing is None


def test_absent_parity_record_is_not_measured(project):
    project.path("merged/saved_parity.json").unlink()
    hop = chains_of(project)["fp32"].hops[0]
    assert hop.missing == "no saved_parity.json in merged"


def test_engine_of_an_unknown_onnx_file_is_not_compared(project):
    project.edit("measured/cpu-openvino/record.json", lambda r: r["variants"]["fp32"].update(onnx_sha256="0" * 64))
    assert "no bundle has the ONNX file 000000000000" in chains_of(project)["fp32"].engine.missing


def test_broken_logits_name_the_remedy(project):
    project.path("measured/cpu-openvino/logits.npz").write_bytes(b"not a zip")
    with pytest.raises(DataError, match="dvc repro"):
        chains_of(project)


def test_pickled_logits_are_refused(project):
    np.savez(project.path("reference_logits.npz"), fp32=np.array([{}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match="cannot be read"):
        chains_of(project)
