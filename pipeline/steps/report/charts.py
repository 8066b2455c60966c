"""The charts of the report as SVG: accuracy against latency, training curves, latency histograms.

Each takes the width it is drawn for, since text in a picture that is merely scaled down cannot be read on a phone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline.steps.report import figures
from pipeline.steps.report.series import Samples, Series
from pipeline.steps.report.svg import (
    COLOURS,
    TEXT_PX,
    Box,
    Canvas,
    Scale,
    latency_range,
    place_label,
    span,
    text_width,
    tick_texts,
)

STYLE = (Path(__file__).parent / "chart.css").read_text(encoding="utf-8")
LEFT, RIGHT, BOTTOM = 58.0, 18.0, 46.0
LEGEND_ROW = 22.0
TICK_ROOM_X, TICK_ROOM_Y = 80.0, 44.0
NOTE = "filled: chosen; bars: 95 % interval; dotted: best trade-offs"  # beside the chart where there is no caption
BINS = 48
HISTOGRAM_ROW, HISTOGRAM_ROOM = 84.0, 50.0
HISTOGRAM_QUANTILE = 0.99


@dataclass(frozen=True, kw_only=True)
class Point:
    """One variant of one target: accuracy in percent with its interval, latency in milliseconds."""

    target: str
    variant: str
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    p50: float
    p90: float
    chosen: bool


def _legend(canvas: Canvas, entries: Sequence[tuple[str, str]], *, width: float) -> float:
    """Draws (css, text) entries in rows, a line for "curve ..." and a marker for others; returns the height."""
    x, y = 8.0, LEGEND_ROW - 6
    for index, (css, text) in enumerate(entries):
        wide = 34.0 + text_width(text)
        if x > 8 and x + wide > width:
            x, y = 8.0, y + LEGEND_ROW
        if css.startswith("curve"):
            canvas.line((x, y - 4), (x + 22, y - 4), css)
        else:
            canvas.marker((x + 11, y - 4), index, css)
        canvas.text((x + 28, y), text)
        x += wide + 8
    return y + 16


def _axes(canvas: Canvas, x: Scale, y: Scale, *, titles: tuple[str, str]) -> None:
    ticks = y.ticks(max(2, int((y.start - y.end) / TICK_ROOM_Y)))
    for tick, text in zip(ticks, tick_texts(ticks), strict=True):
        canvas.line((x.start, y(tick)), (x.end, y(tick)), "grid")
        canvas.text((x.start - 8, y(tick) + 4), text, css="soft", anchor="end")
    _x_axis(canvas, x, y.start, title=titles[0])
    canvas.text((8, y.end - 12), titles[1], css="soft")


def _x_axis(canvas: Canvas, x: Scale, bottom: float, *, title: str) -> None:
    ticks = x.ticks(max(2, int((x.end - x.start) / TICK_ROOM_X)))
    for tick, text in zip(ticks, tick_texts(ticks, log=x.log), strict=True):
        canvas.line((x(tick), bottom), (x(tick), bottom + 5), "axis")
        canvas.text((x(tick), bottom + 19), text, css="soft", anchor="middle")
    canvas.line((x.start, bottom), (x.end, bottom), "axis")
    canvas.text((x.end, bottom + 38), title, css="soft", anchor="end")


def accuracy_latency(
    points: Sequence[Point], *, width: float, height: float, name: str, metric: str = "accuracy", note: str = ""
) -> Canvas:
    """Accuracy or another metric (its interval as a bar) against median latency (whisker to p90).

    One shape and colour per target; filled markers are chosen variants; the dotted line joins a target's variants that
    no other of it beats in both. A `note` goes below.
    """
    targets = list(dict.fromkeys(point.target for point in points))
    canvas = Canvas(
        width, height, name=name, title=f"{figures.capital(metric)} against latency", description=_spoken(points)
    )
    entries = [
        (f"c{i % COLOURS}{' full' if any(p.chosen and p.target == t for p in points) else ''}", t)
        for i, t in enumerate(targets)
    ]
    top = _legend(canvas, entries, width=width) + 22
    low, high, log = latency_range([value for p in points for value in (p.p50, p.p90)])
    x = Scale(low, high, LEFT, width - RIGHT, log)
    least, most = span([value for p in points for value in (p.accuracy_low, p.accuracy_high)])
    y = Scale(max(least, 0.0), min(most, 100.0), height - BOTTOM, top)
    title = f"latency, ms (marker p50, whisker to p90{', log scale' if log else ''})"
    if text_width(title) > width:
        title = f"latency, ms{' (log scale)' if log else ''}"
    _axes(canvas, x, y, titles=(title, f"{'top-1 accuracy' if metric == 'accuracy' else metric}, %"))
    for index, target in enumerate(targets):
        own = [point for point in points if point.target == target]
        front = [(x(p.p50), y(p.accuracy)) for p in _front(own)]
        if len(front) > 1:
            canvas.polyline(front, f"front c{index % COLOURS}")
        for point in own:
            _point(canvas, point, x, y, index=index)
    _labels(canvas, points, x, y)
    canvas.text((8, height - 8), note, css="soft")
    return canvas


def _front(points: Sequence[Point]) -> list[Point]:
    """Variants with no other that is both faster and more accurate, from the fastest on."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.p50, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def _spoken(points: Sequence[Point]) -> str:
    return " ".join(
        f"{p.target}, {p.variant}{' (chosen)' if p.chosen else ''}: {figures.percent(p.accuracy)} at p50 "
        f"{figures.milliseconds(p.p50)}, p90 {figures.milliseconds(p.p90)}."
        for p in points
    )


