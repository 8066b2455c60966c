"""How a target is measured: which scenarios, how much of each, and what the profile's name promises."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from deploy.errors import TargetError
from deploy.measure.scenarios import SCENARIOS, Rules

QUICK, STANDARD, MLPERF = "quick", "standard", "mlperf"
# Fewest queries and seconds that a profile's name stands for: 662 queries are the fewest that bound p99 with 99 %
# confidence, and 600 s are MLPerf's.
PROFILES = {QUICK: (1, 0.0), STANDARD: (664, 10.0), MLPERF: (664, 600.0)}
SINGLE_STREAM, OFFLINE = "SingleStream", "Offline"
OFFLINE_SAMPLES = 24576  # MLPerf's for image classification
# Of the seconds asked for: a scenario lasts as long in all engines' turns together, and some of that is lost between.
SLACK = 1.25
FAST = 0.8  # of the median: Offline has as many samples as fill its time at this speed
WARM_UP_LIMIT_S = {QUICK: 1.0, STANDARD: 10.0, MLPERF: 60.0}


@dataclass(frozen=True, kw_only=True)
class Plan:
    """How a target is measured.

    Attributes:
        profile: "standard", "mlperf", or "quick" for development, which is never valid.
        scenarios: of MLPerf, besides SingleStream, which is always run.
        queries: fewest queries of each variant and scenario.
        seconds: least measured time of each variant and scenario.
        attempts: how often a noisy run is made at most.
        seed: of the order of the turns and images.
    """

    profile: str
    scenarios: tuple[str, ...]
    queries: int
    seconds: float
    attempts: int
    seed: int

    def check(self) -> None:
        """Refuse values that cannot be.

        Raises:
            TargetError: naming the key and the value.
        """
        if self.profile not in PROFILES:
            msg = f"`measure.profile` should be one of {', '.join(PROFILES)}, got {self.profile!r}"
            raise TargetError(msg)
        unknown = [name for name in self.scenarios if name not in SCENARIOS]
        if unknown:
            msg = f"`measure.scenarios` should hold some of {', '.join(SCENARIOS)}, got {unknown[0]!r}"
            raise TargetError(msg)
        if not 0 <= self.seconds < math.inf:
            msg = f"`measure.seconds` should be a number of 0 or more, got {self.seconds!r}"
            raise TargetError(msg)
        for name, value in (("queries", self.queries), ("attempts", self.attempts)):
            if value < 1:
                msg = f"`measure.{name}` should be 1 or more, got {value!r}"
                raise TargetError(msg)

    @property
    def asked(self) -> tuple[str, ...]:
        """The scenarios in their order, SingleStream first."""
        return tuple(name for name in SCENARIOS if name == SINGLE_STREAM or name in self.scenarios)

    @property
    def shortfall(self) -> str | None:
        """Say why the profile's name cannot be claimed, or None."""
        if self.profile == QUICK:
            return "profile 'quick' is for development"
        queries, seconds = PROFILES[self.profile]
        if self.queries >= queries and self.seconds >= seconds:
            return None
        return (
            f"profile {self.profile!r} stands for at least {queries} queries and {seconds:g} s, asked for "
            f"{self.queries} and {self.seconds:g} s"
        )

    @property
    def warm_up_limit_s(self) -> float:
        """Seconds after which a warm-up ends though the latency still moves."""
        return WARM_UP_LIMIT_S[self.profile]

    def rules(self, scenario: str, *, engines: int) -> Rules:
        """Return what one engine has to keep in a scenario.

        Args:
            scenario: its name.
            engines: how many take turns in it.
        """
        queries = OFFLINE_SAMPLES if (scenario, self.profile) == (OFFLINE, MLPERF) else self.queries
        turns = 1 if scenario == OFFLINE else engines * SLACK
        return Rules(scenario=scenario, min_queries=queries, min_seconds=self.seconds * turns)

    def expected_ns(self, scenario: str, median_ns: int, *, engines: int) -> int:
        """Return the time from one query to the next, of Offline from one sample to the next, where it is short.

        Args:
            scenario: its name.
            median_ns: of one image, from the warm-up.
            engines: how many take turns: the others' are between an engine's queries too.
        """
        samples = SCENARIOS[scenario].samples
        return max(1, round(FAST * median_ns) * (samples * engines if samples else 1))

    def prepared(self, medians_ns: Sequence[int]) -> int:
        """Return how many queries LoadGen would prepare for an engine at most: twice as many as fill the duration.

        Args:
            medians_ns: of one image, of all engines, from the warm-up.
        """
        return max(
            2
            * self.rules(scenario, engines=len(medians_ns)).min_ms
            * 1_000_000
            // self.expected_ns(scenario, median, engines=len(medians_ns))
            for median in medians_ns
            for scenario in self.asked
        )
