"""LoadGen itself against our rules: on one trace of latencies they must come to the same verdict and numbers."""

import contextlib
import gc
import json
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from deploy.errors import EngineError, MeasureError
from deploy.measure import issuer
from deploy.measure import loadgen as module
from deploy.measure.scenarios import Outcome, Rules, early_stopping_estimate, judge, loadgen_percentile

US = 1000

needs_loadgen = pytest.mark.skipif(
    module.available() is None, reason="LoadGen, package mlcommons-loadgen, is not installed; it has no wheel for Arm"
)


@pytest.fixture(autouse=True)
def quick_collection(monkeypatch):
    """Collecting the garbage of the whole test process takes longer than a run."""
    monkeypatch.setattr("gc.collect", lambda: 0)


def waiting(latencies_ns):
    """A query that takes the next of these latencies, and the last one for ever."""
    left = iter(latencies_ns)
    last = latencies_ns[-1]

    def query(indices) -> None:
        end = time.perf_counter_ns() + int(next(left, last))
        while time.perf_counter_ns() < end:
            pass

    return query


@dataclass
class Trace:
    """What LoadGen wrote of one run, in nanoseconds.

    Attributes:
        outcome: what `loadgen.run` made of it.
        log: its detail log.
        latencies: of each query, of Offline of the one query's samples.
        issued: of each query, from the start of the test.
    """

    outcome: Outcome
    log: dict
    latencies: list[int]
    issued: list[int]

    @property
    def valid(self) -> bool:
        return self.log["result_validity"] == "VALID"


@pytest.fixture
def traced(tmp_path, monkeypatch):
    """Run LoadGen with its trace, whose `complete_ns` is the very latency that its statistics are made of."""
    import mlperf_loadgen

    start = mlperf_loadgen.StartTestWithLogSettings
    most: dict[str, int] = {}

    def with_trace(sut, images, settings, logs, audit) -> None:
        logs.enable_trace = True
        settings.max_query_count = most.get("queries", 0)
        start(sut, images, settings, logs, audit)

    monkeypatch.setattr(mlperf_loadgen, "StartTestWithLogSettings", with_trace)
    monkeypatch.setattr(module.tempfile, "TemporaryDirectory", lambda prefix: contextlib.nullcontext(tmp_path))

    def run(rules: Rules, latencies_ns, *, expected_ns: int = 0, most_queries: int = 0, **changes) -> Trace:
        most["queries"] = most_queries
        options = {"samples": 9, "seed": 3, "after_query": lambda ns: None, **changes}
        expected_ns = expected_ns or int(np.median(latencies_ns))
        outcome = module.run(waiting(latencies_ns), rules, expected_ns=expected_ns, **options)
        # The file as a whole is not JSON: LoadGen quotes some words twice.
        lines = (tmp_path / "mlperf_log_trace.json").read_text().splitlines()
        first = next(json.loads(line.rstrip(",")) for line in lines if '"SampleLoop"' in line)
        key = "query_seq" if rules.kind.samples else "sample_seq"
        latency, issue = {}, {}
        for event in (json.loads(line.rstrip(",")) for line in lines if '"Sample"' in line and '"ph":"b"' in line):
            place, took = event["args"][key], event["args"]["complete_ns"]
            latency[place] = max(latency.get(place, 0), took)
            issue[place] = round(1000 * (event["ts"] - first["ts"]))
        return Trace(
            outcome,
            module.read_log(tmp_path / "mlperf_log_detail.txt"),
            [latency[place] for place in sorted(latency)],
            [issue[place] for place in sorted(issue)],
        )

    return run


def check_equal(trace: Trace, rules: Rules) -> None:
    """Our rules on LoadGen's own latencies: the same verdict, percentile and estimates, to the nanosecond."""
    log, latencies = trace.log, trace.latencies
    offline = rules.scenario == "Offline"
    seconds = max(latencies) / 1e9 if offline else trace.issued[-1] / 1e9
    verdict = judge(rules, queries=len(latencies), seconds=seconds)
    assert verdict.valid == trace.valid == trace.outcome.valid
    assert verdict.seconds == log["result_min_duration_met"]
    assert verdict.queries == log["result_min_queries_met"]
    assert verdict.estimate == log["early_stopping_met"]
    assert len(trace.outcome.samples_ns) == len(latencies)
    if offline:
        assert float(f"{len(latencies) / seconds:.6g}") == log["result_samples_per_second"]  # it prints 6 digits
        return
    assert len(latencies) == log["result_query_count"]
    place = rules.kind.percentile
    kind = "_per_query" if rules.scenario == "MultiStream" else ""
    assert loadgen_percentile(latencies, place) == log[f"result_{100 * place:.2f}_percentile{kind}_latency_ns"]
    assert (early_stopping_estimate(latencies, 0.99) or 0) == log["early_stopping_latency_ms"]
    if rules.scenario == "SingleStream":
        assert (early_stopping_estimate(latencies, 0.9) or 0) == log["early_stopping_latency_ss"]


