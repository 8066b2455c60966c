import itertools

from deploy.measure.warmup import warm_up


class Machine:
    """A clock that only queries move."""

    def __init__(self, durations):
        self.now, self.durations = 0, iter(durations)

    def query(self):
        self.now += next(self.durations)

    def clock(self):
        return self.now


def warm(durations, limit_s=1000.0):
    machine = Machine(durations)
    return warm_up(machine.query, limit_s=limit_s, clock=machine.clock)


def test_a_steady_engine_takes_three_windows():
    found = warm(itertools.repeat(10_000_000))
    assert (found.stable, found.queries, found.median_ns) == (True, 30, 10_000_000)


def test_windows_have_eight_queries_of_a_slow_engine():
    assert warm(itertools.repeat(10**9)).queries == 24


def test_it_goes_on_while_the_latency_falls():
    falling = [10_000_000 + 30_000_000 // (index + 1) for index in range(500)]
    found = warm(itertools.chain(falling, itertools.repeat(10_000_000)))
    assert found.stable
    assert found.queries > 60
    assert found.median_ns < 11_000_000


def test_an_engine_that_never_stands_still_ends_with_the_time():
    found = warm(itertools.cycle([10_000_000] * 12 + [20_000_000] * 12), limit_s=3)
    assert not found.stable
    assert 3 <= found.seconds < 3.5
    assert found.as_dict()["stable"] is False


def test_no_time_is_still_one_window():
    found = warm(itertools.repeat(1_000_000), limit_s=0)
    assert (found.stable, found.queries) == (False, 100)
