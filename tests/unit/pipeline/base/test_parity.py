import json

import numpy as np
import pytest

from pipeline.base.errors import ParityError
from pipeline.base.parity import accuracy_percent, compare

LABELS = np.array([0, 1, 1])
LOGITS = np.array([[2.0, 1.0], [0.0, 4.0], [1.0, 0.0]], dtype=np.float32)


def test_equal_answers_have_no_error(tmp_path):
    parity = compare(("torch", LOGITS), ("merged", LOGITS.copy()), labels=LABELS, tolerance=0.0)
    parity.write(tmp_path / "parity.json")
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
    parity = compare(("onnx", LOGITS), ("int8", changed), labels=LABELS, tolerance=None)
    assert parity.max_abs_error == 1
    assert parity.mean_abs_error == pytest.approx(2 / 6)
    assert parity.relative_error == pytest.approx(0.25)
    assert parity.cosine == pytest.approx((0.8 + 1 + 1) / 3)
    assert parity.argmax_agreement == pytest.approx(2 / 3)
    assert parity.accuracy_to_percent == pytest.approx(100 / 3)
    assert parity.passed


def test_a_change_beyond_the_tolerance_is_refused():
    with pytest.raises(ParityError, match=r"merged differs from torch by 0\.1 .* more than the 0\.08 allowed"):
        compare(("torch", LOGITS), ("merged", LOGITS + np.float32(0.1)), labels=LABELS, tolerance=0.02)


def test_the_tolerance_grows_with_the_logits_above_one():
    big, small = LOGITS * 25, LOGITS / 25  # largest logits 100 and 0.16
    assert compare(("a", big), ("b", big + np.float32(0.09)), labels=LABELS, tolerance=1e-3).passed
    with pytest.raises(ParityError, match="0.001 allowed"):
        compare(("a", small), ("b", small + np.float32(0.002)), labels=LABELS, tolerance=1e-3)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_answers_that_are_not_finite_are_refused_whatever_the_tolerance(value):
    broken = LOGITS.copy()
    broken[1, 1] = value
    with pytest.raises(ParityError, match="1 logits that are not finite"):
        compare(("onnx", LOGITS), ("fp16", broken), labels=LABELS, tolerance=None)


def test_accuracy():
    assert accuracy_percent(LOGITS, np.array([0, 1, 0])) == 100
