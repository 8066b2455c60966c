"""What the charts are drawn with: scales, round ticks, marker shapes, an SVG canvas, and labels that keep apart."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from xml.etree import ElementTree as ET

TEXT_PX = 13
GLYPH_PX = 7.4  # mean advance of a system sans serif at TEXT_PX, on the wide side
MARGIN_PX = 14.0  # around a chart that stands alone
LOG_FROM_RATIO = 10.0
STEPS = (1.0, 2.0, 5.0, 10.0, 20.0)

# Paths around (0, 0) of about equal area; shape tells targets apart where colour does not.
SHAPES = (
    "M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0Z",  # circle
    "M-4.6,-4.6H4.6V4.6H-4.6Z",  # square
    "M0,-6L5.8,4.4H-5.8Z",  # triangle
    "M0,-6.4L6.4,0L0,6.4L-6.4,0Z",  # diamond
    "M0,6L5.8,-4.4H-5.8Z",  # triangle, point down
    "M-2,-6H2V-2H6V2H2V6H-2V2H-6V-2H-2Z",  # plus
    "M0,-6L5.7,-1.9L3.5,4.9H-3.5L-5.7,-1.9Z",  # pentagon
)
COLOURS = 6


@dataclass(frozen=True)
class Box:
    """An upright rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """Area shared with `other`."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)

    def outside(self, bounds: "Box") -> float:
        """By how many pixels it leaves `bounds`."""
        over = (bounds.left - self.left, self.right - bounds.right, bounds.top - self.top, self.bottom - bounds.bottom)
        return sum(max(each, 0.0) for each in over)


@dataclass(frozen=True)
class Scale:
    """Maps values in [low, high] onto pixels from `start` to `end`."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The pixel of `value`."""
        low, high, at = (
            (math.log(v) for v in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return self.start + (at - low) / (high - low) * (self.end - self.start)

    def ticks(self, count: int) -> list[float]:
        """About `count` round numbers within the scale."""
        return log_ticks(self.low, self.high) if self.log else round_ticks(self.low, self.high, count=count)


def round_ticks(low: float, high: float, *, count: int) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten that lie in [low, high]."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** math.floor(math.log10(raw))
    step = min((power * factor for factor in STEPS), key=lambda each: abs(math.log(each / raw)))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [float(f"{index * step:.12g}") for index in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten in [low, high]; powers alone where there would be more than eight."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [float(f"{factor}e{power}") for power in powers for factor in (1, 2, 5)]
    ticks = [tick for tick in ticks if low <= tick <= high]
    return ticks if len(ticks) <= 8 else [tick for tick in ticks if round(math.log10(tick), 9).is_integer()]


def span(values: Sequence[float], *, pad: float = 0.08) -> tuple[float, float]:
    """Lowest and highest value with room around them; never of zero width."""
    low, high = min(values), max(values)
    room = (high - low) * pad or abs(high) * pad or 1.0
    return low - room, high + room


def latency_range(values: Sequence[float]) -> tuple[float, float, bool]:
    """Low, high and whether the scale should be logarithmic, for positive values."""
    low, high = min(values), max(values)
    if high / low > LOG_FROM_RATIO:
        return low / 1.25, high * 1.25, True
    low, high = span(values, pad=0.1)
    return max(low, 0.0), high, False


def tick_texts(ticks: Sequence[float], *, log: bool = False) -> list[str]:
    """Ticks without needless digits; on a linear scale all with as many decimals."""
    plain = [f"{tick:.10g}" for tick in ticks]
    places = 0 if log else max((len(text.partition(".")[2]) for text in plain if "e" not in text), default=0)
    return [f"{tick:,.{places}f}" if places or tick >= 1000 else text for tick, text in zip(ticks, plain, strict=True)]


def text_width(text: str) -> float:
    """Estimated width in pixels."""
    return len(text) * GLYPH_PX


def place_label(
    at: tuple[float, float], *, text: str, taken: Sequence[Box], bounds: Box, labels: Sequence[Box] = ()
) -> Box:
    """Finds room for a label near a point: the nearest of many places that hides nothing.

    Where every place hides something, the one that hides least is taken; other `labels` count most.
    """
    width, height = text_width(text), TEXT_PX + 3.0
    best, least = None, math.inf
    for distance in (11.0, 17.0, 26.0, 40.0, 58.0, 80.0):
        for turn in (-45, 45, -135, 135, -90, 90, 0, 180, -20, 20, -160, 160):
            x = at[0] + distance * math.cos(math.radians(turn))
            y = at[1] + distance * math.sin(math.radians(turn))
            left = x - width * (0.5 - 0.5 * math.cos(math.radians(turn)))
            box = Box(left, y - height / 2, left + width, y + height / 2)
            hidden = sum(box.overlap(other) for other in taken) + 100 * sum(box.overlap(other) for other in labels)
            cost = hidden + 100 * box.outside(bounds)
            if cost < least:
                best, least = box, cost
            if cost == 0:
                return box
    assert best is not None
    return best


class Canvas:
    """An SVG with a title and a description, for eyes and for screen readers.

    Args:
        width: user units, pixels at natural size.
        height: the same.
        name: unique within the page; the ids of title and description begin with it.
        title: what the picture shows.
        description: what there is to see in it.
    """

    def __init__(self, width: float, height: float, *, name: str, title: str, description: str) -> None:
        self.width, self.height = width, height
        self.root = ET.Element(
            "svg",
            {
                "class": "chart",
                "viewBox": f"0 0 {width:g} {height:g}",
                "width": f"{width:g}",
                "height": f"{height:g}",
                "role": "img",
                "aria-labelledby": f"{name}-title {name}-desc",
            },
        )
        ET.SubElement(self.root, "title", {"id": f"{name}-title"}).text = title
        ET.SubElement(self.root, "desc", {"id": f"{name}-desc"}).text = description

    def line(self, start: tuple[float, float], end: tuple[float, float], css: str) -> None:
        """A straight line."""
        (x1, y1), (x2, y2) = start, end
        ends = {"x1": f"{x1:.2f}", "y1": f"{y1:.2f}", "x2": f"{x2:.2f}", "y2": f"{y2:.2f}"}
        ET.SubElement(self.root, "line", {"class": css, **ends})

    def polyline(self, points: Sequence[tuple[float, float]], css: str) -> None:
        """A line through many points."""
        text = " ".join(f"{x:.2f},{y:.2f}" for x, y in points)
        ET.SubElement(self.root, "polyline", {"class": css, "points": text})

    def rect(self, box: Box, css: str) -> None:
        """A rectangle."""
        size = {"width": f"{box.right - box.left:.2f}", "height": f"{box.bottom - box.top:.2f}"}
        ET.SubElement(self.root, "rect", {"class": css, "x": f"{box.left:.2f}", "y": f"{box.top:.2f}", **size})

    def text(self, at: tuple[float, float], text: str, *, css: str = "", anchor: str = "start") -> None:
        """Text whose baseline begins, centres or ends at a point."""
        place = {"x": f"{at[0]:.2f}", "y": f"{at[1]:.2f}", "text-anchor": anchor}
        ET.SubElement(self.root, "text", {"class": css, **place} if css else place).text = text

    def marker(self, at: tuple[float, float], index: int, css: str, tip: str = "") -> None:
        """The shape of target number `index`; `tip` shows on hover."""
        place = {"d": SHAPES[index % len(SHAPES)], "transform": f"translate({at[0]:.2f} {at[1]:.2f})"}
        shape = ET.SubElement(self.root, "path", {"class": f"marker {css}", **place})
        if tip:
            ET.SubElement(shape, "title").text = tip

    def markup(self, style: str | None = None) -> str:
        """The SVG as text; with `style`, as a file that stands alone."""
        root = ET.fromstring(ET.tostring(self.root))  # noqa: S314  # our own markup
        if style is not None:
            left, top, width, height = -MARGIN_PX, -MARGIN_PX, self.width + 2 * MARGIN_PX, self.height + 2 * MARGIN_PX
            root.set("xmlns", "http://www.w3.org/2000/svg")
            root.set("viewBox", f"{left:g} {top:g} {width:g} {height:g}")
            root.set("width", f"{width:g}")
            root.set("height", f"{height:g}")
            sheet = ET.Element("style")
            sheet.text = style
            area = {"x": f"{left:g}", "y": f"{top:g}", "width": f"{width:g}", "height": f"{height:g}"}
            root.insert(2, sheet)
            root.insert(3, ET.Element("rect", {"class": "paper", "rx": "8", **area}))
        return ET.tostring(root, encoding="unicode")
