from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torchmetrics.classification import MulticlassJaccardIndex

from deploy.errors import EngineError, MeasureError
from deploy.measure.accuracy import Classification, Segmentation, difference, evaluate, iou
from deploy.measure.journal import Journal
from deploy.measure.statistics import paired_difference
from pipeline.base.errors import DataError
from pipeline.parts.index import kept_places as kept_on_the_host
from pipeline.parts.scores import Accuracy, MeanIoU

LABELS = ("first", "second")


def of_value(item):
    return np.full((3, 2, 2), item, np.float32), np.array(0)


@pytest.fixture
def through(tmp_path):
    """Runs items through an engine, with a journal; returns the kept logits."""

    def run(engine, items, load=of_value, *, keep=None, on_progress=print, score=None):
        score = score or Classification(LABELS)
        kept = range(len(items)) if keep is None else keep
        shape = engine(np.zeros((1, 3, 2, 2), np.float32)).shape[1:]
        with Journal(tmp_path, {}, row=score.row, logits=shape, kept=list(kept)) as journal:
            score.rows = journal.rows()
            return evaluate(
                SimpleNamespace(run=engine), items, load, score=score, journal=journal, on_progress=on_progress
            )

    return run


def sums(image):
    return np.array([[image.sum(), -image.sum()]], np.float32)


def test_logits_are_stacked_in_order_from_batches_of_one(through):
    shapes = []

    def engine(image):
        shapes.append(image.shape)
        return sums(image)

    score = Classification(LABELS)
    logits = through(engine, [1, -2, 3], score=score)
    assert set(shapes) == {(1, 3, 2, 2)}
    assert logits.dtype == np.float32
    np.testing.assert_array_equal(logits, [[12, -12], [-24, 24], [36, -36]])
    assert score.by_image() == [0, 1, 0]


def test_all_answers_count_and_some_logits_are_kept(through):
    score = Classification(LABELS)
    logits = through(sums, [1, 2, 3, 4], keep=[0, 3], score=score)
    np.testing.assert_array_equal(logits[:, 0], [12, 48])
    assert score.summary()["count"] == 4


def test_an_evaluation_goes_on_where_it_was_ended(through):
    seen = []

    def engine(image):
        if image.sum() == 36 and len(seen) < 4:
            raise EngineError("the power went off")
        seen.append(image.sum())
        return sums(image)

    with pytest.raises(EngineError, match="power"):
        through(engine, [1, 2, 3, 4])
    seen += [None, None]
    score = Classification(LABELS)
    np.testing.assert_array_equal(through(engine, [1, 2, 3, 4], score=score)[:, 0], [12, 24, 36, 48])
    assert [value for value in seen if value] == [12, 24, 36, 48]
    assert score.summary()["count"] == 4


def test_empty_split(through):
    with pytest.raises(MeasureError, match="no item to evaluate"):
        through(sums, [])


def test_values_that_are_not_finite(through):
    with pytest.raises(EngineError, match="not finite for item 2 of 3"):
        through(sums, [0, np.nan, 1])


def test_progress(monkeypatch, through):
    times = iter(range(0, 100, 1))
    monkeypatch.setattr("deploy.measure.accuracy.time.monotonic", lambda: next(times))
    lines = []
    through(sums, [0] * 9, on_progress=lines.append)
    assert lines
    assert lines[0].endswith("of 9 images")


def answered(score, logits, targets):
    for one, target in zip(logits, targets, strict=True):
        score.add(one, np.asarray(target))
    return score


def test_summary():
    logits = np.eye(4, dtype=np.float32)[[0, 1, 2, 3, 0, 1, 2, 2]]
    labels = ("a", "b", "c", "d", "none")
    assert answered(Classification(labels), np.pad(logits, ((0, 0), (0, 1))), [0, 1, 2, 3, 0, 1, 2, 3]).summary() == {
        "metric": "accuracy",
        "percent": 87.5,
        "correct": 7,
        "count": 8,
        "low_percent": 52.91,
        "high_percent": 97.76,
        "right": "/g==",
        "per_class_percent": {"a": 100.0, "b": 100.0, "c": 100.0, "d": 50.0, "none": None},
        "confusion": [[2, 0, 0, 0, 0], [0, 2, 0, 0, 0], [0, 0, 2, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]],
    }


def test_a_matrix_of_very_many_classes_is_left_to_the_table_of_answers():
    labels = [str(number) for number in range(101)]
    found = answered(Classification(labels), np.eye(101, dtype=np.float32), range(101)).summary()
    assert (found["confusion"], found["percent"], len(found["per_class_percent"])) == (None, 100.0, 101)


def test_variants_are_compared_on_the_same_images(masks):
    logits, targets, ignore = masks
    one, other = (answered(Segmentation(CLASSES, ignore=ignore), each, targets) for each in (logits, -logits))
    found = difference(one, other)
    assert found.value == pytest.approx(one.summary()["percent"] - other.summary()["percent"], abs=0.011)
    assert found.low < found.value < found.high
    assert difference(one, one).value == difference(one, one).high == 0
    classes, truth = logits.mean((2, 3)), np.arange(9) % len(CLASSES)
    right, wrong = (answered(Classification(CLASSES), each, truth) for each in (np.eye(5)[truth], classes))
    assert difference(right, wrong) == paired_difference(right.right, wrong.right)


