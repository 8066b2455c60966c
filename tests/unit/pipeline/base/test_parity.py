import json
from functools import partial

import numpy as np
import pytest

from pipeline.base import parity
from pipeline.base.errors import ParityError
from pipeline.parts.scores import Accuracy, MeanIoU

LABELS = np.array([0, 1, 1])
LOGITS = np.array([[2.0, 1.0], [0.0, 4.0], [1.0, 0.0]], dtype=np.float32)
compare = partial(parity.compare, score=Accuracy)


def test_equal_answers_have_no_error(tmp_path):
    found = compare(("torch", LOGITS), ("merged", LOGITS.copy()), targets=LABELS, tolerance=0.0)
    found.write(tmp_path / "parity.json")
    record = json.loads((tmp_path / "parity.json").read_text())
    assert record["from"] == "torch"
    assert record["to"] == "merged"
    assert record["max_abs_error"] == 0
    assert record["cosine"] == pytest.approx(1)
    assert record["argmax_agreement"] == 1
    assert record["accuracy_from_percent"] == pytest.approx(200 / 3)
    assert record["passed"] is True


def test_errors_are_what_they_are_called():
    changed = LOGITS.copy()
    changed[0] = [1.0, 2.0]
    found = compare(("onnx", LOGITS), ("int8", changed), targets=LABELS, tolerance=None)
    assert found.max_abs_error == 1
    assert found.mean_abs_error == pytest.approx(2 / 6)
    assert found.relative_error == pytest.approx(0.25)
    assert found.cosine == pytest.approx((0.8 + 1 + 1) / 3)
    assert found.argmax_agreement == pytest.approx(2 / 3)
    assert found.accuracy_to_percent == pytest.approx(100 / 3)
    assert found.passed


def test_a_change_beyond_the_tolerance_is_refused():
    with pytest.raises(ParityError, match=r"merged differs from torch by 0\.1 .* more than the 0\.08 allowed"):
        compare(("torch", LOGITS), ("merged", LOGITS + np.float32(0.1)), targets=LABELS, tolerance=0.02)


def test_the_tolerance_grows_with_the_logits_above_one():
    big, small = LOGITS * 25, LOGITS / 25  # largest logits 100 and 0.16
    assert compare(("a", big), ("b", big + np.float32(0.09)), targets=LABELS, tolerance=1e-3).passed
    with pytest.raises(ParityError, match="0.001 allowed"):
        compare(("a", small), ("b", small + np.float32(0.002)), targets=LABELS, tolerance=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_refused_whatever_the_tolerance(value):
    broken = LOGITS.copy()
    broken[1, 1] = value
    with pytest.raises(ParityError, match="1 logits that are not finite"):
        compare(("onnx", LOGITS), ("fp16", broken), targets=LABELS, tolerance=None)


def test_masks_are_compared_pixel_by_pixel():
    before = np.zeros((1, 2, 2, 2), np.float32)
    before[0, 1, 0] = 3.0  # the upper row is of class 1
    after = before.copy()
    after[0, 1, 1, 1] = 1.0
    masks = np.array([[[1, 1], [0, 255]]])
    found = parity.compare(
        ("onnx", before), ("int8", after), targets=masks, score=partial(MeanIoU, ["a", "b"]), tolerance=None
    )
    assert (found.samples, found.argmax_agreement) == (1, 0.75)
    assert (found.accuracy_from_percent, found.accuracy_to_percent) == (100, 100)  # what changed does not count
    after[0, 1, 1, 0] = 1.0
    found = parity.compare(
        ("onnx", before), ("int8", after), targets=masks, score=partial(MeanIoU, ["a", "b"]), tolerance=None
    )
    assert found.accuracy_to_percent == pytest.approx(100 * (0 + 2 / 3) / 2)


def test_one_image_more_is_no_comparison():
    with pytest.raises(ValueError, match="shorter"):
        compare(("a", LOGITS), ("b", LOGITS[:2]), targets=LABELS, tolerance=None)
