import gc

import pytest

from deploy.errors import EngineError, MeasureError
from deploy.measure import issuer
from deploy.measure.scenarios import Rules

MS = 1_000_000


@pytest.fixture(autouse=True)
def quick_collection(monkeypatch):
    """Collecting the garbage of the whole test process takes longer than a run."""
    monkeypatch.setattr("gc.collect", lambda: 0)


class Bench:
    """A clock that only queries and pauses move."""

    def __init__(self, *, query_ns: int = MS, pause_ns: int = 0) -> None:
        self.now, self.query_ns, self.pause_ns = 10**15, query_ns, pause_ns
        self.asked: list[tuple[int, ...]] = []
        self.told: list[int] = []

    def clock(self) -> int:
        return self.now

    def query(self, indices) -> None:
        self.asked.append(tuple(indices))
        self.now += self.query_ns

    def after_query(self, ns: int) -> None:
        self.told.append(ns)
        self.now += self.pause_ns

    def run(self, scenario: str = "SingleStream", queries: int = 100, seconds: float = 0.0, **changes):
        options = {"samples": 7, "seed": 0, "expected_ns": self.query_ns, **changes}
        rules = Rules(scenario=scenario, min_queries=queries, min_seconds=seconds)
        return issuer.run(self.query, rules, after_query=self.after_query, clock=self.clock, **options)


def test_a_run_ends_with_the_count_where_time_is_met():
    bench = Bench()
    found = bench.run(queries=100, seconds=0.05)
    assert found.samples_ns.tolist() == [MS] * 100 == bench.told
    assert found.valid
    assert found.seconds == pytest.approx(0.1)
    assert (found.engine, found.result, found.estimates) == ("slad", MS, {"p90": MS, "p99": None})


def test_a_run_ends_with_the_issue_that_reaches_the_time_where_the_count_is_met():
    found = Bench().run(queries=70, seconds=0.5)
    assert len(found.samples_ns) == 501  # the first is issued at 0, the last at 0.5 s
    assert found.seconds == pytest.approx(0.501)


def test_pauses_count_for_the_duration_and_are_in_no_sample():
    found = Bench(pause_ns=4 * MS).run(queries=70, seconds=0.5)
    assert found.samples_ns.tolist() == [MS] * 101
    assert found.seconds == pytest.approx(0.501)


def test_a_query_longer_than_the_whole_run_is_followed_by_what_the_rules_ask():
    found = Bench(query_ns=3_000 * MS).run(queries=1, seconds=1.0)
    assert len(found.samples_ns) == 2
    assert found.reasons == ("SingleStream: 2 queries, and an early-stopping estimate of p90 takes 64",)


def test_single_stream_asks_for_all_images_in_random_order():
    bench, again, other = Bench(), Bench(), Bench()
    bench.run(queries=200)
    again.run(queries=200)
    other.run(queries=200, seed=1)
    assert bench.asked == again.asked != other.asked
    assert set(bench.asked) == {(index,) for index in range(7)}


@pytest.mark.parametrize("samples", [3, 8, 50])
def test_multi_stream_asks_for_eight_neighbours(samples):
    bench = Bench()
    found = bench.run("MultiStream", queries=700, samples=samples)
    assert len(found.samples_ns) == 700
    assert found.valid
    assert all(asked == tuple((asked[0] + i) % samples for i in range(8)) for asked in bench.asked)
    assert {asked[0] for asked in bench.asked} == set(range(samples))


def test_offline_is_one_query_asked_sample_by_sample():
    bench = Bench(pause_ns=MS)
    found = bench.run("Offline", queries=10, seconds=0.1)
    assert bench.asked == [(index % 7,) for index in range(110)]
    assert bench.told == [110 * MS]
    assert found.samples_ns.tolist() == [MS] * 110
    assert found.result == pytest.approx(1000)
    assert found.valid


def test_offline_faster_than_expected_is_too_short():
    found = Bench(query_ns=MS).run("Offline", queries=10, seconds=1.0, expected_ns=2 * MS)
    assert found.reasons == ("Offline: 0.55 s from the first query to the last, not 1 s",)


@pytest.mark.parametrize("broken", ["query", "after_query"])
def test_what_a_callback_raises_comes_out(broken):
    bench = Bench()

    def fail(argument) -> None:
        raise EngineError("engine gone")

    setattr(bench, broken, fail)
    with pytest.raises(EngineError, match="engine gone"):
        bench.run()
    assert gc.isenabled()


@pytest.mark.parametrize("changes", [{"samples": 0}, {"expected_ns": 0}])
def test_a_run_of_nothing_is_refused(changes):
    with pytest.raises(MeasureError, match="give at least one image and one nanosecond"):
        Bench().run(**changes)


def test_garbage_collector_is_off_in_queries():
    bench, seen = Bench(), []
    bench.after_query = lambda ns: seen.append(gc.isenabled())
    bench.run(queries=3)
    assert seen == [False] * 3


def test_version_is_that_of_the_package(monkeypatch):
    def missing(name):
        raise issuer.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(issuer.importlib.metadata, "version", lambda name: {"slad-edge": "9.9"}[name])
    assert issuer.version() == "9.9"
    monkeypatch.setattr(issuer.importlib.metadata, "version", missing)
    assert issuer.version() == "unknown"
