"""One engine under measurement, and what the record says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle
from deploy.engine import Manifest
from deploy.measure.accuracy import Classification, Segmentation, difference
from deploy.measure.crew import Turns, Worker
from deploy.measure.plan import SINGLE_STREAM
from deploy.measure.statistics import percentile_interval, ratio_of_percentiles, summarise
from deploy.target import Variant

RATIO_PERCENTILE = 90
MOST_BLOCKS = 200
FEWEST_SAMPLES = 4  # of a turn whose median says something
STEADY = 1.25  # of turns' medians, the ninth decile to the first: within it lie boost clocks and other threads' places
FEWEST_ROUNDS = 20  # with fewer the interval of a ratio is too narrow


@dataclass
class Subject:
    """One variant, and all that was found of it so far.

    Attributes:
        variant: its name and precision.
        bundle: of its model.
        manifest: of its engine.
        worker: the process that holds the engine.
        opened: what the worker said of the loading.
        score: of its answers to the images.
        logits: those that are kept, of shape (kept images, classes, ...).
        resumed: number of images whose answers an earlier run left.
        answered: whether all images were answered.
        warm: how the warm-up went.
        turns: what it did in each scenario, by name.
        end_to_end: nanoseconds by step.
        energy: of an inference, or why there is none.
    """

    variant: Variant
    bundle: Bundle
    manifest: Manifest
    worker: Worker
    opened: Mapping[str, Any]
    score: Classification | Segmentation
    logits: NDArray[np.float32] = field(default_factory=lambda: np.empty(0, np.float32))
    resumed: int = 0
    answered: bool = False
    warm: Mapping[str, Any] = field(default_factory=dict)
    turns: dict[str, Turns] = field(default_factory=dict)
    end_to_end: Mapping[str, Sequence[int]] = field(default_factory=dict)
    energy: Mapping[str, Any] | str = "the measurement was ended before"

    @property
    def timed(self) -> bool:
        """Whether there is enough to be recorded: all answers, and one query."""
        return self.answered and any(self.samples.get(SINGLE_STREAM, ()))

    @property
    def samples(self) -> dict[str, list[int]]:
        """Nanoseconds of each query in the order measured, by scenario."""
        return {name: turns.samples for name, turns in self.turns.items()}

    def faults(self, *, seconds: float) -> list[str]:
        """Say why its scenarios are not valid.

        Args:
            seconds: that each had to be measured for.
        """
        found = []
        for name, turns in self.turns.items():
            said = list(turns.outcome["invalid_reasons"]) if turns.outcome else ["it was not run to its end"]
            spent = turns.spent_ns / 1e9
            if spent < seconds:
                said.append(f"its turns took {spent:.2f} s together, at least {seconds:g} s are asked for")
            found += [f"{self.variant.name}, {name}: {words}" for words in said]
        return found

    def describe(self) -> dict[str, Any]:
        """Return its part of the record."""
        manifest, latency = self.manifest, self.samples[SINGLE_STREAM]
        measured = isinstance(self.energy, Mapping)
        return {
            "precision": manifest.precision,
            "engine_sha256": manifest.engine_sha256,
            "onnx_sha256": manifest.onnx_sha256,
            "engine_bytes": manifest.engine_bytes,
            "bundle_bytes": sum(file.stat().st_size for file in self.bundle.folder.iterdir()),
            "engine_key": manifest.key,
            "golden": self.opened["golden"],
            "placement": self.opened["placement"],
            "accuracy": self.score.summary(),
            "resumed": self.resumed,
            "warm_up": dict(self.warm),
            "latency_ms": summarise(latency),
            "queries": len(latency),
            "seconds": round(self.turns[SINGLE_STREAM].spent_ns / 1e9, 4),
            "scenarios": {name: _scenario(turns) for name, turns in self.turns.items() if turns.samples},
            "end_to_end_ms": {name: _step(values) for name, values in self.end_to_end.items()},
            "memory_mb": self.opened["memory_mb"],
            "load_seconds": round(self.opened["load_seconds"], 4),
            "cold_start_seconds": round(self.worker.first_answer_s or 0.0, 4),
            "energy": dict(self.energy) if isinstance(self.energy, Mapping) else None,
            "energy_reason": None if measured else self.energy,
        }


def _scenario(turns: Turns) -> dict[str, Any]:
    """Describe one scenario."""
    own = {"measured_seconds": round(turns.spent_ns / 1e9, 4), "turns": len(turns.rounds)}
    return (turns.outcome or {"valid": False}) | own


def _step(values: Sequence[int]) -> dict[str, float]:
    low, high = percentile_interval(values, 0.5)
    parts = {"p50": float(np.median(values)), "p50_low": low, "p50_high": high}
    return {name: round(value / 1e6, 4) for name, value in parts.items()}


def drift(turns: Mapping[str, Turns]) -> list[str]:
    """Say where the machine's speed changed during a scenario, whatever took it: the clock, a neighbour, the heat.

    Ratios of engines that took turns hold all the same; their percentiles are a mixture.

    Args:
        turns: of each engine in one scenario, by variant.
    """
    found = []
    for name, each in turns.items():
        medians = [float(np.median(samples)) for samples in each.rounds if len(samples) >= FEWEST_SAMPLES]
        if len(medians) >= FEWEST_ROUNDS:
            low, high = np.quantile(medians, (0.1, 0.9)) / 1e6
            if high > STEADY * low:
                found.append((high / low, f"{name}'s turns had medians from {low:.3g} to {high:.3g} ms"))
    return [f"the machine's speed changed while it was measured: {max(found)[1]}"] if found else []


def differences(subjects: Mapping[str, Subject], *, seed: int) -> list[dict[str, Any]]:
    """Compare all pairs: accuracy on the same images, and latency in the same rounds of the interleaved run.

    Args:
        subjects: by variant; all `timed`.
        seed: of the bootstrap.

    Returns:
        Of each pair the later one as `variant`, less than, or as a multiple of, the earlier one, `reference`.
    """
    return [
        {"variant": name, "reference": reference, **_difference(subject, base, seed=seed)}
        for (reference, base), (name, subject) in combinations(subjects.items(), 2)
    ]


def _blocks(rounds: list[tuple[list[int], list[int]]]) -> list[tuple[list[int], list[int]]]:
    """Join consecutive rounds until there are few enough for a bootstrap in seconds, however long the run was."""
    each = -(-len(rounds) // MOST_BLOCKS)
    parts = [rounds[start : start + each] for start in range(0, len(rounds), max(1, each))]
    return [([ns for one, _ in part for ns in one], [ns for _, other in part for ns in other]) for part in parts]


def _difference(ours: Subject, theirs: Subject, *, seed: int) -> dict[str, Any]:
    points = difference(ours.score, theirs.score)
    pairs = zip(ours.turns[SINGLE_STREAM].rounds, theirs.turns[SINGLE_STREAM].rounds, strict=False)
    rounds = _blocks([(one, other) for one, other in pairs if one and other])  # the last turn may be empty
    ratio: dict[str, Any] | None = None
    if len(rounds) >= FEWEST_ROUNDS:
        mine, others = zip(*rounds, strict=True)
        found = ratio_of_percentiles(mine, others, q=RATIO_PERCENTILE / 100, seed=seed)
        ratio = {"percentile": RATIO_PERCENTILE, "rounds": len(rounds), **found.as_dict(4)}
    told = {"method": points.method, "p_value": points.p_value}
    return {"accuracy_points": points.as_dict(3) | told, "latency_ratio": ratio}
