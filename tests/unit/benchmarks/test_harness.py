import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from benchmarks.harness import Result, paired
from benchmarks.overhead import Added, added, gaps_of, measure_added
from benchmarks.references import BENCHMARK_APP, LOOP, python, read_graph, read_median
from deploy.measure import issuer, loadgen

NAME = ("student", "openvino", "int8")
# Of release 2026.4.1.
REPORT = """[Step 11/11] Dumping statistics report
[ INFO ] Execution Devices:['CPU']
[ INFO ] Count:            18570 iterations
[ INFO ] Duration:         2000.22 ms
[ INFO ] Latency:
[ INFO ]    Median:        {median}
[ INFO ]    Average:       102.17 us
"""


def result(ours, theirs, call=(), **changes):
    return Result(name=NAME, ours=ours, theirs=theirs, call=call, **{"quiet": True, "tried": 8} | changes)


@pytest.mark.parametrize(("median", "nanoseconds"), [("92.08 us", 92_080), ("13.20 ms", 13_200_000)])
def test_a_median_is_read_in_either_unit(median, nanoseconds):
    assert read_median(REPORT.format(median=median)) == pytest.approx(nanoseconds)


def test_a_report_without_a_median_ends_the_benchmark():
    with pytest.raises(SystemExit, match="no median in what it printed, which ends '.*ERROR"):
        read_median("[ ERROR ] Cannot set precision for a compiled model.")


def test_a_ratio_is_taken_within_each_round():
    slow_spell = [100.0] * 5 + [300.0]
    found = paired([1.02 * each for each in slow_spell], slow_spell)
    assert (found.value, found.low, found.high) == pytest.approx((1.02, 1.02, 1.02))


def test_the_interval_of_twelve_rounds_leaves_out_two_at_each_end():
    found = paired([100 + each for each in range(12)], [100] * 12)
    assert (found.value, found.low, found.high) == pytest.approx((1.055, 1.02, 1.09))


@pytest.mark.parametrize(("ratio", "fits"), [(0.969, False), (0.971, True), (1.029, True), (1.031, False)])
def test_medians_fit_within_three_percent(ratio, fits):
    assert result([100 * ratio] * 6, [100] * 6).fits is fits


def test_the_call_is_told_apart_and_excuses_nothing():
    row = result([110_000.0] * 6, [100_000.0] * 6, call=[9_000.0] * 6)
    assert row.ratio_less_call.value == pytest.approx(1.01)
    assert not row.fits
    assert str(row).split() == [
        *NAME, "0.1100", "0.1000", "10.0", "9.0", "1.100", "1.100", "to", "1.100", "1.010", "6", "of", "8", "NO",
    ]  # fmt: skip
    assert result([1], [1]).ratio_less_call is None


def test_a_noisy_machine_proves_nothing():
    row = result([100] * 6, [100] * 6, quiet=False)
    assert not row.fits
    assert str(row).endswith("too noisy to tell")


def graph(tmp_path, kernel):
    file = tmp_path / f"{kernel}.xml"
    data = f'<data layerType="FullyConnected" primitiveType="{kernel}" runtimePrecision="f32" execOrder="1"/>'
    layers = f'<layer name="a" type="FullyConnected">{data}</layer><layer name="b" type="Result"/>'
    file.write_text(f"<net><layers>{layers}</layers></net>")
    return read_graph(file)


def test_graphs_with_other_kernels_differ(tmp_path):
    one, other = graph(tmp_path, "brgemm_avx512_f32"), graph(tmp_path, "jit_gemm_f32")
    assert one.total() == 2
    assert one - other == {("FullyConnected", "FullyConnected", "brgemm_avx512_f32", "f32"): 1}


def test_a_reference_that_fails_ends_the_benchmark_with_its_last_words(tmp_path):
    with pytest.raises(SystemExit, match="ended with code 3: no such engine"):
        python("import sys; print('no such engine'); sys.exit(3)", folder=tmp_path)


def test_unrecorded_queries_are_in_no_gap():
    assert gaps_of([0, 5, 100, 110, 125], 3).tolist() == [10, 15]


@pytest.mark.parametrize(
    ("changes", "fits"),
    [({}, True), ({"whole": (3.0, 20.1)}, False), ({"timed": (20.1, 1)}, False), ({"span": 21}, False)],
)
def test_what_is_added_must_stay_below_twenty_microseconds(changes, fits):
    measured = {"issuer": "loadgen", "timed": (0.2, 0.3), "whole": (3.0, 5.0), "span": 1.4}
    assert Added(**measured | changes).fits is fits


def test_an_engine_that_does_nothing_goes_through_our_issuer():
    found = added(issuer.NAME, queries=300)
    assert found.span is None
    assert 0 < found.timed[0] <= found.timed[1]
    assert 0 < found.whole[0] <= found.whole[1]


@pytest.mark.slow
def test_an_engine_that_does_nothing_goes_through_loadgen():
    if loadgen.available() is None:
        pytest.skip("LoadGen is not installed")
    found = measure_added(queries=300)
    assert [each.issuer for each in found] == [issuer.NAME, loadgen.NAME]
    assert found[1].span is not None


@pytest.fixture
def doubled(tmp_path):
    """A network y = x + x, and an input for it."""
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 4, 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("Add", ["x", "x"], ["y"])], "doubled", values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), tmp_path / "m.onnx")
    np.save(tmp_path / "x.npy", np.ones((1, 3, 4, 4), np.float32))
    return tmp_path


@pytest.mark.slow
def test_the_plain_loop_prints_its_median(doubled):
    assert float(python(LOOP, "m.onnx", "x.npy", "1", "0.05", folder=doubled)) > 0


@pytest.mark.slow
def test_benchmark_app_takes_an_image_and_prints_its_median(doubled):
    options = ["-api", "sync", "-hint", "latency", "-ip", "f32", "-op", "f32", "-i", "x.npy", "-niter", "20"]
    assert read_median(python(BENCHMARK_APP, "-m", "m.onnx", "-d", "CPU", *options, folder=doubled)) > 0
