import base64

import pytest

from deploy.errors import MeasureError
from deploy.measure.compare import BETTER, SAME, WORSE, Tolerance, compare
from deploy.measure.statistics import paired_difference, unpaired_difference
from tests.unit.deploy.measure.records import IMAGES, accuracy, document, interval, log_interval, record, variant

STRICT = Tolerance(accuracy_points=0.0, latency_percent=0.0)


def rows(before, after, *, tolerance=STRICT, **changes):
    ours, theirs = record(variants={"fp32": before}), record(variants={"fp32": after}, **changes)
    found = compare(document(ours), document(theirs, "b.json"), tolerance=tolerance)
    return {row.quantity: row for row in found.rows}


def test_a_record_differs_in_nothing_from_itself():
    found = rows(variant(), variant())
    assert set(found) == {"accuracy", "p50", "p90", "p99", "throughput", "memory", "size"}
    assert {row.verdict for row in found.values()} == {SAME}
    assert not any(row.regression for row in found.values())


def test_accuracy_is_paired_by_image_where_the_images_are_the_same():
    wrong = set(range(10))
    found = rows(variant(wrong=wrong), variant(wrong=wrong | set(range(10, 18))))["accuracy"]
    right = [[index not in lost for index in range(IMAGES)] for lost in (set(range(18)), wrong)]
    expected = paired_difference(*right)
    assert (found.difference, found.low, found.high) == (pytest.approx(-2.0), expected.low, expected.high)
    assert (found.method, found.verdict, found.regression) == (expected.method, WORSE, True)
    apart = rows(variant(wrong=wrong), variant(wrong=set(range(20, 38))))["accuracy"]
    assert (apart.difference, apart.verdict) == (
        pytest.approx(-2.0),
        SAME,
    )  # as many points, but many images changed both ways


def test_accuracy_on_other_images_is_of_independent_samples():
    found = rows(variant(wrong=set(range(4))), variant(wrong=set(range(40))), data_sha256="e" * 64)["accuracy"]
    expected = unpaired_difference(360, 400, their_correct=396, their_count=400)
    assert (found.difference, found.low, found.high, found.method) == (
        expected.value, expected.low, expected.high, expected.method,
    )  # fmt: skip
    assert (found.verdict, found.regression) == (WORSE, True)


def test_mean_iou_is_compared_by_both_intervals():
    def masks(percent, reach):
        ends = {"percent": percent, "low_percent": percent - reach, "high_percent": percent + reach}
        return {"metric": "mIoU", "count": 50, "per_class_percent": {"a": 1.0}, **ends}

    found = rows(variant(accuracy=masks(80.0, 3.0)), variant(accuracy=masks(75.0, 4.0)))["mIoU"]
    assert (found.difference, found.low, found.high) == (-5.0, -10.0, 0.0)
    assert found.verdict == SAME
    assert "squared and added" in found.method
    assert rows(variant(accuracy=masks(80.0, 1.0)), variant(accuracy=masks(75.0, 1.0)))["mIoU"].verdict == WORSE


@pytest.mark.parametrize(
    ("p90", "verdict"), [(2.0, SAME), (2.02, SAME), (2.1, WORSE), (1.9, BETTER)], ids=["equal", "noise", "up", "down"]
)
def test_latency_and_throughput_are_compared_by_their_ratio(p90, verdict):
    found = rows(variant(p90=2.0), variant(p90=p90))
    assert found["p90"].difference == pytest.approx(p90 / 2)
    assert (found["p90"].low, found["p90"].high) == pytest.approx(log_interval(2.0, p90, 0.01))
    assert {found[name].verdict for name in ("p50", "p90", "p99", "throughput")} == {verdict}
    assert [name for name in found if found[name].regression] == (["p50", "p90"] if verdict == WORSE else [])


@pytest.mark.parametrize(
    ("tolerance", "regressions"),
    [
        ((0.0, 0.0), ["accuracy", "p50", "p90"]),
        ((3.0, 0.0), ["p50", "p90"]),
        ((2.99, 5.0), ["accuracy", "p50", "p90"]),
        ((0.0, 10.0), ["accuracy"]),
        ((3.0, 10.0), []),
    ],
)
def test_what_is_accepted_is_no_regression(tolerance, regressions):
    points, percent = tolerance
    after = variant(wrong=set(range(15)), p90=2.2)
    found = rows(variant(), after, tolerance=Tolerance(accuracy_points=points, latency_percent=percent))
    assert found["accuracy"].difference == pytest.approx(-3.0)
    assert [name for name in found if found[name].regression] == regressions
    assert found["p90"].verdict == WORSE


