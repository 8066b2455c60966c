"""Two variants of one target against each other: what can be measured of their difference, and in words."""

from dataclasses import dataclass

from pipeline.steps.report import figures
from pipeline.steps.report.records import Difference, Target
from pipeline.steps.report.variants import Interval, Variant

WORDS = {"accuracy": ("more accurate", "as accurate")}
# Of latency. One engine in three processes, where its memory lies elsewhere, differed from itself by up to 1.8 %
# in the median and 1 % in p90, intervals or not (OpenVINO, 2 cores of an AMD EPYC, 2026-11-23).
LEAST_EFFECT = 0.03


@dataclass(frozen=True)
class Pair:
    """`one` against `other`; `difference` is what was measured of the two in turns, None where they were not.

    A difference counts where its 95 % interval leaves out "none": the ratio of p90 of the interleaved run leaves out 1,
    the difference of accuracy on the same images leaves out 0. Where the record has no such interval, the intervals of
    the two variants must not overlap. In both cases the figures themselves must differ the same way.
    """

    one: Variant
    other: Variant
    difference: Difference | None

    @classmethod
    def of(cls, target: Target, one: Variant, other: Variant) -> "Pair":
        """The pair, with what `target` has recorded of it."""
        return cls(one, other, target.difference(one, other))

    @property
    def turned(self) -> "Pair":
        """The same, seen from the other."""
        return Pair(self.other, self.one, self.difference and self.difference.turned())

    @property
    def ratio(self) -> Interval | None:
        """Of p90, one over other."""
        return None if self.difference is None else self.difference.latency_ratio

    @property
    def points(self) -> Interval | None:
        """Of accuracy, one less other, paired."""
        return None if self.difference is None else self.difference.accuracy_points

    @property
    def gain(self) -> float:
        """Accuracy of one less that of the other, in points."""
        return float(self.one.accuracy.exact - self.other.accuracy.exact)

    @property
    def faster(self) -> bool:
        """Whether one is measurably faster: the interval of the ratio does not hold 1, nor is the ratio next to it."""
        one, other = self.one.latency, self.other.latency
        if self.ratio is None:
            return one.p90_high < other.p90_low
        return self.ratio.high < 1 and self.ratio.value <= 1 - LEAST_EFFECT and one.p90 < other.p90

    @property
    def as_fast(self) -> bool:
        """Whether no difference of speed can be measured."""
        return not self.faster and not self.turned.faster

    @property
    def more_accurate(self) -> bool:
        """Whether one is measurably more accurate."""
        one, other = self.one.accuracy, self.other.accuracy
        apart = one.low > other.high if self.points is None else self.points.low > 0
        return apart and one.exact > other.exact

    @property
    def as_accurate(self) -> bool:
        """Whether no difference of accuracy can be measured."""
        return not self.more_accurate and not self.turned.more_accurate

    def p90s(self) -> str:
        """Such as "p90 1.00 ms against 2.00 ms"."""
        ours, theirs = (figures.milliseconds(each.latency.p90) for each in (self.one, self.other))
        return f"p90 {ours} against {theirs}"

    def noise(self) -> str:
        """The same where there is no measurable difference, and how that is known."""
        if self.ratio is None:
            return f"{self.p90s()}, intervals overlap"
        return f"{self.p90s()}, ratio {figures.ratio(self.ratio.value, self.ratio.low, self.ratio.high)}"

    def percents(self) -> str:
        """Such as "97.0 % against 96.6 % on 1,000 images", with the paired interval where there is one."""
        values = self.one.accuracy.percent, self.other.accuracy.percent
        shares = [figures.percent(value) for value in values]
        if shares[0] == shares[1] and values[0] != values[1]:
            shares = [f"{value:.2f} %" for value in values]
        text = f"{shares[0]} against {shares[1]} on {figures.count(self.one.accuracy.count)} images"
        if self.points is None:
            return text
        return f"{text}; 95 %, paired: {figures.interval(self.points.low, self.points.high)} points"

    def accuracy_words(self) -> str:
        """What is gained or lost in accuracy, such as "at 0.4 points less accuracy (...)"."""
        metric = self.other.accuracy.metric
        if self.gain == 0:
            images = figures.count(self.one.accuracy.count)
            return f"at the same {metric} ({figures.percent(self.one.accuracy.percent)} on {images} images)"
        if self.as_accurate:
            return f"with no measurable difference in {metric} ({self.percents()})"
        return f"at {figures.points(self.gain)} {'more' if self.gain > 0 else 'less'} {metric} ({self.percents()})"

    def edge(self) -> str:
        """Why one is preferred to another that is as fast: accuracy, where it can be told apart, else size."""
        metric, percent = self.one.accuracy.metric, figures.percent(self.one.accuracy.percent)
        better, equal = WORDS.get(metric, (f"better in {metric}", "as good"))
        if self.more_accurate:
            return f"{better} by {figures.points(self.gain)} ({self.percents()})"
        if self.gain == 0:
            return f"{equal} ({percent}) and {self.size_words()}"
        return f"{self.size_words()} {self.accuracy_words()}"

    def size_words(self) -> str:
        """Such as "smaller (5.00 MB against 20.0 MB)"."""
        ours, theirs = figures.megabytes(self.one.engine_bytes), figures.megabytes(self.other.engine_bytes)
        relation = "smaller" if self.one.engine_bytes < self.other.engine_bytes else "no larger"
        return f"as small ({ours})" if ours == theirs else f"{relation} ({ours} against {theirs})"
