"""Has MLCommons' LoadGen issue the queries of a scenario and judge the run, where its package is installed.

LoadGen keeps its state in globals and no exception may pass through it, so it belongs into a process of its own; runs
may follow one another there. Its verdict and numbers are read from its detail log.
"""

import importlib.metadata
import json
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from deploy.errors import MeasureError
from deploy.measure.scenarios import (
    Clock,
    Outcome,
    Query,
    Rules,
    Verdict,
    check_run,
    name_of,
    no_garbage_collection,
    reasons,
)

NAME = "loadgen"
DISTRIBUTION = "mlcommons-loadgen"
MARK = ":::MLLOG "
SEEDS = 2**32  # LoadGen's generators take a seed below it

# LoadGen times by the clock of the day. While NTP does no more than trim it, it stays within this of the steady clock.
DRIFT_NS = 10_000_000
DRIFT_SHARE = 0.001


def available() -> str | None:
    """Return the version of LoadGen, or None where it is not installed or cannot be loaded."""
    try:
        import mlperf_loadgen  # noqa: F401

        return importlib.metadata.version(DISTRIBUTION)
    except (ImportError, importlib.metadata.PackageNotFoundError):
        return None


def run(
    query: Query,
    rules: Rules,
    *,
    samples: int,
    seed: int,
    expected_ns: int,
    after_query: Callable[[int], None],
    clock: Clock = time.perf_counter_ns,
) -> Outcome:
    """Run one scenario: see `scenarios.Run`.

    What `query` or `after_query` raises is kept until LoadGen's remaining queries are answered, without inference.

    Raises:
        MeasureError: LoadGen is not installed, or its log says nothing of the result.
    """
    version = available()
    if version is None:
        msg = f"LoadGen, package {DISTRIBUTION}: not installed here; `pip install {DISTRIBUTION}`, or measure without"
        raise MeasureError(msg)
    check_run(samples=samples, expected_ns=expected_ns)
    system = _System(query, after_query, clock, offline=not rules.kind.samples)
    wall_ns, steady_ns = time.time_ns(), clock()
    with tempfile.TemporaryDirectory(prefix="slad-loadgen-") as folder, no_garbage_collection():
        log_file = Path(folder) / "mlperf_log_detail.txt"
        try:
            log_file.touch()  # LoadGen that cannot open a log gives up in a way that aborts the process at its end
        except OSError as cause:
            raise _log_error(log_file, cause) from cause
        _start(system, _settings(rules, seed=seed, expected_ns=expected_ns), samples=samples, folder=Path(folder))
        if system.failure is not None:
            raise system.failure
        log = read_log(log_file)
    steady_ns = clock() - steady_ns
    return Outcome(
        rules=rules,
        engine=NAME,
        version=version,
        samples_ns=np.array(system.times, np.int64),
        seconds=system.seconds,
        reasons=(
            *_reasons(rules, log, system),
            *_clock_reasons(rules, drift_ns=time.time_ns() - wall_ns - steady_ns, took_ns=steady_ns),
        ),
        loadgen=_numbers(rules, log),
    )


def read_log(path: Path) -> dict[str, Any]:
    """Return the values of a detail log by key; of those that occur twice the last.

    Raises:
        MeasureError: there is no log, or none of a finished run: LoadGen says nothing where the disk is full.
    """
    found: dict[str, Any] = {}
    try:
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith(MARK):
                entry = json.loads(line[len(MARK) :])
                found[entry["key"]] = entry["value"]
    except (OSError, ValueError, KeyError) as cause:
        raise _log_error(path, cause) from cause
    if "result_validity" not in found:
        raise _log_error(path, "no result in it")
    return found


def _log_error(path: Path, what: object) -> MeasureError:
    return MeasureError(f"LoadGen's log {path.name}: {what}; free space in {tempfile.gettempdir()} and measure again")