def replayed(trace: Trace, rules: Rules) -> Outcome:
    """The same queries through our issuer: latencies and pauses are those of the trace, on a clock of its own."""
    ends = [issue + took for issue, took in zip(trace.issued, trace.latencies, strict=True)]
    pauses = iter([*(after - end for end, after in zip(ends, trace.issued[1:], strict=False)), 0])
    latencies, now = iter(trace.latencies), [0]

    def query(indices) -> None:
        now[0] += next(latencies)

    def after_query(ns: int) -> None:
        now[0] += next(pauses)

    return issuer.run(query, rules, samples=9, seed=3, expected_ns=1, after_query=after_query, clock=lambda: now[0])


def draw(shape: str, count: int) -> list[int]:
    rng = np.random.default_rng(count)
    drawn = {
        "constant": lambda: np.full(count, 30),
        "bimodal": lambda: np.where(rng.uniform(size=count) < 0.85, 20, 80),
        "heavy": lambda: np.minimum(10 * (1 + rng.pareto(1.5, count)), 2000),
    }[shape]()
    return [int(US * each) for each in drawn]


CASES = [
    ("SingleStream", "constant", 63, 0.0),
    ("SingleStream", "constant", 64, 0.0),
    ("SingleStream", "bimodal", 97, 0.0),
    ("SingleStream", "heavy", 661, 0.0),
    ("SingleStream", "heavy", 662, 0.0),
    ("SingleStream", "bimodal", 1000, 0.0),
    ("SingleStream", "heavy", 70, 0.1),
    ("MultiStream", "constant", 661, 0.0),
    ("MultiStream", "bimodal", 662, 0.0),
    ("MultiStream", "heavy", 1001, 0.0),
    ("MultiStream", "heavy", 70, 0.05),
]
SLOW = [
    ("SingleStream", "heavy", 20_000, 0.5),
    ("SingleStream", "bimodal", 5_000, 0.0),
    ("MultiStream", "bimodal", 10_000, 0.5),
]


@needs_loadgen
@pytest.mark.parametrize(
    ("scenario", "shape", "count", "seconds"), [*CASES, *(pytest.param(*case, marks=pytest.mark.slow) for case in SLOW)]
)
def test_on_loadgens_own_latencies_our_rules_and_our_issuer_say_what_it_says(traced, scenario, shape, count, seconds):
    rules = Rules(scenario=scenario, min_queries=count, min_seconds=seconds)
    trace = traced(rules, draw(shape, count))
    check_equal(trace, rules)
    ours = replayed(trace, rules)
    assert ours.samples_ns.tolist() == trace.latencies
    assert ours.valid == trace.valid
    assert len(ours.reasons) == len(trace.outcome.reasons)
    assert ours.result == trace.outcome.loadgen["result"]
    estimates = {name: value for name, value in ours.estimates.items() if value is not None}
    assert estimates == {name: value for name, value in trace.outcome.loadgen.items() if name != "result"}


@needs_loadgen
@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream"])
def test_a_run_that_ends_before_its_time_is_too_short_for_both(traced, scenario):
    rules = Rules(scenario=scenario, min_queries=70, min_seconds=0.2)
    trace = traced(rules, draw("constant", 70), expected_ns=20_000 * US)  # so it prepares 70 queries, which take 2 ms
    check_equal(trace, rules)
    assert trace.outcome.reasons[0].endswith("s from the first query to the last, not 0.2 s")
    assert not trace.log["result_min_duration_met"]


@needs_loadgen
@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream"])
def test_a_run_that_ends_before_its_count_has_too_few_queries_for_both(traced, scenario):
    rules = Rules(scenario=scenario, min_queries=700, min_seconds=0.0)
    trace = traced(rules, draw("constant", 70), most_queries=665)
    check_equal(trace, rules)
    assert trace.outcome.reasons == (f"{scenario}: 665 queries, not 700",)


@needs_loadgen
@pytest.mark.slow
@pytest.mark.parametrize(("expected_us", "valid"), [(20, True), (8000, False)])
def test_offline_is_judged_and_counted_alike(traced, expected_us, valid):
    rules = Rules(scenario="Offline", min_queries=10, min_seconds=0.3)
    trace = traced(rules, draw("constant", 10), expected_ns=expected_us * US)
    check_equal(trace, rules)
    assert trace.valid is valid
    assert len(trace.latencies) == rules.offline_samples(expected_us * US)
    took = waiting(draw("constant", 10))
    options = {"samples": 9, "seed": 3, "expected_ns": expected_us * US}
    ours = issuer.run(took, rules, after_query=lambda ns: None, **options)
    assert (ours.valid, len(ours.reasons)) == (valid, len(trace.outcome.reasons))
    assert len(ours.samples_ns) == len(trace.latencies)


