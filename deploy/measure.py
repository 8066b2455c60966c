"""Measure every engine of a target: accuracy and latency of the same loaded engine, all in one process."""

import functools
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from deploy.accuracy import Classification, Score, Segmentation, evaluate
from deploy.budget import judged
from deploy.build import SKIPPED, bundle_of
from deploy.bundle import Bundle
from deploy.data import Item, Split, load_split
from deploy.device import busy_reason, check_device, power_reason, state
from deploy.document import SCHEMA, read_document
from deploy.engine import LoadedEngine, check_placement, load_engine
from deploy.errors import BundleError, EngineError, MeasureError, TargetError
from deploy.files import sha256_file
from deploy.golden import GoldenCheck, check_golden
from deploy.isolated import peak_memory_mb
from deploy.latency import measure_interleaved, summarise
from deploy.preprocess import load_image, load_mask
from deploy.record import write_record
from deploy.runtime import Placement
from deploy.target import Target, Variant, read_target

PROFILES = ("standard", "quick")
LOGITS_BYTES = 2**26  # kept of each variant: all of classes, of masks those of some images

Progress = Callable[[str], None]


@dataclass(frozen=True, kw_only=True)
class Timing:
    """How latency is measured.

    Attributes:
        queries: minimum samples of each variant.
        seconds: minimum measured time of each variant.
        warmup_seconds: unrecorded time of each variant before.
        profile: "standard", or "quick" for development, which is never valid.
        seed: of the order of the blocks.
    """

    queries: int
    seconds: float
    warmup_seconds: float
    profile: str
    seed: int


@dataclass(frozen=True)
class _Subject:
    """One variant under measurement."""

    variant: Variant
    bundle: Bundle
    loaded: LoadedEngine
    golden: GoldenCheck
    placement: Placement
    memory_mb: float | None
    score: Score
    logits: NDArray[np.float32]


def measure_target(
    output: Path,
    *,
    target: str,
    spec: Mapping[str, Any],
    engines: Path,
    onnx_root: Path,
    data: Path,
    device: Mapping[str, Any],
    timing: Timing,
    on_progress: Progress,
) -> dict[str, Any]:
    """Measure all variants of a target and write the record and its raw data.

    A failed variant is recorded under `failed`, and the others are measured; see `check_record`.

    Args:
        output: existing folder; receives record.json, latency.csv, predictions.csv and logits.npz.
        target: the target's name.
        spec: the section `targets.<target>` of params.yaml.
        engines: what `build_target` filled.
        onnx_root: holds the bundles.
        data: the data folder; its whole test split is used.
        device: the fingerprint on file; must be this device's own.
        timing: how latency is measured.
        on_progress: called with single lines.

    Returns:
        The record, as written.

    Raises:
        TargetError: the section or the profile is wrong.
        EngineError: this is another device.
        MeasureError: the test split is empty, one of its images has changed, or no variant could be measured.
        ImageError: a test image is missing or cannot be decoded.
        BundleError: the data index is faulty.
    """
    wanted = read_target(target, spec)
    _check_timing(timing)
    check_device(device, target=wanted)
    split = _test_split(data)
    skipped = _read_skipped(engines)
    before = state()
    subjects, failed = _prepare(
        wanted, split, engines=engines, onnx_root=onnx_root, device=device, skipped=skipped, on_progress=on_progress
    )
    if not subjects:  # nothing to record: the last good record stays
        _refuse_failed(target, failed)
    samples = _time(subjects, split, timing, on_progress=on_progress)
    record = {
        **_header(wanted, device=device, timing=timing),
        **_circumstances(before, wanted=wanted, profile=timing.profile),
        "budget": dict(wanted.budget),
        "variants": judged(
            {name: _describe(subject, samples[name]) for name, subject in subjects.items()}, wanted.budget
        ),
        "skipped": skipped,
        "failed": failed,
    }
    answers = {name: subject.score.by_image() for name, subject in subjects.items()}
    logits = {name: subject.logits for name, subject in subjects.items()}
    write_record(output, record, items=split.items, samples=samples, answers=answers, logits=logits)
    return record


def check_record(record: Mapping[str, Any]) -> None:
    """Refuse a record with failed variants.

    Raises:
        MeasureError: naming each failed variant and its reason.
    """
    if record["failed"]:
        _refuse_failed(record["target"], record["failed"])


