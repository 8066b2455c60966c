"""What the report says where images have masks."""

import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline.parts.index import IGNORED
from pipeline.steps.report.overlays import COLOURS, STRENGTH, _over, colour
from pipeline.steps.report.records import read_targets
from pipeline.steps.report.verdict import judge
from tests.unit.pipeline.steps.report.conftest import MASK_LABELS, PICTURED, RARE


def test_the_verdict_goes_by_mean_iou(masked):
    record = masked.path("measured/cpu-openvino/record.json")
    [target] = read_targets(record.parents[1], ["cpu-openvino"])
    verdict = judge(target, max_drop_points=0.07)
    assert verdict.of("int8").points == pytest.approx(-0.07)
    assert verdict.chosen == "int8"
    assert "2.00 times as fast as fp32" in verdict.words
    assert (
        "with no measurable difference in mIoU (74.0 % against 74.1 % on 5 images; 95 %, paired: -0.67 to 0.53 points)"
        in verdict.words
    )
    strict = judge(target, max_drop_points=0.06)
    assert strict.of("int8").status == "over budget"
    assert strict.chosen == "bf16"


def test_summary_names_the_metric_and_each_class(masked):
    summary = masked.build()
    assert summary["metric"] == "mIoU"
    for name, variant in summary["targets"]["cpu-openvino"]["variants"].items():
        assert variant["accuracy_per_class_percent"]["rust"] == RARE[name]


def test_page_shows_every_class_on_host_and_devices(masked):
    masked.build(max_drop_points=1.0)
    page = masked.page()
    heads = [row for row in page.rows if row[:2] == ["Class", "Of all pixels"]]
    assert heads == [
        ["Class", "Of all pixels", "teacher, host", "student, host", "cpu-onnxruntime, fp32", "cpu-onnxruntime, int8"]
        + [f"cpu-openvino, {name}" for name in ("fp32", "bf16", "int8")]
    ]
    [rust] = [row for row in page.rows if row[0] == "rust" and len(row) == len(heads[0])]
    expected = [f"{RARE[name]:.1f} %" for name in ("fp32", "int8", "fp32", "bf16", "int8")]
    assert rust == ["rust", "1.3 %", "absent", "absent", *expected]
    text = page.by_id
    assert "mIoU against latency" in text["chart"]
    assert "share of pixels whose highest logit" in text["parity"]
    assert "Images by the rarest class they hold" in text["data"]
    assert "The checks of the data found nothing." in text["data"]
    html = masked.html()
    assert "mIoU budget: 1.0" in html
    assert "bootstrap 95 % interval" in html
    assert "Wilson" not in html
    assert page.unbalanced == page.open == []


def test_page_shows_truth_and_answers_over_some_test_images(masked):
    masked.build()
    images = [found for tag, found in masked.page().tags if tag == "img"]
    captions = ["image", "truth", "cpu-onnxruntime, fp32", "cpu-onnxruntime, int8"]
    captions += ["cpu-openvino, fp32", "cpu-openvino, int8"]
    assert [found["alt"] for found in images] == [
        f"images/{place}.jpg: {caption}" for place in PICTURED for caption in captions
    ]
    decoded = [
        Image.open(io.BytesIO(base64.b64decode(found["src"].removeprefix("data:image/jpeg;base64,"))))
        for found in images
    ]
    assert {picture.size for picture in decoded} == {(12, 8)}
    arrays = [np.asarray(picture) for picture in decoded]
    assert not np.array_equal(arrays[0], arrays[1])
    assert np.array_equal(arrays[2], arrays[5])  # the engines' answers are equal here


def test_classes_have_their_colours_and_pixels_without_one_none():
    picture = np.full((1, 3, 3), 100, np.uint8)
    drawn = _over(picture, np.array([[0, 1, IGNORED]]))
    for place in (0, 1):
        colour = np.array(list(bytes.fromhex(COLOURS[place][1:])))
        np.testing.assert_allclose(drawn[0, place], (1 - STRENGTH) * 100 + STRENGTH * colour, atol=0.51)
    assert drawn[0, 2].tolist() == [100, 100, 100]


def test_without_the_logits_of_a_target_its_answers_are_not_shown(masked):
    masked.path("measured/cpu-openvino/logits.npz").unlink()
    masked.build()
    alts = [found["alt"] for tag, found in masked.page().tags if tag == "img"]
    assert len(alts) == 4 * len(PICTURED)
    assert not any("openvino" in alt for alt in alts)


def test_the_engine_hop_is_over_pixels(masked):
    summary = masked.build()
    hop = summary["targets"]["cpu-openvino"]["parity"]["int8"]["hops"][-1]
    assert (hop["images"], hop["agreement_percent"], hop["passed"]) == (5, 100, True)
    assert hop["accuracy_from"] == hop["accuracy_to"] > 0


def test_more_classes_than_colours_begin_again(masked):
    places = list(range(2 * len(COLOURS)))
    assert [colour(place) for place in places] == [*COLOURS, *COLOURS]
    drawn = _over(np.zeros((1, len(places), 3), np.uint8), np.array([places]))[0]
    np.testing.assert_array_equal(drawn[: len(COLOURS)], drawn[len(COLOURS) :])
    assert len(np.unique(drawn, axis=0)) == len(COLOURS)
    masked.build()
    for place in range(len(MASK_LABELS)):
        assert f"background:{COLOURS[place]}" in masked.html()