class _System:
    """The system under test, as LoadGen calls it.

    Args:
        query: see `scenarios.Run`.
        after_query: see there.
        clock: nanoseconds.
        offline: whether each sample of a query is run and timed alone.

    Attributes:
        times: nanoseconds of each query, or sample.
        failure: what was raised, first.
    """

    def __init__(self, query: Query, after_query: Callable[[int], None], clock: Clock, *, offline: bool) -> None:
        import mlperf_loadgen

        self._complete = mlperf_loadgen.QuerySamplesComplete
        self._response = mlperf_loadgen.QuerySampleResponse
        self._query, self._after_query, self._clock, self._offline = query, after_query, clock, offline
        self._first = self._last_issue = self._end = 0
        self._completed = 0
        self.times: list[int] = []
        self.failure: BaseException | None = None

    @property
    def seconds(self) -> float:
        """From the first issue to the last completion."""
        return (self._end - self._first) / 1e9

    @property
    def issued_seconds(self) -> float:
        """From the first issue to the last one."""
        return (self._last_issue - self._first) / 1e9

    def issue(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        """Answer one query: LoadGen's callback."""
        self._completed = 0
        if self.failure is None:
            with self:  # nothing may be raised through LoadGen's own code
                if self._offline:
                    self._answer_one_by_one(ids, indices)
                else:
                    self._answer(ids, indices)
        if self._completed < len(ids):  # else LoadGen waits for ever
            self._complete([self._response(each, 0, 0) for each in ids[self._completed :]])

    def _answer(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        issued = self._clock()
        self._query(indices)
        end = self._clock()
        self._done(ids)
        self._note(issued, issued, end)
        self.times.append(end - issued)
        # LoadGen issues the next query, and starts its time, once this callback has returned.
        self._after_query(end - issued)

    def _answer_one_by_one(self, ids: Sequence[int], indices: Sequence[int]) -> None:
        start = issued = end = self._clock()
        for each, index in zip(ids, indices, strict=True):
            issued = self._clock()
            self._query((index,))
            end = self._clock()
            self._done((each,))
            self.times.append(end - issued)
        self._note(start, start, end)
        self._after_query(end - start)

    def _done(self, ids: Sequence[int]) -> None:
        self._completed += len(ids)
        self._complete([self._response(each, 0, 0) for each in ids])

    def _note(self, start: int, issued: int, end: int) -> None:
        self._first = self._first or start
        self._last_issue, self._end = issued, end

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, failure: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.failure = failure
        return True


def _settings(rules: Rules, *, seed: int, expected_ns: int) -> Any:
    """Return LoadGen's settings; whatever stands in no setting is LoadGen's default."""
    import mlperf_loadgen

    settings = mlperf_loadgen.TestSettings()
    settings.scenario = getattr(mlperf_loadgen.TestScenario, rules.scenario)
    settings.mode = mlperf_loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms, settings.min_query_count = rules.min_ms, rules.min_queries
    # It prepares queries for twice the minimum duration at this speed, and ends early where they run out.
    settings.single_stream_expected_latency_ns = expected_ns
    settings.multi_stream_expected_latency_ns = expected_ns
    settings.offline_expected_qps = 1e9 / expected_ns
    settings.multi_stream_samples_per_query = rules.kind.samples or settings.multi_stream_samples_per_query
    if rules.kind.percentile is not None:
        settings.single_stream_target_latency_percentile = rules.kind.percentile
        settings.multi_stream_target_latency_percentile = rules.kind.percentile
    settings.qsl_rng_seed = settings.sample_index_rng_seed = settings.schedule_rng_seed = seed % SEEDS
    return settings


def _start(system: _System, settings: Any, *, samples: int, folder: Path) -> None:
    """Run LoadGen's test; it writes its logs into `folder` and nothing to the terminal."""
    import mlperf_loadgen

    output = mlperf_loadgen.LogOutputSettings()
    output.outdir, output.copy_detail_to_stdout, output.copy_summary_to_stdout = str(folder), False, False
    logs = mlperf_loadgen.LogSettings()
    logs.log_output, logs.enable_trace = output, False
    images = mlperf_loadgen.ConstructQSL(samples, samples, _nothing, _nothing)
    sut = mlperf_loadgen.ConstructFastSUT(system.issue, _nothing)
    try:
        # Without a name it would read an audit.config of the working folder, which changes the settings.
        mlperf_loadgen.StartTestWithLogSettings(sut, images, settings, logs, str(folder / "audit.config"))
    finally:
        mlperf_loadgen.DestroyFastSUT(sut)
        mlperf_loadgen.DestroyQSL(images)


def _nothing(*_: object) -> None:
    """Load, unload or flush: the images are in memory, and each query is answered before the callback returns."""


def _reasons(rules: Rules, log: Mapping[str, Any], system: _System) -> tuple[str, ...]:
    """Put LoadGen's verdict into words."""
    verdict = Verdict(
        seconds=bool(log["result_min_duration_met"]),
        queries=bool(log["result_min_queries_met"]),
        estimate=bool(log["early_stopping_met"]),
    )
    seconds = system.issued_seconds if rules.kind.samples else system.seconds
    return reasons(rules, verdict, queries=len(system.times), seconds=seconds)


def _clock_reasons(rules: Rules, *, drift_ns: int, took_ns: int) -> tuple[str, ...]:
    """Say that the clock of the day was set: LoadGen then ended too early or too late, or took a wrong time."""
    if abs(drift_ns) <= DRIFT_NS + DRIFT_SHARE * took_ns:
        return ()
    return (f"{rules.scenario}: the clock of the day, by which LoadGen times, was moved by {drift_ns / 1e9:+.3g} s",)


def _numbers(rules: Rules, log: Mapping[str, Any]) -> dict[str, float]:
    """Return LoadGen's own numbers: see `Outcome.loadgen`."""
    if rules.kind.percentile is None:
        return {"result": float(log["result_samples_per_second"])}
    kind = "_per_query" if rules.scenario == "MultiStream" else ""
    found = {"result": log[f"result_{100 * rules.kind.percentile:.2f}_percentile{kind}_latency_ns"]}
    estimates = {0.9: "early_stopping_latency_ss", 0.99: "early_stopping_latency_ms"}
    for place in (rules.kind.percentile, *rules.kind.also):
        if log.get(estimates[place]):  # 0 where there were too few queries
            found[name_of(place)] = log[estimates[place]]
    return {name: float(value) for name, value in found.items()}
