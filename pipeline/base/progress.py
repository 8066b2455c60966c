"""Progress of long loops: a live bar on a terminal, one line every few seconds in a log."""

import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TimeElapsedColumn, TimeRemainingColumn

LOG_EVERY_S = 5.0
_console = Console(stderr=True)
T = TypeVar("T")


class Reporter:
    """Reports how far a loop has come.

    Args:
        title: what is being done, such as "distill".
        total: number of steps.
        done: steps of an earlier run that need not be done again.
        quiet: shows nothing, for all processes but one.
    """

    def __init__(self, title: str, total: int, *, done: int = 0, quiet: bool = False) -> None:
        self._title = title
        self._total = total
        self._done = self._first = done
        self._quiet = quiet
        self._start = self._last = time.monotonic()
        self._live = Progress(
            SpinnerColumn(),
            *Progress.get_default_columns()[:3],
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=_console,
            transient=True,
            disable=quiet or not _console.is_terminal,
        )
        self._task = self._live.add_task(title, total=total, completed=done)

    def __enter__(self) -> "Reporter":
        self._live.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._live.stop()

    def advance(self, note: str = "") -> None:
        """Counts one step; `note` holds the figures worth seeing, such as loss and images/s."""
        self._done += 1
        self._live.update(self._task, advance=1, description=f"{self._title} {note}".strip())
        now = time.monotonic()
        if self._quiet or _console.is_terminal or (now - self._last < LOG_EVERY_S and self._done < self._total):
            return
        self._last = now
        elapsed = now - self._start
        left = elapsed / (self._done - self._first) * (self._total - self._done)
        line = f"{self._title} {self._done}/{self._total} {note} elapsed {elapsed:.0f} s, left {left:.0f} s"
        sys.stderr.write(line.replace("  ", " ") + "\n")
        sys.stderr.flush()


def track(items: Iterable[T], *, title: str, total: int) -> Iterator[T]:
    """Yields `items` and reports after each one is done."""
    with Reporter(title, total) as reporter:
        for item in items:
            yield item
            reporter.advance()


def notice(text: str) -> None:
    """Tells the user something that is no error, in one line."""
    sys.stderr.write(f"note: {text}\n")
    sys.stderr.flush()
