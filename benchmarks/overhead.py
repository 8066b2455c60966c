"""What does the harness add to a query? Measured with an engine that does nothing, through both issuers.

The queries go through the code of the process that holds an engine while it is measured. Part of `benchmarks.harness`.
"""

import io
import json
import multiprocessing
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from types import SimpleNamespace

import numpy as np
from numpy.typing import NDArray

from deploy.measure import issuer, loadgen
from deploy.measure.plan import SINGLE_STREAM
from deploy.measure.scenarios import Rules
from deploy.measure.worker import Worker

MOST_ADDED_US = 20.0
QUERIES = 100_000


@dataclass(frozen=True, kw_only=True)
class Added:
    """What the harness costs, in microseconds.

    Attributes:
        issuer: that was used.
        timed: (p50, p99) of what a query's recorded latency holds beside the engine.
        whole: (p50, p99) of the time from one query to the next, all of which the harness takes.
        span: how much longer LoadGen itself says that a query took, at p90; None without it.
    """

    issuer: str
    timed: tuple[float, float]
    whole: tuple[float, float]
    span: float | None

    @property
    def fits(self) -> bool:
        """Whether it is as little as is promised."""
        return max(*self.timed, *self.whole, self.span or 0.0) <= MOST_ADDED_US

    def __str__(self) -> str:
        span = "" if self.span is None else f"; LoadGen's own span is {self.span:.2f} us longer (p90)"
        return (
            f"{self.issuer:<8} adds to a latency p50 {self.timed[0]:.2f} us, p99 {self.timed[1]:.2f} us; from query to "
            f"query p50 {self.whole[0]:.2f} us, p99 {self.whole[1]:.2f} us{span}: {'yes' if self.fits else 'NO'}"
        )


class NoOp(Worker):
    """A worker whose engine does nothing but note when it was asked.

    Attributes:
        asked_ns: when.
        told: what it would have told the measurement.
    """

    def __init__(self) -> None:
        self.asked_ns: list[int] = []
        self.told = io.StringIO()
        super().__init__(io.StringIO(json.dumps({"go": 10**18}) + "\n"), self.told)  # one turn, without end
        self._loaded = SimpleNamespace(engine=SimpleNamespace(run=self._run))  # type: ignore[assignment]
        self._inputs = [np.empty(0, np.float32)] * 64

    def _run(self, _image: NDArray[np.float32]) -> None:
        self.asked_ns.append(time.perf_counter_ns())


def added(name: str, *, queries: int) -> Added:
    """Measures what an issuer adds to a query, in this process."""
    worker = NoOp()
    rules = Rules(scenario=SINGLE_STREAM, min_queries=queries, min_seconds=0.0)
    outcome = worker.do_scenario(rules=asdict(rules), engine=name, seed=0, expected_ns=1000)
    samples = json.loads(worker.told.getvalue().splitlines()[-1])["turn"]
    gaps = gaps_of(worker.asked_ns, len(samples))
    own = outcome["loadgen"]
    span = None if own is None else 1000 * (own["result"] - outcome["latency_ms"]["value"])
    timed, whole = (tuple(float(each) / 1e3 for each in np.percentile(times, [50, 99])) for times in (samples, gaps))
    return Added(issuer=name, timed=timed, whole=whole, span=span)  # type: ignore[arg-type]


def gaps_of(asked_ns: Sequence[int], queries: int) -> NDArray[np.int64]:
    """Returns the nanoseconds from each of the last queries to the next; before them a turn has unrecorded ones."""
    return np.diff(np.array(asked_ns[-queries:], np.int64))


def measure_added(*, queries: int = QUERIES) -> list[Added]:
    """Measures what each issuer adds, each in a process of its own."""
    names = [issuer.NAME, *([loadgen.NAME] if loadgen.available() else [])]
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1) as pool:
        return [pool.submit(added, name, queries=queries).result() for name in names]