CLASSES = ("sky", "leaf", "rust", "never", "guessed")


@pytest.fixture(params=[None, 255], ids=["all count", "some are ignored"])
def masks(request):
    """Logits of 9 images of 6 x 8 pixels and their masks: one class that never occurs, one that is only guessed."""
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(9, len(CLASSES), 6, 8)).astype(np.float32)
    logits[:, 3] -= 99
    targets = generator.integers(0, 3, (9, 6, 8))
    if request.param is not None:
        targets[generator.random(targets.shape) < 0.2] = request.param
        targets[4] = request.param  # one image does not count at all
    return logits, targets, request.param


def test_iou_is_that_of_torchmetrics(masks):
    logits, targets, ignore = masks
    found = answered(Segmentation(CLASSES, ignore=ignore), logits, targets).summary()
    options = {"ignore_index": ignore, "zero_division": float("nan")}
    each = MulticlassJaccardIndex(len(CLASSES), average="none", **options)
    each.update(torch.from_numpy(logits), torch.from_numpy(targets))
    expected = (100 * each.compute()).tolist()
    assert found["per_class_percent"]["never"] is None
    assert np.isnan(expected[3])
    assert found["per_class_percent"]["guessed"] == 0
    there = [value for value in expected if not np.isnan(value)]
    named = [value for value in found["per_class_percent"].values() if value is not None]
    assert named == pytest.approx(there, abs=0.005)
    assert found["percent"] == pytest.approx(np.mean(there), abs=0.005)
    assert found["metric"] == "mIoU"
    assert found["count"] == 9


def test_host_and_device_count_alike(masks):
    logits, targets, ignore = masks
    device = answered(Segmentation(CLASSES, ignore=ignore), logits, targets).summary()
    host = MeanIoU(CLASSES)
    host.add(logits.argmax(1), targets)
    assert host.percent() == pytest.approx(device["percent"], abs=0.005)
    assert host.per_class_percent() == pytest.approx(device["per_class_percent"], abs=0.005)
    classes, truth = logits.mean((2, 3)), np.arange(9) % len(CLASSES)
    right = Accuracy()
    right.add(classes.argmax(1), truth)
    assert right.percent() == pytest.approx(
        answered(Classification(CLASSES), classes, truth).summary()["percent"], abs=0.005
    )


def test_iou_by_hand():
    pixels = np.array([[3, 4, 0], [4, 6, 0], [5, 5, 0]])  # hit; of the class; taken for it
    np.testing.assert_allclose(iou(pixels), [3 / 6, 4 / 7, np.nan])


def test_masks_without_a_class_anywhere_are_refused():
    score = answered(Segmentation(CLASSES, ignore=255), np.zeros((2, 5, 4, 4), np.float32), np.full((2, 4, 4), 255))
    assert score.by_image() == [None, None]
    with pytest.raises(MeasureError, match="no pixel of 2 masks has a class; mend the masks, or `prepare.ignore`"):
        score.summary()
    host = MeanIoU(CLASSES)
    host.add(np.zeros((2, 4, 4), np.int64), np.full((2, 4, 4), 255))
    with pytest.raises(DataError, match="no pixel of the masks that are judged has a class"):
        host.percent()


def test_the_interval_holds_the_mean_and_shrinks_with_more_images(masks):
    logits, targets, ignore = masks
    few = answered(Segmentation(CLASSES, ignore=ignore), logits, targets).summary()
    many = answered(Segmentation(CLASSES, ignore=ignore), [*logits] * 16, [*targets] * 16).summary()
    assert few["low_percent"] < few["percent"] < few["high_percent"]
    assert many["percent"] == few["percent"]
    widths = [one["high_percent"] - one["low_percent"] for one in (few, many)]
    assert 2 < widths[0] / widths[1] < 6  # the square root of 16, and noise


def test_each_image_has_a_mean_of_its_own_classes(masks):
    logits, targets, ignore = masks
    score = answered(Segmentation(CLASSES, ignore=ignore), logits, targets)
    alone = answered(Segmentation(CLASSES, ignore=ignore), logits[:1], targets[:1]).summary()
    assert score.by_image()[0] == alone["percent"]
    assert (score.by_image()[4] is None) == (ignore is not None)


@pytest.mark.parametrize("count", [1, 9, 450])
@pytest.mark.parametrize("shape", [(1, 10), (1, 3, 256, 512), (1, 19, 4096, 4096)], ids=str)
def test_host_and_device_keep_the_logits_of_the_same_images(count, shape):
    from deploy.measure.accuracy import kept_places

    kept = kept_places(count, shape)
    assert kept == kept_on_the_host(count, shape).tolist()
    assert kept[0] == 0
    assert len(kept) == len(set(kept)) <= count
    assert len(kept) == min(count, max(1, 2**26 // (4 * int(np.prod(shape)))))
