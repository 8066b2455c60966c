"""The parity chain: what every transformation from the torch model to the engine changed, and where accuracy went.

Host hops (torch, merged, ONNX) were measured by the steps that made them, on the validation split. The engine hop is
computed here from logits on the test split: engine against the ONNX file it was compiled from. What was not recorded is
listed as not measured. Where masks are learnt, an answer is that to a pixel, accuracy is mean IoU, and the engine hop
is over the images whose logits the device kept.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.base import parity
from pipeline.base.errors import DataError
from pipeline.parts.scores import Accuracy, MeanIoU
from pipeline.steps.report import figures
from pipeline.steps.report.records import REMEDY, Json, Target, Variant, field, read_json, read_optional

Logits = Mapping[str, NDArray[Any]]
LEAST_LOSS_POINTS = 0.005  # less is printed as no loss


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One transformation; None means not measured and `missing` says why.

    relative_error is max|y - y_ref| / max|y_ref|; cosine is the mean over images; accuracies are in percent, before and
    after, over `images` images of `split`.
    """

    source: str
    result: str
    max_abs_error: float | None = None
    relative_error: float | None = None
    cosine: float | None = None
    agreement_percent: float | None = None
    accuracy_from: float | None = None
    accuracy_to: float | None = None
    images: int | None = None
    split: str | None = None
    passed: bool | None = None
    missing: str | None = None

    @property
    def name(self) -> str:
        """Such as "merged -> ONNX fp32"."""
        return f"{self.source} -> {self.result}"

    @property
    def points(self) -> float | None:
        """Accuracy after less accuracy before: negative where the hop lost some."""
        if self.accuracy_from is None or self.accuracy_to is None:
            return None
        return self.accuracy_to - self.accuracy_from


@dataclass(frozen=True, kw_only=True)
class Chain:
    """All hops to one engine, in order, and the hop that lost the most accuracy in words."""

    target: str
    variant: str
    hops: tuple[Hop, ...]
    worst: str

    @property
    def engine(self) -> Hop:
        """The last hop: from the ONNX file to the engine."""
        return self.hops[-1]


@dataclass(frozen=True, kw_only=True)
class Host:
    """What the host recorded: one hop to the merged model, one to each ONNX variant, the bundles, the logits."""

    merged: Hop
    onnx: Mapping[str, Hop]
    bundles: Mapping[str, Json]
    logits: Logits

    def variant_of(self, onnx_sha256: str | None) -> str | None:
        """The ONNX variant whose file has this hash."""
        return next((name for name, bundle in self.bundles.items() if _sha256(bundle) == onnx_sha256), None)

    def path_to(self, variant: str) -> list[Hop]:
        """Hops from torch to the ONNX `variant`, through the files it came from."""
        names: list[str] = []
        step: str | None = variant
        while step is not None and step not in names:
            names.insert(0, step)
            step = self.variant_of(_parent(self.bundles[step]))
        return [self.merged, *(self.onnx[name] for name in names)]


def read_host(merged: Path, *, onnx: Path, reference_logits: Path | None) -> Host:
    """Reads the parity records and bundles under `merged` and `onnx`, and the reference logits where there are any."""
    folders = sorted(path.parent for path in onnx.glob("*/bundle.json"))
    bundles = {folder.name: read_json(folder / "bundle.json") for folder in folders}
    by_hash = {_sha256(bundle): name for name, bundle in bundles.items()}
    hops = {}
    for folder in folders:
        parent = by_hash.get(_parent(bundles[folder.name]))
        source = "merged" if parent is None else f"ONNX {parent}"
        hops[folder.name] = _recorded(folder / "parity.json", source=source, result=f"ONNX {folder.name}")
    return Host(
        merged=_recorded(merged / "parity.json", source="torch", result="merged"),
        onnx=hops,
        bundles=bundles,
        logits=read_logits(reference_logits),
    )


def read_logits(path: Path | None) -> Logits:
    """Reads every array of an .npz; an absent file has none.

    Raises:
        DataError: the file cannot be read.
    """
    if path is None or not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, ValueError, EOFError) as error:
        msg = f"Logits {str(path)!r} cannot be read ({error}): delete the file and {REMEDY}"
        raise DataError(msg) from error


def assemble(target: Target, *, host: Host) -> tuple[Chain, ...]:
    """The chain of every measured variant of `target`."""
    logits = read_logits(target.folder / "logits.npz")
    chains = []
    for variant in target.variants:
        hops = _hops(target, variant, host=host, logits=logits)
        chains.append(Chain(target=target.name, variant=variant.name, hops=hops, worst=_worst(hops)))
    return tuple(chains)


def _sha256(bundle: Json) -> str | None:
    name = bundle.get("onnx", "model.onnx")
    return cast("str | None", bundle.get("files", {}).get(name, {}).get("sha256"))