def _point(canvas: Canvas, point: Point, x: Scale, y: Scale, *, index: int) -> None:
    css = f"c{index % COLOURS}"
    px, py, tail = x(point.p50), y(point.accuracy), x(point.p90)
    canvas.line((px, y(point.accuracy_low)), (px, y(point.accuracy_high)), f"bar {css}")
    for end in (point.accuracy_low, point.accuracy_high):
        canvas.line((px - 4, y(end)), (px + 4, y(end)), f"bar {css}")
    canvas.line((px, py), (tail, py), f"bar {css}")
    canvas.line((tail, py - 4), (tail, py + 4), f"bar {css}")
    canvas.marker((px, py), index, f"{css}{' full' if point.chosen else ''}", tip=_spoken([point]))


def _labels(canvas: Canvas, points: Sequence[Point], x: Scale, y: Scale) -> None:
    targets = list(dict.fromkeys(point.target for point in points))
    bounds = Box(x.start, y.end, x.end, y.start)
    taken = [Box(x(p.p50) - 7, y(p.accuracy) - 7, x(p.p50) + 7, y(p.accuracy) + 7) for p in points]
    taken += [Box(x(p.p50), y(p.accuracy) - 4, x(p.p90) + 2, y(p.accuracy) + 4) for p in points]
    taken += [Box(x(p.p50) - 2, y(p.accuracy_high), x(p.p50) + 2, y(p.accuracy_low)) for p in points]
    labels: list[Box] = []
    for point in sorted(points, key=lambda each: not each.chosen):
        at = (x(point.p50), y(point.accuracy))
        # Bold letters are wider.
        box = place_label(
            at, text=f"{point.variant} " if point.chosen else point.variant, taken=taken, bounds=bounds, labels=labels
        )
        if not point.chosen and any(box.overlap(other) for other in labels):
            continue  # of many points at one place not all names can be read; the markers and the table have them
        labels.append(box)
        middle = ((box.left + box.right) / 2, (box.top + box.bottom) / 2)
        near = (min(max(at[0], box.left), box.right), min(max(at[1], box.top), box.bottom))
        if (near[0] - at[0]) ** 2 + (near[1] - at[1]) ** 2 > 14**2:
            canvas.line(at, near, f"leader c{targets.index(point.target) % COLOURS}")
        css = "label strong" if point.chosen else "label"
        canvas.text((middle[0], middle[1] + TEXT_PX * 0.35), point.variant, css=css, anchor="middle")