def run(query=lambda indices: None, *, scenario="SingleStream", queries=100, seconds=0.0, **changes) -> Outcome:
    options = {"samples": 5, "seed": 0, "expected_ns": 10 * US, "after_query": lambda ns: None, **changes}
    return module.run(query, Rules(scenario=scenario, min_queries=queries, min_seconds=seconds), **options)


@needs_loadgen
@pytest.mark.parametrize(("scenario", "each"), [("SingleStream", 1), ("MultiStream", 8), ("Offline", 1)])
@pytest.mark.parametrize("samples", [1, 3, 40])
def test_queries_ask_for_images_that_are_there(scenario, each, samples):
    asked, told = [], []
    options = {"scenario": scenario, "samples": samples, "after_query": told.append}
    found = run(lambda indices: asked.append(tuple(indices)), queries=400, **options)
    assert {len(indices) for indices in asked} == {each}
    assert {index for indices in asked for index in indices} == set(range(samples))
    assert len(asked) == len(found.samples_ns)
    assert told == found.samples_ns.tolist() or (scenario == "Offline" and told[0] >= found.samples_ns.sum())


@needs_loadgen
def test_the_seed_decides_the_images():
    orders = []
    for seed in (1, 1, 2, -1, 2**40):
        asked = []
        run(asked.append, seed=seed)
        orders.append(asked)
    assert orders[0] == orders[1] != orders[2]


@needs_loadgen
def test_pauses_between_queries_are_in_no_latency_but_in_the_duration():
    found = run(waiting([20 * US]), queries=70, seconds=0.1, after_query=lambda ns: time.sleep(0.002))
    assert found.valid
    assert len(found.samples_ns) < 100
    assert found.loadgen["result"] < 1_000_000
    assert found.seconds >= 0.1


@needs_loadgen
@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "Offline"])
@pytest.mark.parametrize("at", [0, 30])
def test_what_a_query_raises_comes_out_and_loadgen_still_works(scenario, at):
    calls = []

    def query(indices) -> None:
        calls.append(indices)
        if len(calls) == at + 1:
            raise EngineError("engine gone")

    with pytest.raises(EngineError, match="engine gone"):
        run(query, scenario=scenario, queries=700, seconds=0.01)
    assert len(calls) == at + 1
    assert gc.isenabled()
    assert run(scenario=scenario, queries=700).valid


@needs_loadgen
@pytest.mark.parametrize("scenario", ["SingleStream", "Offline"])
def test_what_comes_between_queries_may_end_the_run(scenario):
    def interrupt(ns: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(scenario=scenario, after_query=interrupt)
    assert run().valid


@needs_loadgen
def test_nothing_is_printed_or_left_behind_and_an_audit_configuration_is_not_read(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path))
    (tmp_path / "audit.config").write_text("*.*.min_query_count = 300\n")
    assert len(run(queries=70).samples_ns) == 70
    assert capfd.readouterr() == ("", "")
    assert [path.name for path in tmp_path.iterdir()] == ["audit.config"]


@needs_loadgen
@pytest.mark.parametrize("step_s", [-3600, 0.5])
def test_a_clock_of_the_day_that_is_set_makes_the_run_invalid(monkeypatch, step_s):
    days = iter([10**18, 10**18 + int(step_s * 1e9)])
    monkeypatch.setattr(module.time, "time_ns", lambda: next(days))
    found = run(queries=70)
    assert len(found.reasons) == 1
    assert found.reasons[0].startswith("SingleStream: the clock of the day, by which LoadGen times, was moved by ")


@needs_loadgen
def test_a_run_of_nothing_is_refused():
    with pytest.raises(MeasureError, match="give at least one image"):
        run(samples=0)


@needs_loadgen
def test_loadgen_is_not_started_where_it_can_write_no_log(tmp_path, monkeypatch):
    asked = []
    with monkeypatch.context() as patch:
        patch.setattr(module.tempfile, "TemporaryDirectory", lambda prefix: contextlib.nullcontext(tmp_path / "none"))
        with pytest.raises(MeasureError, match=r"LoadGen's log mlperf_log_detail.txt: .*; free space in"):
            run(asked.append)
    assert not asked
    assert run().valid


@pytest.mark.parametrize("text", ["", ':::MLLOG {"key": "result_val', "no log at all", ':::MLLOG {"value": 1}'])
def test_a_log_without_a_result_is_refused(tmp_path: Path, text):
    path = tmp_path / "mlperf_log_detail.txt"
    path.write_text(text)
    with pytest.raises(
        MeasureError, match=r"^LoadGen's log mlperf_log_detail.txt: .*; free space in .* measure again$"
    ):
        module.read_log(path)


def test_without_loadgen_the_message_says_so(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "mlperf_loadgen", None)
    assert module.available() is None
    with pytest.raises(MeasureError, match="package mlcommons-loadgen: not installed here"):
        run()