def _parent(bundle: Json) -> str | None:
    # A bundle without a parent must not match one whose hash is unknown.
    return bundle.get("lineage", {}).get("parent_sha256") or "no parent"


def _recorded(path: Path, *, source: str, result: str) -> Hop:
    record = read_optional(path)
    if record is None:
        return Hop(source=source, result=result, missing=f"no {path.name} in {path.parent.name}")
    number = {key: field(record, key, float, source=path) for key in ("max_abs_error", "relative_error", "cosine")}
    accuracy = {
        f"accuracy_{end}": field(record, f"accuracy_{end}_percent", float, source=path)
        for end in ("from", "to")
        if record.get(f"accuracy_{end}_percent") is not None
    }
    return Hop(
        source=source,
        result=result,
        max_abs_error=number["max_abs_error"],
        relative_error=number["relative_error"],
        cosine=number["cosine"],
        agreement_percent=100 * field(record, "argmax_agreement", float, source=path),
        accuracy_from=accuracy.get("accuracy_from"),
        accuracy_to=accuracy.get("accuracy_to"),
        images=record.get("count", record.get("samples")),
        split="validation",
        passed=field(record, "passed", bool, source=path),
    )


def _hops(target: Target, variant: Variant, *, host: Host, logits: Logits) -> tuple[Hop, ...]:
    result = f"engine {variant.name}"
    source = host.variant_of(variant.onnx_sha256)
    if source is None:
        reason = f"no bundle has the ONNX file {variant.onnx_sha256[:12]} that {target.name} compiled"
        return (host.merged, Hop(source="ONNX", result=result, missing=reason))
    targets = host.logits.get("targets")
    absent = [f"{name} in the reference logits" for name in (source, "targets") if name not in host.logits]
    if variant.name not in logits:
        absent.append(f"{variant.name} in logits.npz of {target.name}")
    if absent or targets is None:
        missing = f"no {figures.enumerate_words(absent, 'and no')}"
        engine = Hop(source=f"ONNX {source}", result=result, missing=missing)
    else:
        ends = f"ONNX {source}", result
        tolerance = variant.golden_tolerance
        engine = compare(host.logits[source], logits[variant.name], targets=targets, ends=ends, tolerance=tolerance)
    return (*host.path_to(source), engine)


def compare(
    reference: NDArray[Any],
    found: NDArray[Any],
    *,
    targets: NDArray[Any],
    ends: tuple[str, str],
    tolerance: float | None,
) -> Hop:
    """Computes one hop from logits.

    Args:
        reference: (images, classes, ...), before the hop.
        found: (images, classes, ...), after it.
        targets: (images, ...), whole numbers.
        ends: names of the two.
        tolerance: largest relative error that passes; None leaves it open.
    """
    hop = Hop(source=ends[0], result=ends[1])
    answers = (*found.shape[:1], *found.shape[2:])
    if reference.shape != found.shape or targets.shape != answers or found.ndim not in {2, 4} or not found.size:
        shapes = f"reference {reference.shape}, engine {found.shape}, targets {targets.shape}"
        return replace(hop, missing=f"shapes do not match: {shapes}")
    if not (np.isfinite(reference).all() and np.isfinite(found).all()):
        return replace(hop, passed=False, missing="the logits hold values that are not finite")
    score = Accuracy if found.ndim == 2 else partial(MeanIoU, [str(label) for label in range(found.shape[1])])
    same = parity.compare((ends[0], reference), (ends[1], found), targets=targets, score=score, tolerance=None)
    directed = bool(reference.any())  # logits that are all 0 have no size to compare with
    return replace(
        hop,
        max_abs_error=same.max_abs_error,
        relative_error=same.relative_error if directed else None,
        cosine=same.cosine if directed else None,
        agreement_percent=100 * same.argmax_agreement,
        accuracy_from=same.accuracy_from_percent,
        accuracy_to=same.accuracy_to_percent,
        images=same.samples,
        split="test",
        passed=None if tolerance is None or not directed else same.relative_error <= tolerance,
    )


def _worst(hops: tuple[Hop, ...]) -> str:
    lost = [hop for hop in hops if hop.points is not None and hop.points < -LEAST_LOSS_POINTS]
    unmeasured = [hop.name for hop in hops if hop.points is None]
    note = f" ({figures.enumerate_words(unmeasured)} not measured)" if unmeasured else ""
    if not lost:
        return f"no {'measured ' if unmeasured else ''}hop lost accuracy on its split{note}"
    hop = min(lost, key=lambda each: each.points or 0.0)
    return f"{hop.name} lost the most: {figures.points(hop.points or 0.0)} on the {hop.split} split{note}"
