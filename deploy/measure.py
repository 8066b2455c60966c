"""Measure every engine of a target: accuracy and latency of the same loaded engine, all in one process."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from deploy.accuracy import accuracy_summary, evaluate
from deploy.build import SKIPPED, bundle_of
from deploy.bundle import Bundle
from deploy.data import Item, Split, load_split
from deploy.device import busy_reason, check_device, state
from deploy.document import SCHEMA, read_document
from deploy.engine import LoadedEngine, load_engine
from deploy.errors import BundleError, EngineError, MeasureError, TargetError
from deploy.files import sha256_file
from deploy.golden import GoldenCheck, check_golden
from deploy.latency import measure_interleaved, summarise
from deploy.preprocess import load_image
from deploy.record import write_record
from deploy.target import Target, Variant, read_target

PROFILES = ("standard", "quick")

Progress = Callable[[str], None]


@dataclass(frozen=True)
class _Subject:
    """One variant under measurement."""

    variant: Variant
    bundle: Bundle
    loaded: LoadedEngine
    golden: GoldenCheck
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
    queries: int,
    seconds: float,
    warmup_seconds: float,
    profile: str,
    seed: int,
    on_progress: Progress,
) -> dict[str, Any]:
    """Measure all variants of a target and write the record and its raw data.

    A variant that fails is recorded under `failed` and does not keep the others from being measured; hand the record
    to `check_record` when it is in its place.

    Args:
        output: existing folder; receives record.json, latency.csv, predictions.csv and logits.npz.
        target: the target's name.
        spec: the section `targets.<target>` of params.yaml.
        engines: what `build_target` filled.
        onnx_root: holds the bundles.
        data: the data folder; its whole test split is used.
        device: the fingerprint on file; must be this device's own.
        queries: minimum latency samples of each variant.
        seconds: minimum measured time of each variant.
        warmup_seconds: unrecorded time of each variant before.
        profile: "standard", or "quick" for development, which is never valid.
        seed: of the order of the blocks.
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
    _check_profile(profile, queries=queries)
    check_device(device, target=target, runtime=wanted.runtime)
    split = _test_split(data)
    skipped = _read_skipped(engines)
    before = state()
    subjects, failed = _prepare(
        wanted, split, engines=engines, onnx_root=onnx_root, device=device, skipped=skipped, on_progress=on_progress
    )
    if not subjects:  # nothing to record: the last good record stays
        _refuse_failed(target, failed)
    samples = _time(
        subjects,
        split,
        queries=queries,
        seconds=seconds,
        warmup_seconds=warmup_seconds,
        seed=seed,
        on_progress=on_progress,
    )
    reasons = _invalid_reasons(before, device=device, profile=profile)
    record = {
        **_header(wanted, device=device, profile=profile, queries=queries, seconds=seconds),
        "state": {"before": before, "after": state()},
        "valid": not reasons,
        "invalid_reasons": reasons,
        "variants": {name: _describe(subject, split, samples[name]) for name, subject in subjects.items()},
        "skipped": skipped,
        "failed": failed,
    }
    logits = {name: subject.logits for name, subject in subjects.items()}
    write_record(output, record, items=split.items, samples=samples, logits=logits)
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


def _check_profile(profile: str, *, queries: int) -> None:
    if profile not in PROFILES:
        msg = f"`measure.profile` should be one of {', '.join(PROFILES)}, got {profile!r}"
        raise TargetError(msg)
    if queries < 1:
        msg = f"`measure.queries` should be 1 or more, got {queries!r}"
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
            bundle = bundle_of(variant, target=wanted.name, onnx_root=onnx_root)
            _check_labels(bundle, split)
            loaded = load_engine(engines / variant.name, device=device, threads=wanted.threads)
            subjects[variant.name] = _examine(variant, bundle, loaded, split, on_progress=on_progress)
        except (EngineError, BundleError, TargetError) as error:
            failed[variant.name] = str(error)
            on_progress(f"{wanted.name}/{variant.name}: failed, {error}")
    return subjects, failed


