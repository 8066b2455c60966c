import numpy as np
import pytest

from pipeline.base.errors import DataError
from pipeline.steps.report.records import read_targets
from pipeline.steps.report.series import read_curves, read_latencies

RECORD = "measured/cpu-openvino/record.json"


def refusal(project):
    with pytest.raises(DataError, match="dvc repro") as caught:
        read_targets(project.path("measured"), ["cpu-onnxruntime", "cpu-openvino"])
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_targets_are_read_by_name(project):
    targets = read_targets(project.path("measured"), ["cpu-onnxruntime", "cpu-openvino"])
    assert [target.name for target in targets] == ["cpu-onnxruntime", "cpu-openvino"]
    assert [variant.name for variant in targets[1].variants] == ["fp32", "bf16", "int8"]
    assert targets[1].variants[0].accuracy.correct == 437


@pytest.mark.parametrize("name", ["nowhere", "onnx/fp32"])
def test_no_records_at_all(project, name):
    with pytest.raises(DataError, match=r"No (measurement )?record.*dvc repro"):
        read_targets(project.path(name), ["cpu-onnxruntime", "cpu-openvino"])


def test_a_target_given_up_is_left_out(project):
    (found,) = read_targets(project.path("measured"), ["cpu-openvino"])
    assert found.name == "cpu-openvino"


def test_target_without_a_record(project):
    project.path(RECORD).unlink()
    assert "cpu-openvino" in refusal(project)


def test_record_that_is_not_json(project):
    project.path(RECORD).write_text("{")
    assert "is not JSON" in refusal(project)


@pytest.mark.parametrize("content", ["[]", "{}", '{"schema": 1}', '{"schema": 3}'])
def test_record_of_another_schema(project, content):
    project.path(RECORD).write_text(content)
    assert "schema" in refusal(project)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (lambda r: r.pop("runtime"), "`runtime` is None"),
        (lambda r: r.update(valid=1), "`valid` is 1"),
        (lambda r: r["variants"]["fp32"]["latency_ms"].pop("p90_low"), "`latency_ms.p90_low` is None"),
        (lambda r: r["variants"]["fp32"]["latency_ms"].update(p90=float("nan")), "`latency_ms.p90` is nan"),
        (lambda r: r["variants"]["fp32"]["latency_ms"].update(p50=0), "not positive"),
        (lambda r: r["variants"]["fp32"]["accuracy"].update(count=0), "cannot be"),
        (lambda r: r["variants"]["fp32"]["accuracy"].update(correct=451), "451 of 450"),
        (lambda r: r["variants"]["fp32"].update(engine_bytes=True), "`engine_bytes` is True"),
        (lambda r: r["variants"].update(fp32=None), "`latency_ms.p50` is None"),
        (
            lambda r: r["variants"]["fp32"]["accuracy"]["confusion"].pop(),
            "`accuracy.confusion` is not of 10 x 10 counts",
        ),
        (lambda r: r["variants"]["fp32"]["scenarios"].update(Offline=None), "`scenarios.Offline` is None"),
        (lambda r: r["variants"]["fp32"]["scenarios"]["Offline"].update(valid=None), "`valid` is None"),
        (lambda r: r["variants"]["fp32"]["end_to_end_ms"]["total"].pop("p50_low"), "`total.p50_low` is None"),
        (lambda r: r["variants"]["fp32"].update(energy={"mj_per_inference": 2.0}), "`energy.low` is None"),
        (lambda r: r["differences"][0].update(variant=None), "`variant` is None"),
        (lambda r: r["differences"][0]["latency_ratio"].update(low=0.0), "`latency_ratio.low` is 0.0"),
    ],
)
def test_malformed_values_are_named(project, change, expected):
    project.edit(RECORD, change)
    assert expected in refusal(project)


def test_curves_without_a_column_or_value(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("epoch,loss,kl\n0,1.5,\n1,nan,\n2,0.5,\n")
    assert read_curves(path) == {"loss": [(0.0, 1.5), (2.0, 0.5)]}
    assert read_curves(tmp_path / "none.csv") == {}


def test_series_that_are_not_numbers(tmp_path):
    path = tmp_path / "curves.csv"
    path.write_text("epoch,loss\n0,high\n")
    with pytest.raises(DataError, match="'high' where a number belongs"):
        read_curves(path)


def test_latencies_are_in_milliseconds(tmp_path):
    path = tmp_path / "samples.npz"
    samples = {"fp32/SingleStream": [1_500_000, 2_500_000], "int8/SingleStream": [900_000], "int8/Offline": [7]}
    np.savez(path, **{name: np.array(values, np.int64) for name, values in samples.items()})
    assert read_latencies(path) == {"fp32": [1.5, 2.5], "int8": [0.9]}
    assert read_latencies(tmp_path / "none.npz") == {}


@pytest.mark.parametrize(
    ("samples", "expected"),
    [
        (np.array([1.5]), "'a/SingleStream' holds float64 of shape (1,), expected a row of int64"),
        (np.array(["x"], object), "cannot be read"),
    ],
)
def test_samples_that_are_no_nanoseconds(tmp_path, samples, expected):
    np.savez(tmp_path / "samples.npz", **{"a/SingleStream": samples})
    with pytest.raises(DataError, match="dvc repro") as caught:
        read_latencies(tmp_path / "samples.npz")
    assert expected in str(caught.value)


@pytest.mark.parametrize("size", [0, 40, 400])
def test_samples_that_were_cut_short(tmp_path, size):
    path = tmp_path / "samples.npz"
    np.savez(path, **{"a/SingleStream": np.arange(100)})
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(DataError, match="samples.npz' cannot be read"):
        read_latencies(path)


def test_a_difference_can_be_seen_from_both_sides(project):
    (target,) = read_targets(project.path("measured"), ["cpu-openvino"])
    fp32, _, int8 = target.variants
    there, back = target.difference(int8, fp32), target.difference(fp32, int8)
    assert there.latency_ratio.value == pytest.approx(0.5)
    assert there.latency_ratio.low == pytest.approx(0.495)
    assert (back.latency_ratio.value, back.latency_ratio.high) == pytest.approx((2.0, 1 / 0.495))
    assert back.accuracy_points.low == -there.accuracy_points.high
    assert target.difference(fp32, fp32) is None
