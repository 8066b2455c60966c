"""The variants of all targets as rows, and the table that a terminal or a log shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.steps.report import figures

LOG_WIDTH = 100  # columns, where the width of the reader's screen is unknown
LONGEST_TARGET, LONGEST_VARIANT = 18, 10  # longer names fold
STYLES = {"chosen": "bold green", "failed": "red", "over budget": "yellow", "skipped": "dim"}


@dataclass(frozen=True, kw_only=True)
class SummaryRow:
    """One variant of one target; None is not measured."""

    metric: str
    target: str
    variant: str
    status: str
    verdict: str
    valid: bool
    accuracy_percent: float | None
    accuracy_low_percent: float | None
    accuracy_high_percent: float | None
    latency_p50_ms: float | None
    latency_p90_ms: float | None
    size_bytes: int | None

    @property
    def measured(self) -> bool:
        """Whether there are figures at all."""
        return self.accuracy_percent is not None

    @property
    def accuracy(self) -> str:
        """Such as "97.1 % (95.1 to 98.3)"."""
        if self.accuracy_percent is None:
            return "-"
        interval = f"({self.accuracy_low_percent:.1f} to {self.accuracy_high_percent:.1f})"
        return f"{figures.percent(self.accuracy_percent)} {interval}"

    @property
    def p50(self) -> str:
        """Median latency with its unit."""
        return figures.milliseconds(self.latency_p50_ms) if self.measured else "-"

    @property
    def p90(self) -> str:
        """90th percentile with its unit."""
        return figures.milliseconds(self.latency_p90_ms) if self.measured else "-"

    @property
    def size(self) -> str:
        """Size of the engine file with its unit."""
        return figures.megabytes(self.size_bytes) if self.measured else "-"


FIGURES = (
    "accuracy_percent",
    "accuracy_low_percent",
    "accuracy_high_percent",
    "latency_p50_ms",
    "latency_p90_ms",
    "size_bytes",
)


def summary_rows(summary: Mapping[str, Any]) -> list[SummaryRow]:
    """Rows of the table from what `report` returned or `summary.json` holds."""
    return [
        SummaryRow(
            metric=summary["metric"],
            target=target,
            variant=variant,
            status=figure["status"],
            verdict=figure["verdict"],
            valid=record["valid"],
            **{key: figure[key] for key in FIGURES},
        )
        for target, record in summary["targets"].items()
        for variant, figure in record["variants"].items()
    ]


def print_table(rows: Sequence[SummaryRow], console: Console) -> None:
    """Prints the variants at most `LOG_WIDTH` columns wide, and just that wide where the console is no terminal."""
    before = console.width
    console.width = min(before, LOG_WIDTH) if console.is_terminal else LOG_WIDTH
    try:
        console.print(_table(rows))
    finally:
        console.width = before


def _table(rows: Sequence[SummaryRow]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    for heading, names, most in (
        ("target", [row.target for row in rows], LONGEST_TARGET),
        ("variant", [row.variant for row in rows], LONGEST_VARIANT),
    ):
        table.add_column(heading, overflow="fold", min_width=min(max(map(len, names), default=0), most))
    for heading in (rows[0].metric if rows else "accuracy", "p50", "p90", "size"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("verdict", overflow="fold")
    previous = None
    for row in rows:
        if previous not in (None, row.target):
            table.add_row()
        cells = [row.target if row.target != previous else "", row.variant, row.accuracy, row.p50, row.p90, row.size]
        verdict = row.verdict if row.valid or not row.measured else f"{row.verdict} (invalid run)"
        # Text, not str: a reason may hold what rich would take for markup.
        table.add_row(*(Text(cell) for cell in cells), Text(verdict, style=STYLES.get(row.status, "")))
        previous = row.target
    return table
