"""The process that holds one engine while it is measured, and does what the measurement asks of it.

Both sides speak in lines of JSON. To a request `{"do": name, ...}` the worker answers `{"done": value}`, or `{"error":
words, "kind": class}`; before, it may send `{"say": line}`. A scenario is run in turns: the worker sends
`{"turn": samples}`, first with none, and waits for `{"go": nanoseconds}`, after which it runs that long. So engines in
different processes are timed in turns, and none is in another's way.
"""

import json
import os
import re
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.typing import NDArray

from deploy.bundle import Bundle, load_bundle
from deploy.child import voice
from deploy.data import Item, Split, load_split
from deploy.engine import LoadedEngine, check_placement, load_engine
from deploy.errors import DeployError, MeasureError
from deploy.files import sha256_file, system_text
from deploy.golden import check_golden
from deploy.measure.accuracy import EVERY_S, evaluate, kept_places, score_of
from deploy.measure.end_to_end import end_to_end
from deploy.measure.journal import Journal
from deploy.measure.scenarios import Rules, no_garbage_collection
from deploy.measure.warmup import warm_up
from deploy.preprocess import load_image, load_mask
from deploy.target import read_target

STATUS = Path("/proc/self/status")
# Unrecorded at the start of a turn: the caches hold another engine's weights, and its threads may still be spinning.
LEAD_IN_NS = 2_000_000
PRELOADED = 64  # images that queries draw from, as many as fit into `PRELOADED_BYTES`
PRELOADED_BYTES = 2**26
END_TO_END_IMAGES = 64
SAID = 16  # queries after which the time is looked at

Say = Callable[[str], None]


