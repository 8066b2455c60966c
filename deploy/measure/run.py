"""One measurement under way: its workers, its scenarios, and the record of what was found so far."""

import contextlib
import functools
import random
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from deploy.build import SKIPPED, bundle_of
from deploy.bundle import Bundle
from deploy.conditions.energy import measure_energy
from deploy.conditions.meters import Meter, find_meter, nvidia_gpu
from deploy.conditions.noise import noise
from deploy.conditions.rules import broken_rules
from deploy.conditions.state import state
from deploy.conditions.watch import Watch
from deploy.data import Split, load_split
from deploy.document import read_document
from deploy.engine import Manifest, read_manifest, verify_engine
from deploy.errors import BundleError, EngineError, ImageError, MeasureError, TargetError
from deploy.measure import issuer, loadgen
from deploy.measure.accuracy import score_of
from deploy.measure.budget import judged
from deploy.measure.crew import Turns, Worker, interleave
from deploy.measure.plan import OFFLINE, QUICK, SINGLE_STREAM, Plan
from deploy.measure.record import SCHEMA
from deploy.measure.subject import Subject, differences, drift
from deploy.target import Target, Variant

Progress = Callable[[str], None]
# A turn is long beside what is lost between two, and short beside a slow spell of the machine; every engine gets the
# same time, so that all are done together, and the slowest at least this many queries in it.
TURN_NS = 50_000_000
TURN_QUERIES = 8
LONGEST_TURN_NS = 60_000_000_000
# LoadGen prepares all queries that could fill the time before the first one; above this the memory is the engines'.
MOST_PREPARED = 2_000_000
PREPARED_BYTES = 340
END_TO_END_ROUNDS = {QUICK: 1}
SETTLE_S, IDLE_S = 3.0, 3.0  # a GPU tells its power as a mean of the last second
SAY_EVERY_S = 2.0