def _refuse_failed(target: str, failed: Mapping[str, str]) -> NoReturn:
    reasons = "; ".join(f"{name!r}: {reason}" for name, reason in failed.items())
    msg = f"target {target!r}: {len(failed)} variants were not measured: {reasons or 'all were skipped'}"
    raise MeasureError(msg)


def _check_timing(timing: Timing) -> None:
    if timing.profile not in PROFILES:
        msg = f"`measure.profile` should be one of {', '.join(PROFILES)}, got {timing.profile!r}"
        raise TargetError(msg)
    for name, value in (("seconds", timing.seconds), ("warmup_seconds", timing.warmup_seconds)):
        if not 0 <= value < math.inf:
            msg = f"`measure.{name}` should be a number of 0 or more, got {value!r}"
            raise TargetError(msg)
    if timing.queries < 1:
        msg = f"`measure.queries` should be 1 or more, got {timing.queries!r}"
        raise TargetError(msg)


def _test_split(data: Path) -> Split:
    split = load_split(data, "test")
    if not split.items:
        msg = f"{data / 'index.json'}: the test split is empty; give it images and run `dvc repro prepare`"
        raise MeasureError(msg)
    return split


def _read_skipped(engines: Path) -> dict[str, str]:
    document = read_document(engines / SKIPPED, error=EngineError, remedy="run `dvc repro compile@<target>`")
    return {name: str(reason) for name, reason in document.mapping("skipped").items()}


def _prepare(
    wanted: Target,
    split: Split,
    *,
    engines: Path,
    onnx_root: Path,
    device: Mapping[str, Any],
    skipped: Mapping[str, str],
    on_progress: Progress,
) -> tuple[dict[str, _Subject], dict[str, str]]:
    """Load, check and evaluate every variant that is not skipped; return those that work and why others do not."""
    subjects: dict[str, _Subject] = {}
    failed: dict[str, str] = {}
    for variant in wanted.variants:
        if variant.name in skipped:
            continue
        on_progress(f"{wanted.name}/{variant.name}: accuracy on {len(split.items)} images")
        try:
            bundle = bundle_of(variant, target=wanted, onnx_root=onnx_root)
            _check_fit(bundle, split)
            loaded = load_engine(engines / variant.name, device=device, target=wanted)
            subjects[variant.name] = _examine(
                variant, bundle, loaded, split, wanted=wanted, engines=engines, on_progress=on_progress
            )
        except (EngineError, BundleError, TargetError) as error:
            failed[variant.name] = str(error)
            on_progress(f"{wanted.name}/{variant.name}: failed, {error}")
    return subjects, failed


def _examine(
    variant: Variant,
    bundle: Bundle,
    loaded: LoadedEngine,
    split: Split,
    *,
    wanted: Target,
    engines: Path,
    on_progress: Progress,
) -> _Subject:
    """Run the golden check and the whole test split on a loaded engine.

    Raises:
        EngineError: the engine was built from another model or in another precision, fails the golden check, or runs
            elsewhere than the target asks.
    """
    manifest = loaded.manifest
    remedy = f"build it again with `dvc repro compile@{manifest.target}`"
    if (manifest.onnx_sha256, manifest.precision) != (bundle.onnx_sha256, variant.precision):
        msg = (
            f"engine {variant.name!r} is stale: built in {manifest.precision} from ONNX {manifest.onnx_sha256[:12]}, "
            f"wanted {variant.precision} from {bundle.onnx_sha256[:12]}; {remedy}"
        )
        raise EngineError(msg)
    golden = check_golden(loaded.engine, bundle, precision=manifest.precision)
    golden.require(f"engine {variant.name!r}", remedy=remedy)
    placement = loaded.engine.placement()
    check_placement(
        placement, manifest.settings, target=wanted.name, allow_fallback=wanted.allow_fallback, name=variant.name
    )
    score: Score = Segmentation(split.labels, ignore=split.ignore) if split.masked else Classification()
    logits = evaluate(
        loaded.engine,
        split.items,
        functools.partial(_load_item, bundle=bundle),
        score=score,
        keep=kept_places(len(split.items), bundle.output_shape),
        on_progress=on_progress,
    )
    memory = None
    # It takes a process of its own, and what a device holds for it is not the process's.
    if "memory_mb" in wanted.budget and placement.asked.startswith("CPU"):
        path = engines / variant.name / manifest.engine_file
        memory = peak_memory_mb(manifest.runtime, path, manifest.settings, shape=bundle.input_shape)
    return _Subject(variant, bundle, loaded, golden, placement, memory, score, logits)


