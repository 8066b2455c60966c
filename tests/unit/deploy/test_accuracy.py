import numpy as np
import pytest

from deploy.accuracy import accuracy_summary, evaluate, wilson
from deploy.errors import EngineError, MeasureError


def test_logits_are_stacked_in_order_from_batches_of_one():
    shapes = []

    def engine(image):
        shapes.append(image.shape)
        return np.array([[image.sum(), -image.sum()]], np.float32)

    logits = evaluate(engine, [1, 2, 3], lambda item: np.full((3, 2, 2), item, np.float32), on_progress=print)
    assert shapes == [(1, 3, 2, 2)] * 3
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [[12, -12], [24, -24], [36, -36]])


def test_empty_split():
    with pytest.raises(MeasureError, match="no item to evaluate"):
        evaluate(lambda image: image, [], lambda item: item, on_progress=print)


def test_values_that_are_not_finite():
    load = lambda item: np.full((1,), item, np.float32)  # noqa: E731
    with pytest.raises(EngineError, match="not finite for 1 of 3 items"):
        evaluate(lambda image: image, [0, np.nan, 1], load, on_progress=print)


def test_progress(monkeypatch):
    times = iter(range(0, 100, 1))
    monkeypatch.setattr("deploy.accuracy.time.monotonic", lambda: next(times))
    lines = []
    evaluate(lambda image: image, [0] * 9, lambda item: np.zeros(1, np.float32), on_progress=lines.append)
    assert lines
    assert lines[0].endswith("of 9 images")


@pytest.mark.parametrize(
    ("correct", "count", "low", "high"),
    [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634), (81, 263, 0.2553, 0.3662)],
)
def test_wilson_is_that_of_the_literature(correct, count, low, high):
    assert wilson(correct, count) == pytest.approx((low, high), abs=5e-5)


def test_summary():
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2, 2]]
    assert accuracy_summary(logits, [0, 1, 2, 3, 0, 1, 2, 3]) == {
        "percent": 87.5,
        "correct": 7,
        "count": 8,
        "low_percent": 52.91,
        "high_percent": 97.76,
    }