class Run:
    """One measurement under way; see `deploy.measure.step.measure_target` for the arguments.

    Attributes:
        target: that is measured.
        split: the test images.
        subjects: the engines that work, by variant.
        failed: why the others do not.
        stopped: why it was ended before its time, or None.
    """

    def __init__(
        self,
        target: Target,
        spec: Mapping[str, Any],
        *,
        plan: Plan,
        engines: Path,
        onnx_root: Path,
        data: Path,
        device: Mapping[str, Any],
        journal: Path,
        say: Progress,
    ) -> None:
        self.target, self._spec, self._plan = target, spec, plan
        self._engines, self._onnx_root, self._data = engines, onnx_root, data
        self._device, self._journal, self._say = device, journal, say
        self.split = _test_split(data)
        self._skipped = _read_skipped(engines)
        self.subjects: dict[str, Subject] = {}
        self.failed: dict[str, str] = {}
        self.stopped: str | None = None
        self._workers: dict[str, Worker] = {}
        self._turns: dict[str, dict[str, Turns]] = {}  # of the attempt under way
        self._during: Mapping[str, Any] = {}
        self._noise: list[str] = []
        self._attempts = 0
        self._told = time.monotonic()
        self._issuer: dict[str, str] = {}
        self._before = state()

    @property
    def timed(self) -> dict[str, Subject]:
        """The subjects that can be recorded."""
        return {name: subject for name, subject in self.subjects.items() if subject.timed}

    def measure(self) -> None:
        """Do all of it, in order; what is found so far stands in `subjects` at any time."""
        for variant in self.target.variants:
            if variant.name not in self._skipped:
                with self._failing(variant.name):
                    self._open(variant)
        for name, subject in list(self.subjects.items()):
            with self._failing(name):
                self._evaluate(subject)
        self._time_until_quiet()
        for name, subject in list(self.subjects.items()):
            with self._failing(name):
                self._finish(subject)

    def close(self) -> None:
        """End all workers."""
        for worker in self._workers.values():
            worker.close()

    @contextlib.contextmanager
    def _failing(self, name: str) -> Iterator[None]:
        """Record that a variant failed, and go on with the others."""
        try:
            yield
        except (EngineError, BundleError, TargetError) as error:
            self._fail(name, str(error))

    def _fail(self, name: str, reason: str) -> None:
        self.subjects.pop(name, None)
        self.failed[name] = reason
        if name in self._workers:  # one that hangs would go on beside the others
            self._workers[name].close()
        self._say(f"{self.target.name}/{name}: failed, {reason}")

    def _open(self, variant: Variant) -> None:
        """Start the worker of an engine, which verifies and loads it."""
        bundle = bundle_of(variant, target=self.target, onnx_root=self._onnx_root)
        _check_fit(bundle, self.split)
        folder = self._engines / variant.name
        manifest = read_manifest(folder)
        _check_source(manifest, variant, bundle)
        worker = self._workers[variant.name] = Worker(variant.name, say=self._say)
        opened = worker.ask(
            "open", engine=str(folder), bundle=str(bundle.folder), data=str(self._data), target=self.target.name,
            spec=dict(self._spec), device=dict(self._device),
        )  # fmt: skip
        # What a device holds for a process is not the process's.
        if not opened["placement"]["asked"].startswith("CPU"):
            opened["memory_mb"] = None
        self.subjects[variant.name] = Subject(variant, bundle, manifest, worker, opened, score_of(self.split))

    def _evaluate(self, subject: Subject) -> None:
        name = subject.variant.name
        self._say(f"{self.target.name}/{name}: accuracy on {len(self.split.items)} images")
        folder = self._journal / name
        subject.resumed = subject.worker.ask("evaluate", journal=str(folder))["resumed"]
        subject.score.rows = list(np.load(folder / "rows.npy", allow_pickle=False))
        subject.logits = np.load(folder / "logits.npy", allow_pickle=False)
        subject.answered = True

    def _time_until_quiet(self) -> None:
        """Time all engines, again where the machine was noisy; the quietest attempt stands."""
        while self._attempts < self._plan.attempts and self.subjects:
            during = self._time()
            found = noise(during) + drift(
                {name: turns.get(SINGLE_STREAM, Turns()) for name, turns in self._turns.items()}
            )
            if not self._attempts or len(found) <= len(self._noise):
                self._during, self._noise = during, found
                for name, subject in self.subjects.items():
                    subject.turns = self._turns[name]
            self._attempts += 1
            if not found:
                break
            again = "measuring again" if self._attempts < self._plan.attempts else "the quietest attempt is kept"
            self._say(f"latency: noisy, {'; '.join(found)}; {again}")

    def _time(self) -> dict[str, Any]:
        """Warm up and run all scenarios once, with the machine watched; return what was seen of it."""
        for name, subject in list(self.subjects.items()):
            with self._failing(name):
                subject.warm = subject.worker.ask("warm_up", limit_s=self._plan.warm_up_limit_s)
        self._issuer = self._choose_issuer()
        self._turns = {name: {} for name in self.subjects}
        least = f"at least {self._plan.queries} queries and {self._plan.seconds:g} s each"
        watch = Watch(pids=self._pids, gpu=nvidia_gpu(self.target))
        try:
            with watch:
                for scenario in self._plan.asked:
                    if self.subjects:
                        self._say(f"latency, {scenario}: {', '.join(self.subjects)}, {least}")
                        self._run_scenario(scenario)
        finally:
            if not self._attempts:  # where it is ended now, this is all there is
                self._during = watch.summary()
                for name, subject in self.subjects.items():
                    subject.turns = self._turns[name]
        return watch.summary()

    def _pids(self) -> list[int]:
        return [worker.pid for worker in self._workers.values() if not worker.closed]

    def _choose_issuer(self) -> dict[str, str]:
        """Return what issues the queries, and why it is not LoadGen where it is not."""
        version = loadgen.available()
        prepared = self._plan.prepared([subject.warm["median_ns"] for subject in self.subjects.values()] or [10**9])
        if version and prepared <= MOST_PREPARED:
            return {"name": loadgen.NAME, "version": version}
        reason = "LoadGen is not installed"
        if version:
            gigabytes = prepared * PREPARED_BYTES / 1e9
            reason = f"LoadGen would prepare {prepared / 1e6:.1f} million queries of an engine, {gigabytes:.1f} GB"
        return {"name": issuer.NAME, "version": issuer.version(), "reason": reason}

    def _run_scenario(self, scenario: str) -> None:
        """Run a scenario on all engines in turns, or one after the other where it is one query."""
        names = list(self.subjects)
        random.Random(self._plan.seed).shuffle(names)  # noqa: S311 - an order of measurement, no secret
        slowest = max(self.subjects[name].warm["median_ns"] for name in names)
        for group in [[name] for name in names] if scenario == OFFLINE else [names]:
            requests = {
                name: {
                    "rules": asdict(self._plan.rules(scenario, engines=len(group))),
                    "engine": self._issuer["name"],
                    "seed": self._plan.seed,
                    "expected_ns": self._plan.expected_ns(
                        scenario, self.subjects[name].warm["median_ns"], engines=len(group)
                    ),
                }
                for name in group
            }
            found: dict[str, Turns] = {}
            for name in group:
                self._turns[name][scenario] = found.setdefault(name, Turns())
            failed = interleave(
                {name: self.subjects[name].worker for name in group},
                requests,
                turn_ns=min(max(TURN_NS, TURN_QUERIES * slowest), LONGEST_TURN_NS),
                seed=self._plan.seed,
                found=found,
                on_round=functools.partial(self._tell, scenario, found),
            )
            for name, reason in failed.items():
                self._fail(name, reason)

    def _tell(self, scenario: str, found: Mapping[str, Turns]) -> None:
        """Say about every two seconds how far the engine is that has least."""
        now = time.monotonic()
        if now - self._told < SAY_EVERY_S or scenario == OFFLINE:  # that one tells of itself
            return
        self._told = now
        queries = min(sum(map(len, turns.rounds)) for turns in found.values())
        spent = min(turns.spent_ns for turns in found.values()) / 1e9
        asked = f"at least {self._plan.queries} and {self._plan.seconds:g} s"
        self._say(f"latency, {scenario}: {queries} queries in {spent:.1f} s of every variant, {asked}")

    def _finish(self, subject: Subject) -> None:
        """Time the way from file to answer, measure energy, and verify that the engine is still the one that ran."""
        rounds, place = END_TO_END_ROUNDS.get(self._plan.profile, 4), f"{self.target.name}/{subject.variant.name}"
        try:
            subject.end_to_end = subject.worker.ask("end_to_end", rounds=rounds)
        except (ImageError, MeasureError) as error:  # what was measured stands without it
            self._say(f"{place}: not measured from file to answer: {error}")
        meter = find_meter(self.target)
        if isinstance(meter, str):
            subject.energy = meter
        else:
            self._say(f"{place}: energy by {meter.counter}")
            subject.energy = self._energy(subject, meter)
        self._check_same(subject)

    def _energy(self, subject: Subject, meter: Meter) -> Mapping[str, Any] | str:
        time.sleep(SETTLE_S)
        try:
            return measure_energy(
                lambda seconds: int(subject.worker.ask("run_for", seconds=seconds)),
                meter,
                seconds=max(1.0, self._plan.seconds),
                idle_seconds=IDLE_S,
            )
        except MeasureError as error:
            return str(error)

    def _check_same(self, subject: Subject) -> None:
        """Refuse an engine whose file or manifest is no longer what was loaded."""
        folder = self._engines / subject.variant.name
        try:
            verify_engine(folder, subject.manifest, device=self._device, target=self.target)
            same = read_manifest(folder) == subject.manifest
        except EngineError as cause:
            msg = f"it was changed while it was measured: {cause}"
            raise EngineError(msg) from cause
        if not same:
            msg = f"engine {folder}: it was built again while it was measured; measure it again"
            raise EngineError(msg)

    def record(self) -> dict[str, Any]:
        """Return the record of what was found."""
        plan, timed, after = self._plan, self.timed, state()
        faults = [fault for subject in timed.values() for fault in subject.faults(seconds=plan.seconds)]
        broken = broken_rules(self._before, self._during, after, conditions=self.target.conditions)
        found = [plan.shortfall, self.stopped, *broken, *faults]
        reasons = [reason for reason in found if reason]
        variants = {name: subject.describe() for name, subject in timed.items()}
        return {
            "schema": SCHEMA,
            "target": self.target.name,
            "runtime": self.target.runtime,
            "runtime_version": self._device["runtime_version"],
            "device": dict(self._device),
            "profile": plan.profile,
            "minimum": {"queries": plan.queries, "seconds": plan.seconds},
            "statistics_engine": self._issuer,
            "data_sha256": self.split.sha256,
            "cpus": None if self.target.cpus is None else list(self.target.cpus),
            "state": {"before": self._before, "during": dict(self._during), "after": after},
            "attempts": self._attempts,
            "noise": self._noise,
            "partial": self.stopped,
            "valid": not reasons,
            "invalid_reasons": reasons,
            "budget": dict(self.target.budget),
            "variants": judged(variants, self.target.budget),
            "differences": differences(timed, seed=plan.seed),
            "skipped": self._skipped,
            "failed": self.failed,
        }