def curves(
    series: Series, *, columns: Mapping[str, str], titles: tuple[str, str], width: float, height: float, name: str
) -> Canvas | None:
    """Training curves over epochs; None where none of the columns was recorded.

    Args:
        series: column -> (epoch, value) pairs.
        columns: column -> its name in the legend, in drawing order.
        titles: of the chart and of its y axis, with the unit.
        width: in pixels.
        height: the same.
        name: unique within the page.
    """
    shown = {column: text for column, text in columns.items() if series.get(column)}
    if not shown:
        return None
    ends = [
        f"{text}: {series[column][-1][1]:.4g} at epoch {series[column][-1][0]:g}." for column, text in shown.items()
    ]
    canvas = Canvas(width, height, name=name, title=titles[0], description=" ".join(ends))
    styles = {column: f"c{i % COLOURS} d{i % 4}" for i, column in enumerate(columns)}
    entries = [(f"curve {styles[column]}", text) for column, text in shown.items()]
    top = _legend(canvas, entries, width=width) + 22
    epochs = [epoch for column in shown for epoch, _ in series[column]]
    first, last = min(epochs), max(epochs)
    x = Scale(first, last if last > first else first + 1, LEFT, width - RIGHT)
    least, most = span([value for column in shown for _, value in series[column]])
    y = Scale(least, most, height - BOTTOM, top)
    _axes(canvas, x, y, titles=("epoch", titles[1]))
    for column in shown:
        points = [(x(epoch), y(value)) for epoch, value in series[column]]
        if len(points) == 1:
            canvas.marker(points[0], 0, styles[column].split()[0] + " full")
        canvas.polyline(points, f"curve {styles[column]}")
    return canvas


def histograms(samples: Samples, *, target: str, width: float, name: str) -> Canvas | None:
    """One latency histogram per variant on a shared axis, p50 and p90 marked; None without samples.

    The axis ends at the 99th percentile of the slowest variant; how many samples lie beyond is written beside each.
    """
    if not samples:
        return None
    ordered = {variant: sorted(values) for variant, values in samples.items()}
    height = HISTOGRAM_ROW * len(samples) + BOTTOM
    what = " ".join(
        f"{v}: {len(s)} samples, {figures.decimal(s[0])} to {figures.milliseconds(s[-1])}." for v, s in ordered.items()
    )
    canvas = Canvas(width, height, name=name, title=f"Latency distribution on {target}", description=what)
    ends = [value for values in ordered.values() for value in (values[0], _quantile(values, HISTOGRAM_QUANTILE))]
    low, high, log = latency_range(ends)
    x = Scale(low, high, 12, width - 12, log)
    for row, (variant, values) in enumerate(ordered.items()):
        _histogram(canvas, values, x, label=variant, row=row)
    bottom = HISTOGRAM_ROW * len(samples)
    _x_axis(canvas, x, bottom, title=f"latency, ms{' (log scale)' if log else ''}")
    return canvas


def _quantile(ordered: Sequence[float], share: float) -> float:
    return ordered[min(int(share * len(ordered)), len(ordered) - 1)]


def _histogram(canvas: Canvas, ordered: Sequence[float], x: Scale, *, label: str, row: int) -> None:
    base, room = HISTOGRAM_ROW * (row + 1), HISTOGRAM_ROOM
    counts = [0] * BINS
    for value in ordered:
        if x.low <= value <= x.high:
            counts[min(int((x(value) - x.start) / (x.end - x.start) * BINS), BINS - 1)] += 1
    beyond = sum(value > x.high for value in ordered)
    step, most = (x.end - x.start) / BINS, max([*counts, 1])
    for index, count in enumerate(counts):
        if count:
            left = x.start + index * step
            canvas.rect(Box(left, base - room * count / most, left + step - 0.5, base), "fill c0")
    for share in (0.5, 0.9):
        at = _quantile(ordered, share)
        if at <= x.high:
            canvas.line((x(at), base - room), (x(at), base), "percentile")
    canvas.line((x.start, base), (x.end, base), "axis")
    note = f"{figures.count(len(ordered))} samples"
    more = f"{note}, {beyond} beyond the axis" if beyond else note
    if text_width(f"{label} {more}") < x.end - x.start:
        note = more
    canvas.text((x.start, base - room - 8), label, css="strong")
    canvas.text((x.end, base - room - 8), note, css="soft", anchor="end")
