"""Numbers as the report prints them: enough digits to compare, a unit on every one, words where there is none."""

import re
from typing import Any

MISSING = "not measured"
UNIT = re.compile(r"(?<=\d) (?=(?:ms|s|%|MB|mJ|W|points|images|times)\b|%)")


def decimal(value: float) -> str:
    """Three significant digits without an exponent: 0.123, 1.23, 12.3, 123."""
    size = abs(value)
    places = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 else 4
    return f"{value:.{places}f}"


def milliseconds(value: float | None) -> str:
    """A latency, such as "1.31 ms"."""
    return MISSING if value is None else f"{decimal(value)} ms"


def percent(value: float | None) -> str:
    """A share in percent, such as "97.1 %"."""
    return MISSING if value is None else f"{value:.1f} %"


def megabytes(size: int | None) -> str:
    """A file size in units of 1,000,000 bytes, such as "5.64 MB"."""
    return MISSING if size is None else f"{decimal(size / 1e6)} MB"


def points(value: float) -> str:
    """A difference of percentages without its sign: two decimals at most, one at least."""
    text = f"{abs(value):.2f}"
    return f"{text.removesuffix('0')} points"


def signed_points(value: float | None) -> str:
    """A difference of percentages with its sign, such as "-1.2 points"."""
    if value is None:
        return MISSING
    sign = "" if round(value, 2) == 0 else "+" if value > 0 else "-"
    return f"{sign}{points(value)}"


def interval(low: float, high: float) -> str:
    """An interval of a difference of percentages, such as "-1.23 to 0.4" points."""
    ends = [f"{value:.2f}".removesuffix("0") for value in (low, high)]
    return " to ".join("0.0" if end == "-0.0" else end for end in ends)


def ratio(value: float, low: float, high: float) -> str:
    """A ratio with its interval, such as "0.97 (0.91 to 1.02)"; more digits where 1 would hide in the rounding."""
    places = 2 if abs(low - 1) >= 0.005 and abs(high - 1) >= 0.005 else 4
    return f"{value:.{places}f} ({low:.{places}f} to {high:.{places}f})"


def error(value: float | None) -> str:
    """A numerical error, such as "1.2e-06"."""
    return MISSING if value is None else f"{value:.2g}"


def cosine(value: float | None) -> str:
    """A cosine similarity to six places: what matters is how far it is from 1."""
    return MISSING if value is None else f"{value:.6f}"


def share(value: float | None) -> str:
    """Argmax agreement: 99.98 % must not be rounded to 100 %."""
    if value is None:
        return MISSING
    return "100 %" if value == 100 else f"{min(value, 99.99):.2f} %"


def times(ratio: float) -> str:
    """A ratio of latencies, such as "1.98 times as fast"."""
    return f"{ratio:.2f} times as fast"


def keep_units(text: str) -> str:
    """Ties every number to its unit, so that no line ends between the two."""
    return UNIT.sub("\N{NO-BREAK SPACE}", text)


def capital(text: str) -> str:
    """With a capital first letter, unless its case has a meaning: "Accuracy", "mIoU"."""
    return text.capitalize() if text.islower() else text


def count(value: int) -> str:
    """A whole number with its thousands parted."""
    return f"{value:,}"


def enumerate_words(items: list[str], last: str = "and") -> str:
    """Joins with commas and one conjunction: "a, b and c"."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {last} {items[-1]}"


def plain(value: Any) -> str:
    """A value of a device record, as a reader would write it."""
    if value is None:
        return "not readable"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value) or "none"
    return str(value)


def duration(seconds: float) -> str:
    """A time of work: "42 s", "3 min 5 s", "2 h 7 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    minutes, rest = divmod(whole, 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