def kept_places(count: int, output_shape: tuple[int, ...]) -> list[int]:
    """Return the places of the images whose logits are kept, evenly spaced: all, as long as they take 64 MiB at most.

    Args:
        count: number of test images.
        output_shape: of one answer, float32.
    """
    most = max(1, LOGITS_BYTES // (4 * math.prod(output_shape)))
    places: list[int] = np.linspace(0, count - 1, min(count, most)).round().astype(int).tolist()
    return places


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


def _load_item(item: Item, *, bundle: Bundle) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Load a test image and its class or mask."""
    image = load_image(item.path, bundle.preprocess)
    _check_file("image", item.path, item.sha256)
    if item.mask is None:
        return image, np.array(item.label)
    mask = load_mask(item.mask, bundle.preprocess)
    _check_file("mask", item.mask, item.mask_sha256)
    return image, mask


def _check_file(what: str, path: Path, indexed: str) -> None:
    """Refuse a file that is not the one that was indexed: else two records could not be compared."""
    actual = sha256_file(path)
    if actual != indexed:
        msg = (
            f"test {what} {path}: sha256 {actual[:12]}, {indexed[:12]} in the index; "
            "restore it, or run `dvc repro prepare`"
        )
        raise MeasureError(msg)


def _time(
    subjects: Mapping[str, _Subject],
    split: Split,
    timing: Timing,
    *,
    on_progress: Progress,
) -> dict[str, list[int]]:
    """Time all working engines on the first test image; return nanoseconds by variant."""
    if not subjects:
        return {}
    least = f"at least {timing.queries} queries and {timing.seconds:g} s each"
    on_progress(f"latency: {', '.join(subjects)}, {least}")
    callables = {
        name: functools.partial(subject.loaded.engine.run, _load_item(split.items[0], bundle=subject.bundle)[0][None])
        for name, subject in subjects.items()
    }
    return measure_interleaved(
        callables,
        queries=timing.queries,
        seconds=timing.seconds,
        warmup_seconds=timing.warmup_seconds,
        seed=timing.seed,
        on_progress=on_progress,
    )


def _circumstances(before: Mapping[str, Any], *, wanted: Target, profile: str) -> dict[str, Any]:
    """Return what the record says of the device's state around the run, and whether the run is valid."""
    reasons = ["profile 'quick' is for development"] if profile == "quick" else []
    found = (busy_reason(before, cores=os.cpu_count() or 1), power_reason(before, wanted=wanted.power_mode))
    reasons += [reason for reason in found if reason]
    return {"state": {"before": before, "after": state()}, "valid": not reasons, "invalid_reasons": reasons}


def _header(wanted: Target, *, device: Mapping[str, Any], timing: Timing) -> dict[str, Any]:
    """Return what the record says of the run as a whole before any result."""
    return {
        "schema": SCHEMA,
        "target": wanted.name,
        "runtime": wanted.runtime,
        "runtime_version": device["runtime_version"],
        "device": dict(device),
        "profile": timing.profile,
        "scenario": "SingleStream",
        "statistics_engine": "slad",
        "minimum": {"queries": timing.queries, "seconds": timing.seconds},
    }


def _describe(subject: _Subject, samples: list[int]) -> dict[str, Any]:
    """Return one variant's part of the record."""
    manifest = subject.loaded.manifest
    return {
        "precision": manifest.precision,
        "engine_sha256": manifest.engine_sha256,
        "onnx_sha256": manifest.onnx_sha256,
        "engine_bytes": manifest.engine_bytes,
        "accuracy": subject.score.summary(),
        "latency_ms": summarise(samples),
        "queries": len(samples),
        "seconds": round(sum(samples) / 1e9, 4),
        "load_seconds": round(subject.loaded.load_seconds, 4),
        "golden": subject.golden.as_dict(),
        "engine_key": manifest.key,
        "placement": subject.placement.as_dict(),
        "memory_mb": subject.memory_mb,
    }
