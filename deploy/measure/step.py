"""Measure every engine of a target: accuracy and latency of the same loaded engines, in one record."""

import contextlib
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

import numpy as np

from deploy.device import check_device
from deploy.errors import MeasureError
from deploy.measure.plan import Plan
from deploy.measure.record import write_record
from deploy.measure.run import Run
from deploy.target import read_target

Progress = Callable[[str], None]


class StoppedError(Exception):
    """The system asked the process to end: no fault of a variant, so nothing that goes on with the others takes it."""


def measure_target(
    output: Path,
    *,
    target: str,
    spec: Mapping[str, Any],
    engines: Path,
    onnx_root: Path,
    data: Path,
    device: Mapping[str, Any],
    plan: Plan,
    journal: Path,
    on_progress: Progress,
) -> dict[str, Any]:
    """Measure all variants of a target and write the record and its raw data.

    A failed variant is recorded under `failed`, and the others are measured; see `check_record`. What was measured
    before SIGTERM came is recorded as partial, and never valid.

    Args:
        output: existing folder; receives record.json, samples.npz, predictions.csv and logits.npz.
        target: the target's name.
        spec: the section `targets.<target>` of params.yaml.
        engines: what `build_target` filled.
        onnx_root: holds the bundles.
        data: the data folder; its whole test split is used.
        device: the fingerprint on file; must be this device's own.
        plan: what is measured.
        journal: folder for answers as they come, which a run that was ended leaves to the next.
        on_progress: called with single lines.

    Returns:
        The record, as written.

    Raises:
        TargetError: the section or the plan is wrong.
        EngineError: this is another device.
        MeasureError: the test split is empty, one of its images has changed, or no variant could be measured.
        ImageError: a test image is missing or cannot be decoded.
        BundleError: the data index is faulty.
    """
    wanted = read_target(target, spec)
    plan.check()
    check_device(device, target=wanted)
    run = Run(
        wanted, spec, plan=plan, engines=engines, onnx_root=onnx_root, data=data, device=device, journal=journal,
        say=on_progress,
    )  # fmt: skip
    with _sigterm() as system:
        try:
            run.measure()
        except StoppedError as stopped:
            run.stopped = str(stopped)
        finally:
            system.only_note()  # what was found is written whole
            run.close()
        if not run.timed:  # nothing to record: the last good record stays
            _refuse(target, run.failed, run.stopped)
        record = run.record()
        write_record(
            output,
            record,
            items=run.split.items,
            samples={
                f"{name}/{scenario}": np.asarray(samples, np.int64)
                for name, subject in run.timed.items()
                for scenario, samples in subject.samples.items()
            },
            answers={name: subject.score.by_image() for name, subject in run.timed.items()},
            logits={name: subject.logits for name, subject in run.timed.items()},
        )
    if run.stopped is None:
        shutil.rmtree(journal, ignore_errors=True)
    for line in in_words(record):
        on_progress(line)
    return record


def in_words(record: Mapping[str, Any]) -> Iterator[str]:
    """Yield a line for each variant, and why the record is not valid."""
    for name, variant in record["variants"].items():
        accuracy, latency = variant["accuracy"], variant["latency_ms"]
        p50, p90 = (f"{p} {latency[p]} ms ({latency[f'{p}_low']} to {latency[f'{p}_high']})" for p in ("p50", "p90"))
        over = "".join(f", over budget: {phrase}" for phrase in variant["over_budget"])
        yield f"{record['target']}/{name}: {accuracy['metric']} {accuracy['percent']} %, {p50}, {p90}{over}"
    for reason in record["noise"]:
        yield f"{record['target']}: noisy: {reason}"
    for reason in record["invalid_reasons"]:
        yield f"{record['target']}: not valid: {reason}"


def check_record(record: Mapping[str, Any]) -> None:
    """Refuse a record that is partial or has failed variants.

    Raises:
        MeasureError: naming each failed variant and its reason.
    """
    if record["failed"] or record["partial"]:
        _refuse(record["target"], record["failed"], record["partial"])


def _refuse(target: str, failed: Mapping[str, str], stopped: str | None) -> NoReturn:
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in failed.items())
    if stopped:
        msg = f"target {target!r}: {stopped}; measure again{f' ({reasons})' if reasons else ''}"
    else:
        msg = f"target {target!r}: {len(failed)} variants were not measured: {reasons or 'all were skipped'}"
    raise MeasureError(msg)


class _Sigterm:
    """Turns the system's request to end into `StoppedError`, once."""

    def __init__(self) -> None:
        self._raising = True

    def only_note(self) -> None:
        """Let later requests pass: the record is being written, and the process ends after it."""
        self._raising = False

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Hear the signal."""
        del number, frame
        if self._raising:
            self._raising = False
            msg = "the measurement was ended by SIGTERM"
            raise StoppedError(msg)


@contextlib.contextmanager
def _sigterm() -> Iterator[_Sigterm]:
    """Hear SIGTERM while the block runs; only the main thread does."""
    system = _Sigterm()
    if threading.current_thread() is not threading.main_thread():
        yield system
        return
    before = signal.signal(signal.SIGTERM, system)
    try:
        yield system
    finally:
        signal.signal(signal.SIGTERM, before)