class Worker:
    """One engine under measurement.

    Args:
        asked: lines of the parent.
        answers: takes lines for the parent.
    """

    def __init__(self, asked: TextIO, answers: TextIO) -> None:
        self._asked, self._answers = asked, answers
        self._loaded: LoadedEngine
        self._bundle: Bundle
        self._split: Split
        self._inputs: list[NDArray[np.float32]] = []

    def serve(self) -> None:
        """Answer requests until the parent closes its end."""
        for line in self._asked:
            request = json.loads(line)
            try:
                done = {"done": getattr(self, f"do_{request.pop('do')}")(**request)}
            except (DeployError, MemoryError, OSError) as error:
                done = {"error": str(error) or type(error).__name__, "kind": type(error).__name__}
            self._tell(done)

    def do_open(
        self, *, engine: str, bundle: str, data: str, target: str, spec: dict[str, Any], device: dict[str, Any]
    ) -> dict[str, Any]:
        """Verify and load the engine and run it once; only then is its time up that `cold start` names."""
        wanted = read_target(target, spec)
        if wanted.cpus is not None:
            pin(wanted.cpus)
        self._bundle = load_bundle(Path(bundle))
        self._loaded = load_engine(Path(engine), device=device, target=wanted)
        self._loaded.engine.run(np.zeros(self._bundle.input_shape, np.float32))
        self._tell({"say": None})
        self._split = load_split(Path(data), "test")
        manifest = self._loaded.manifest
        found = {"load_seconds": self._loaded.load_seconds, "memory_mb": peak_mb()}
        golden = check_golden(self._loaded.engine, self._bundle, precision=manifest.precision)
        golden.require(
            f"engine {manifest.variant!r}", remedy=f"build it again with `dvc repro compile@{manifest.target}`"
        )
        placement = self._loaded.engine.placement()
        check_placement(
            placement, manifest.settings, target=target, allow_fallback=wanted.allow_fallback, name=manifest.variant
        )
        return found | {"golden": golden.as_dict(), "placement": placement.as_dict()}

    def do_evaluate(self, *, journal: str) -> dict[str, Any]:
        """Run the whole test split, from where the journal ends; the answers are in the journal."""
        score = score_of(self._split)
        items, shape = self._split.items, self._bundle.output_shape
        about = {
            "engine": self._loaded.manifest.engine_sha256,
            "key": self._loaded.manifest.key,  # the runtime's version and options
            "bundle": sha256_file(self._bundle.folder / "bundle.json"),  # preprocessing
            "data": self._split.sha256,
        }
        kept = kept_places(len(items), shape)
        with Journal(Path(journal), about, row=score.row, logits=shape[1:], kept=kept) as answers:
            score.rows = answers.rows()
            resumed = len(score.rows)
            if resumed:
                self._say(f"accuracy: {resumed} of {len(items)} images are known from an earlier run")
            logits = evaluate(
                self._loaded.engine, items, self._load, score=score, journal=answers, on_progress=self._say
            )
        np.save(Path(journal) / "logits.npy", logits, allow_pickle=False)
        np.save(Path(journal) / "rows.npy", np.stack(score.rows), allow_pickle=False)
        return {"resumed": resumed}

    def do_warm_up(self, *, limit_s: float) -> dict[str, Any]:
        """Load the images that queries draw from, and run until the latency stands still."""
        size = 4 * int(np.prod(self._bundle.input_shape))
        count = max(1, min(len(self._split.items), PRELOADED, PRELOADED_BYTES // size))
        if not self._inputs:
            self._inputs = [self._load(item)[0][None] for item in self._split.items[:count]]
        run, first = self._loaded.engine.run, self._inputs[0]
        with no_garbage_collection():
            return warm_up(lambda: run(first), limit_s=limit_s).as_dict()

    def do_scenario(self, *, rules: dict[str, Any], engine: str, seed: int, expected_ns: int) -> dict[str, Any]:
        """Run a scenario by LoadGen or our own issuer, in turns."""
        from deploy.measure import issuer, loadgen

        run, inputs, wanted = self._loaded.engine.run, self._inputs, Rules(**rules)

        def query(indices: Sequence[int]) -> None:
            for index in indices:
                run(inputs[index])

        turns = _Turns(self._tell, self._asked, lead_in=lambda: run(inputs[0]))
        turns.begin()
        alone = wanted.kind.samples == 0  # one query of all samples cannot stop for others
        outcome = (loadgen if engine == loadgen.NAME else issuer).run(
            _Said(query, self._say) if alone else query,
            wanted,
            samples=len(inputs),
            seed=seed,
            expected_ns=expected_ns,
            after_query=turns.no_turn if alone else turns.after_query,
        )
        turns.end(outcome.samples_ns.tolist() if alone else None)
        return dict(outcome.as_dict())

    def do_end_to_end(self, *, rounds: int) -> dict[str, list[int]]:
        """Time the way from files to answers."""
        images = [item.path for item in self._split.items[:END_TO_END_IMAGES]]
        with no_garbage_collection():
            return end_to_end(
                self._loaded.engine, images, self._bundle.preprocess, rounds=rounds, on_progress=self._say
            )

    def do_run_for(self, *, seconds: float) -> int:
        """Run queries one after another for so long; return their number."""
        run, count, end = self._loaded.engine.run, 0, time.perf_counter() + seconds
        while time.perf_counter() < end:
            run(self._inputs[count % len(self._inputs)])
            count += 1
        return count

    def _load(self, item: Item) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Load a test image and its class or mask."""
        image = load_image(item.path, self._bundle.preprocess)
        _check_file("image", item.path, item.sha256)
        if item.mask is None:
            return image, np.array(item.label)
        mask = load_mask(item.mask, self._bundle.preprocess)
        _check_file("mask", item.mask, item.mask_sha256)
        return image, mask

    def _say(self, line: str) -> None:
        self._tell({"say": line})

    def _tell(self, answer: dict[str, Any]) -> None:
        self._answers.write(json.dumps(answer) + "\n")
        self._answers.flush()


class _Turns:
    """Stops a scenario between two queries when its turn is over, until the next one begins."""

    def __init__(self, tell: Callable[[dict[str, Any]], None], asked: TextIO, *, lead_in: Callable[[], object]) -> None:
        self._tell, self._asked, self._lead_in = tell, asked, lead_in
        self._samples: list[int] = []
        self._began = self._ends = time.perf_counter_ns()

    def begin(self) -> None:
        """Hand over the samples of the turn that is over, and wait for the next."""
        self._hand_over(self._samples)
        line = self._asked.readline()
        if not line:  # the parent is gone, and LoadGen takes no exception from here
            os._exit(1)
        self._samples = []
        start = time.perf_counter_ns()
        self._lead_in()
        while time.perf_counter_ns() - start < LEAD_IN_NS:
            self._lead_in()
        self._began = time.perf_counter_ns()
        self._ends = self._began + int(json.loads(line)["go"])

    def after_query(self, nanoseconds: int) -> None:
        """Take one query's time."""
        self._samples.append(nanoseconds)
        if time.perf_counter_ns() >= self._ends:
            self.begin()

    def no_turn(self, nanoseconds: int) -> None:
        """Take the time of the one query that a scenario has: its samples are handed over at its end."""

    def end(self, samples: list[int] | None) -> None:
        """Hand over what is left, or what is given; the answer to the request follows."""
        self._hand_over(self._samples if samples is None else samples, last=True)

    def _hand_over(self, samples: list[int], *, last: bool = False) -> None:
        self._tell({"turn": samples, "ns": time.perf_counter_ns() - self._began, "last": last})


class _Said:
    """A query that tells now and then how many there were: the parent takes silence for the end.

    Args:
        query: runs inference.
        say: takes lines.
    """

    def __init__(self, query: Callable[[Sequence[int]], None], say: Say) -> None:
        self._query, self._say = query, say
        self._count, self._last = 0, time.monotonic()

    def __call__(self, indices: Sequence[int]) -> None:
        """Run it."""
        self._query(indices)
        self._count += len(indices)
        if self._count % SAID == 0 and time.monotonic() - self._last >= EVERY_S:
            self._last = time.monotonic()
            self._say(f"latency, Offline: {self._count} samples")


def pin(cpus: Sequence[int]) -> None:
    """Let this process, and all threads that it will start, run on some cores only.

    Raises:
        MeasureError: the system has no such call, or not these cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        msg = f"`cpus` {list(cpus)}: this system does not pin processes to cores; take it out of the target"
        raise MeasureError(msg)
    try:
        os.sched_setaffinity(0, cpus)
    except OSError as cause:
        allowed = sorted(os.sched_getaffinity(0))
        msg = f"`cpus` {list(cpus)}: this process may run on cores {allowed} only ({cause.strerror})"
        raise MeasureError(msg) from cause
    if os.sched_getaffinity(0) != set(cpus):  # the kernel drops cores that are not there without a word
        msg = f"`cpus` {list(cpus)}: only {sorted(os.sched_getaffinity(0))} of them are there"
        raise MeasureError(msg)


def peak_mb() -> float | None:
    """Return the most memory that this process ever held, in 10^6 bytes; None where the system does not tell."""
    found = re.search(r"^VmHWM:\s*(\d+) kB", system_text(STATUS) or "", re.MULTILINE)
    return int(found[1]) * 1024 / 1e6 if found else None


def _check_file(what: str, path: Path, indexed: str) -> None:
    """Refuse a file that is not the one that was indexed: else two records could not be compared."""
    actual = sha256_file(path)
    if actual != indexed:
        msg = (
            f"test {what} {path}: sha256 {actual[:12]}, {indexed[:12]} in the index; "
            "restore it, or run `dvc repro prepare`"
        )
        raise MeasureError(msg)


def main() -> None:
    """Serve the process that started this one."""
    with voice() as answers:
        Worker(sys.stdin, answers).serve()
