from itertools import combinations
from xml.etree import ElementTree as ET

import pytest

from pipeline.steps.report import charts
from pipeline.steps.report.charts import Point
from pipeline.steps.report.svg import Box, Scale, latency_range, log_ticks, place_label, round_ticks, span, tick_texts


def point(target, variant, p50, accuracy=97.0, chosen=False):
    low, high = accuracy - 1.5, accuracy + 1.2
    return Point(
        target=target,
        variant=variant,
        accuracy=accuracy,
        accuracy_low=low,
        accuracy_high=high,
        p50=p50,
        p90=p50 * 1.1,
        chosen=chosen,
    )


def draw(points, width=860):
    return ET.fromstring(charts.accuracy_latency(points, width=width, height=460, name="c").markup())


def texts(svg):
    return [element.text for element in svg.iter("text")]


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 10, [0, 2, 4, 6, 8, 10]),
        (92.3, 98.9, [93, 94, 95, 96, 97, 98]),
        (0.00012, 0.00031, [0.00015, 0.0002, 0.00025, 0.0003]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
    ],
)
def test_ticks_are_round(low, high, expected):
    assert round_ticks(low, high, count=5) == pytest.approx(expected)


def test_log_ticks_are_round():
    assert log_ticks(0.9, 22) == [1, 2, 5, 10, 20]
    assert log_ticks(0.001, 1000) == [0.001, 0.01, 0.1, 1, 10, 100, 1000]


def test_ticks_share_their_decimals():
    assert tick_texts([1, 1.5, 2]) == ["1.0", "1.5", "2.0"]
    assert tick_texts([0.5, 1, 1000], log=True) == ["0.5", "1", "1,000"]


def test_scale_maps_its_ends():
    for log in (False, True):
        scale = Scale(1, 100, 50, 450, log)
        assert (scale(1), scale(100)) == (50, 450)
    assert Scale(1, 100, 0, 100, log=True)(10) == pytest.approx(50)


def test_scale_of_one_value_has_width():
    low, high = span([5.0, 5.0])
    assert low < 5 < high
    low, high, log = latency_range([2.0])
    assert low < 2 < high
    assert not log


@pytest.mark.parametrize(("slowest", "log"), [(9.0, False), (11.0, True)])
def test_log_scale_from_a_tenfold_range(slowest, log):
    assert latency_range([1.0, slowest])[2] is log


def test_labels_keep_apart():
    bounds, taken = Box(0, 0, 400, 300), []
    for index in range(8):
        taken.append(place_label((200 + index, 150), text="variant", taken=taken, bounds=bounds))
    assert all(one.overlap(other) == 0 for one, other in combinations(taken, 2))
    assert all(box.outside(bounds) == 0 for box in taken)


def test_accuracy_latency_shows_every_variant():
    svg = draw([point("a", "fp32", 2.0), point("a", "int8", 1.0, chosen=True), point("b", "fp32", 30.0, 95.0)])
    assert [t for t in texts(svg) if t in ("fp32", "int8")] == ["int8", "fp32", "fp32"]
    assert any("ms" in t and "log scale" in t for t in texts(svg) if t)
    assert "top-1 accuracy, %" in texts(svg)
    assert svg.get("role") == "img"
    ids = {element.get("id") for element in svg.iter()}
    assert set(svg.get("aria-labelledby").split()) <= ids
    assert "a, int8 (chosen): 97.0 % at p50 1.00 ms, p90 1.10 ms." in svg.find("desc").text


def test_names_that_find_no_room_are_left_to_the_markers():
    """Of many variants at one place the chosen one is named first, and no name stands on another."""
    names = [f"a_long_name_of_variant_{number}" for number in range(40)]
    svg = draw([point("a", name, 1.0, chosen=name == names[-1]) for name in names], width=326)
    shown = [text for text in texts(svg) if text in names]
    assert shown[0] == names[-1]
    assert 1 < len(shown) < 40
    tips = [element.find("title").text for element in svg.iter("path") if element.find("title") is not None]
    assert all(any(name in tip for tip in tips) for name in names)


def test_targets_differ_by_shape_and_colour():
    svg = draw([point(f"t{index}", "fp32", 1.0 + index) for index in range(6)])
    markers = [element for element in svg.iter("path") if element.find("title") is not None]
    assert len({element.get("d") for element in markers}) == 6
    assert len({element.get("class") for element in markers}) == 6


@pytest.mark.parametrize("width", [326, 960])
def test_drawing_stays_within_the_picture(width):
    points = [
        point(f"target-{t}", v, (t + 1) * f) for t in range(4) for v, f in (("fp32", 3), ("bf16", 2), ("int8", 1))
    ]
    svg = draw(points, width=width)
    for line in svg.iter("line"):
        assert all(0 <= float(line.get(key)) <= width for key in ("x1", "x2"))
        assert all(0 <= float(line.get(key)) <= 460 for key in ("y1", "y2"))


def test_perfect_accuracy_stays_within_the_picture():
    svg = draw([point("a", "fp32", 2.0, 98.8)])
    assert all(float(line.get("y1")) >= 0 for line in svg.iter("line"))


def test_names_are_escaped():
    markup = charts.accuracy_latency([point("<b>x", 'a"&', 1.0)], width=500, height=300, name="c").markup()
    assert "<b>" not in markup
    assert "<b>x" in texts(ET.fromstring(markup))


def test_curves_show_what_was_recorded():
    series = {"loss": [(0.0, 2.0), (1.0, 1.0)], "kl": [(0.0, 0.5), (1.0, 0.25)]}
    columns = {"loss": "total", "ce": "teacher", "kl": "KL"}
    canvas = charts.curves(series, columns=columns, titles=("Losses", "loss"), width=400, height=300, name="c")
    svg = ET.fromstring(canvas.markup())
    assert {"total", "KL", "epoch", "loss"} <= set(texts(svg))
    assert "teacher" not in texts(svg)
    assert len(list(svg.iter("polyline"))) == 2
    assert svg.find("desc").text == "total: 1 at epoch 1. KL: 0.25 at epoch 1."


def test_curves_of_one_epoch_can_be_seen():
    canvas = charts.curves(
        {"loss": [(1.0, 2.0)]}, columns={"loss": "total"}, titles=("L", "l"), width=400, height=300, name="c"
    )
    assert "marker c0 full" in canvas.markup()


def test_curves_without_columns():
    assert charts.curves({}, columns={"loss": "total"}, titles=("L", "l"), width=400, height=300, name="c") is None


def test_histograms_count_every_sample():
    samples = {"fp32": [2.0 + 0.001 * i for i in range(1000)], "int8": [1.0] * 990 + [500.0] * 10}
    svg = ET.fromstring(charts.histograms(samples, target="t", width=600, name="h").markup())
    assert {"fp32", "int8", "1,000 samples"} <= set(texts(svg))
    assert charts.histograms({}, target="t", width=600, name="h") is None


def test_samples_beyond_the_axis_are_counted():
    svg = ET.fromstring(charts.histograms({"a": [1.0] * 999 + [80.0]}, target="t", width=600, name="h").markup())
    assert "1,000 samples, 1 beyond the axis" in texts(svg)