def _test_split(data: Path) -> Split:
    split = load_split(data, "test")
    if not split.items:
        msg = f"{data / 'index.json'}: the test split is empty; give it images and run `dvc repro prepare`"
        raise MeasureError(msg)
    return split


def _read_skipped(engines: Path) -> dict[str, str]:
    document = read_document(engines / SKIPPED, error=EngineError, remedy="run `dvc repro compile@<target>`")
    return {name: str(reason) for name, reason in document.mapping("skipped").items()}


def _check_source(manifest: Manifest, variant: Variant, bundle: Bundle) -> None:
    if (manifest.onnx_sha256, manifest.precision) != (bundle.onnx_sha256, variant.precision):
        msg = (
            f"engine {variant.name!r} is stale: built in {manifest.precision} from ONNX {manifest.onnx_sha256[:12]}, "
            f"wanted {variant.precision} from {bundle.onnx_sha256[:12]}; build it again with "
            f"`dvc repro compile@{manifest.target}`"
        )
        raise EngineError(msg)


def _check_fit(bundle: Bundle, split: Split) -> None:
    task = "segmentation" if split.masked else "classification"
    if bundle.task != task:
        msg = (
            f"{bundle.folder}: a bundle for {bundle.task}, but the data is for {task}; run `dvc repro export quantize`"
        )
        raise BundleError(msg)
    if bundle.labels != split.labels:
        msg = (
            f"{bundle.folder}: its {len(bundle.labels)} labels are not the data's {len(split.labels)}: "
            f"{list(bundle.labels[:3])} and {list(split.labels[:3])} come first; run `dvc repro export quantize`"
        )
        raise BundleError(msg)