@pytest.mark.parametrize(
    ("changes", "quantity", "verdict"),
    [
        ({"memory_mb": 62.0}, "memory", SAME),
        ({"memory_mb": 66.0}, "memory", WORSE),
        ({"memory_mb": 50.0}, "memory", BETTER),
        ({"engine_bytes": 1_000_001}, "size", WORSE),
        ({"engine_bytes": 999_999}, "size", BETTER),
    ],
)
def test_memory_and_size_are_told_and_fail_nothing(changes, quantity, verdict):
    found = rows(variant(), variant(**changes))[quantity]
    assert (found.verdict, found.low, found.regression) == (verdict, None, False)


def test_what_one_record_lacks_is_not_compared():
    assert "memory" not in rows(variant(), variant(memory_mb=None))
    assert "throughput" not in rows(variant(scenarios={}), variant())
    rate = {"Offline": {"samples_per_second": {"value": 500.0, "low": None, "high": None}}}
    assert "throughput" not in rows(variant(scenarios=rate), variant())
    energy = {"mj_per_inference": 2.0, "low": 1.9, "high": 2.1}
    assert "energy" not in rows(variant(), variant(energy=energy))
    assert rows(variant(energy=energy), variant(energy=energy | {"mj_per_inference": 2.05}))["energy"].verdict == SAME
    none = {"mj_per_inference": 0.1, "low": -0.1, "high": 0.3}  # idle power subtracted leaves little
    found = rows(variant(energy=none), variant(energy=energy))["energy"]
    assert (found.verdict, found.method) == (SAME, "too close to 0 for a ratio")


def test_a_memory_of_nothing_has_no_ratio():
    found = rows(variant(memory_mb=0.0), variant(memory_mb=5.0))["memory"]
    assert (found.difference, found.verdict) == (None, WORSE)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, None),
        ({"device": {"machine_id": "4567"}}, "different devices: machine_id '0123' and '4567'; cpu {"),
        ({"profile": "mlperf"}, "different profiles: 'standard' and 'mlperf'"),
        ({"partial": "ended by SIGTERM"}, "b.json is of a partial run: ended by SIGTERM"),
        ({"valid": False, "invalid_reasons": ["throttled"]}, "b.json is of an invalid run: throttled"),
        ({"valid": False, "invalid_reasons": []}, "b.json is of an invalid run: it gives no reason"),
        ({"failed": {"fp32": "out of memory"}}, "'fp32' was not measured in b.json: out of memory"),
        ({"variants": {"int8": variant()}}, "no variant in common: fp32 and int8"),
        (
            {"variants": {"fp32": variant(accuracy=accuracy({1}) | {"per_class_percent": {"a": 1.0, "c": 1.0}})}},
            "'fp32' knows other classes: in one record only b, c",
        ),
    ],
)
def test_what_should_not_be_compared_is_said(changes, expected):
    found = compare(document(record()), document(record(**changes), "b.json"), tolerance=STRICT).obstacles
    assert len(found) == (expected is not None)
    assert all(expected in words for words in found)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"runtime_version": "2027.0"}, "runtime_version: 2026.4.1 in a.json, 2027.0 in b.json"),
        ({"data_sha256": "e" * 64}, "measured on other test images"),
        ({"statistics_engine": {"name": "slad", "version": "1"}}, "statistics by loadgen in a.json, by slad in b.json"),
        ({"variants": {"fp32": variant(), "int8": variant()}}, "only in b.json: int8"),
    ],
)
def test_what_a_reader_should_know_is_said(changes, expected):
    found = compare(document(record()), document(record(**changes), "b.json"), tolerance=STRICT)
    assert found.obstacles == ()
    assert expected in " ".join(found.notes)


def test_another_python_is_the_same_device():
    theirs = record(device={**record()["device"], "python": "3.12"})
    assert compare(document(record()), document(theirs), tolerance=STRICT).obstacles == ()


@pytest.mark.parametrize(
    ("spoil", "expected"),
    [
        (lambda v: v.pop("engine_bytes"), "b.json/fp32: key `engine_bytes` is missing; measure it again"),
        (lambda v: v["accuracy"].update(right="?"), "`accuracy.right` is not base64"),
        (lambda v: v["accuracy"].update(right=base64.b64encode(b"ab").decode()), "does not hold 400 answers"),
        (lambda v: v["accuracy"].update(correct=5), "does not hold 400 answers as the record counts them"),
        (lambda v: v["accuracy"].update(metric="mIoU"), "`accuracy.metric` is 'mIoU', 'accuracy' in the other record"),
        (lambda v: v["latency_ms"].update(p90_low=None), "`latency_ms.p90_low` should be a number, got None"),
        (
            lambda v: v["scenarios"]["Offline"].update(samples_per_second=interval(1.0) | {"low": "x"}),
            "should be a num",
        ),
    ],
)
def test_a_malformed_record_is_refused(spoil, expected):
    theirs = variant()
    spoil(theirs)
    with pytest.raises(MeasureError) as caught:
        rows(variant(), theirs)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_variant_that_is_no_object_is_refused():
    with pytest.raises(MeasureError, match="b.json: `variants.fp32` should be an object, got None"):
        rows(variant(), None)