def _examine(
    variant: Variant, bundle: Bundle, loaded: LoadedEngine, split: Split, *, on_progress: Progress
) -> _Subject:
    """Run the golden check and the whole test split on a loaded engine.

    Raises:
        EngineError: the engine was built from another model or in another precision, or fails the golden check.
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
    if not golden.passed:
        msg = (
            f"engine {variant.name!r}: relative error {golden.relative_error:.3g} on the golden inputs, "
            f"at most {golden.tolerance:g} allowed; {remedy}"
        )
        raise EngineError(msg)
    load = functools.partial(_load_item, bundle=bundle)
    logits = evaluate(loaded.engine, split.items, load, on_progress=on_progress)
    return _Subject(variant, bundle, loaded, golden, logits)


def _check_labels(bundle: Bundle, split: Split) -> None:
    if bundle.labels != split.labels:
        msg = (
            f"{bundle.folder}: its {len(bundle.labels)} labels are not the data's {len(split.labels)}: "
            f"{list(bundle.labels[:3])} and {list(split.labels[:3])} come first; run `dvc repro export quantize`"
        )
        raise BundleError(msg)


def _load_item(item: Item, *, bundle: Bundle) -> NDArray[np.float32]:
    """Load a test image, which must be the one that was indexed: else two records could not be compared."""
    image = load_image(item.path, bundle.preprocess)
    actual = sha256_file(item.path)
    if actual != item.sha256:
        msg = (
            f"test image {item.path}: sha256 {actual[:12]}, {item.sha256[:12]} in the index; "
            "restore it, or run `dvc repro prepare`"
        )
        raise MeasureError(msg)
    return image


def _time(
    subjects: Mapping[str, _Subject],
    split: Split,
    *,
    queries: int,
    seconds: float,
    warmup_seconds: float,
    seed: int,
    on_progress: Progress,
) -> dict[str, list[int]]:
    """Time all working engines on the first test image; return nanoseconds by variant."""
    if not subjects:
        return {}
    on_progress(f"latency: {', '.join(subjects)}, at least {queries} queries and {seconds:g} s each")
    callables = {
        name: functools.partial(subject.loaded.engine, _load_item(split.items[0], bundle=subject.bundle)[None])
        for name, subject in subjects.items()
    }
    return measure_interleaved(
        callables,
        queries=queries,
        seconds=seconds,
        warmup_seconds=warmup_seconds,
        seed=seed,
        on_progress=on_progress,
    )


def _invalid_reasons(before: Mapping[str, Any], *, device: Mapping[str, Any], profile: str) -> list[str]:
    reasons = ["profile 'quick' is for development"] if profile == "quick" else []
    busy = busy_reason(before, cores=device["cpu"]["cores"])
    return [*reasons, busy] if busy else reasons


def _header(wanted: Target, *, device: Mapping[str, Any], profile: str, queries: int, seconds: float) -> dict[str, Any]:
    """Return what the record says of the run as a whole before any result."""
    return {
        "schema": SCHEMA,
        "target": wanted.name,
        "runtime": wanted.runtime,
        "runtime_version": device["runtime_version"],
        "device": dict(device),
        "profile": profile,
        "scenario": "SingleStream",
        "statistics_engine": "slad",
        "minimum": {"queries": queries, "seconds": seconds},
    }


def _describe(subject: _Subject, split: Split, samples: list[int]) -> dict[str, Any]:
    """Return one variant's part of the record."""
    manifest = subject.loaded.manifest
    return {
        "precision": manifest.precision,
        "engine_sha256": manifest.engine_sha256,
        "onnx_sha256": manifest.onnx_sha256,
        "engine_bytes": manifest.engine_bytes,
        "accuracy": accuracy_summary(subject.logits, [item.label for item in split.items]),
        "latency_ms": summarise(samples),
        "queries": len(samples),
        "seconds": round(sum(samples) / 1e9, 4),
        "load_seconds": round(subject.loaded.load_seconds, 4),
        "golden": subject.golden.as_dict(),
    }
