"""The parity chain: what every transformation from the trained network to the engine changed, and who lost the points.

Torch is the network as it was trained, adapted is the same built anew from what was saved, merged has no adapters left.
That the first two agree was recorded on the validation split, which is all that training sees. Every hop after it is
computed here, from logits of the same test images: those that the device kept. What is not there is listed as not
measured. Where masks are learnt, an answer is that to a pixel, and accuracy is mean IoU.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.base import parity
from pipeline.parts.scores import Accuracy, MeanIoU
from pipeline.steps.report import documents, figures
from pipeline.steps.report.documents import Json, read_arrays, read_json, read_optional
from pipeline.steps.report.records import Target
from pipeline.steps.report.variants import Variant

Logits = Mapping[str, NDArray[Any]]
LEAST_LOSS_POINTS = 0.005  # less is printed as no loss
ADAPTED, MERGED = "adapted", "merged"


@dataclass(frozen=True, kw_only=True)
class Hop:
    """One transformation; None means not measured and `missing` says why.

    relative_error is max|y - y_ref| / max|y_ref|; cosine is the mean over images; accuracies are in percent, before and
    after, over `images` images of `split`; low and high are the 95 % interval of their difference in points, paired by
    image.
    """

    source: str
    result: str
    max_abs_error: float | None = None
    mean_abs_error: float | None = None
    relative_error: float | None = None
    cosine: float | None = None
    agreement_percent: float | None = None
    accuracy_from: float | None = None
    accuracy_to: float | None = None
    low: float | None = None
    high: float | None = None
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

    @property
    def interval(self) -> str:
        """Such as "-1.2 to 0.3"."""
        return figures.MISSING if self.low is None or self.high is None else figures.interval(self.low, self.high)


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
    """What the host made: logits of the same test images of every network by its name, and the stages' own checks.

    `tolerances` has the largest absolute error of a logit that a stage let pass, by the network it made.
    """

    saved: Hop
    bundles: Mapping[str, Json]
    logits: Logits
    tolerances: Mapping[str, float]
    known: dict[str, Hop] = field(default_factory=dict)  # hops that several chains share

    def variant_of(self, onnx_sha256: str | None) -> str | None:
        """The ONNX variant whose file has this hash."""
        return next((name for name, bundle in self.bundles.items() if _sha256(bundle) == onnx_sha256), None)

    def made(self) -> list[str]:
        """The variants that were made of another file that is there."""
        return [name for name, bundle in self.bundles.items() if self.variant_of(_parent(bundle)) is not None]

    def path_to(self, variant: str) -> list[Hop]:
        """Hops from torch to the ONNX `variant`, through the files it came from."""
        names: list[str] = []
        step: str | None = variant
        while step is not None and step not in names:
            names.insert(0, step)
            step = self.variant_of(_parent(self.bundles[step]))
        names = [ADAPTED, MERGED, *names]
        return [self.saved, *(self._hop(*ends) for ends in pairwise(names))]

    def _hop(self, source: str, result: str) -> Hop:
        if result not in self.known:
            hop = self.between(source, result, logits=self.logits.get(result), label=_label(result))
            tolerance = self.tolerances.get(result)
            if tolerance is not None and hop.max_abs_error is not None:
                hop = replace(hop, passed=hop.max_abs_error <= tolerance)
            self.known[result] = hop
        return self.known[result]

    def between(
        self, source: str, result: str, *, logits: NDArray[Any] | None, label: str, tolerance: float | None = None
    ) -> Hop:
        """The hop from the host's network `source` to `logits`, which `result` gives and the report calls `label`."""
        reference, targets = self.logits.get(source), self.logits.get("targets")
        absent = [f"logits of {name}" for name, found in ((source, reference), (result, logits)) if found is None]
        absent += ["targets"] if targets is None else []
        if reference is None or logits is None or targets is None:
            return Hop(source=_label(source), result=label, missing=f"no {figures.enumerate_words(absent, 'and no')}")
        return compare(reference, logits, targets=targets, ends=(_label(source), label), tolerance=tolerance)


def _label(name: str) -> str:
    return name if name in (ADAPTED, MERGED) else f"ONNX {name}"


def read_host(merged: Path, *, onnx: Path, reference_logits: Path | None) -> Host:
    """Reads records, bundles and logits under `merged` and `onnx`, and the reference logits where there are any."""
    folders = {path.parent.name: path.parent for path in sorted(onnx.glob("*/bundle.json"))}
    return Host(
        saved=_recorded(merged / "saved_parity.json", source="torch", result=ADAPTED),
        bundles={name: read_json(folder / "bundle.json") for name, folder in folders.items()},
        logits={**read_arrays(merged / "test_logits.npz"), **read_arrays(reference_logits)},
        tolerances=_tolerances({MERGED: merged, **folders}),
    )


def _tolerances(folders: Mapping[str, Path]) -> dict[str, float]:
    """What the stages allowed; a hop that may change answers has none."""
    found = {}
    for name, folder in folders.items():
        record = read_optional(folder / "parity.json") or {}
        if record.get("tolerance") is not None:
            largest = documents.field(record, "largest", float, source=folder / "parity.json")
            found[name] = max(1.0, largest) * documents.field(record, "tolerance", float, source=folder / "parity.json")
    return found


def assemble(target: Target, *, host: Host) -> tuple[Chain, ...]:
    """The chain of every measured variant of `target`."""
    logits = read_arrays(target.folder / "logits.npz")
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
    numbers = {
        key: documents.field(record, key, float, source=path)
        for key in (
            "max_abs_error", "mean_abs_error", "relative_error", "cosine", "argmax_agreement",
            "accuracy_from_percent", "accuracy_to_percent", "change_low_points", "change_high_points",
        )
    }  # fmt: skip
    return Hop(
        source=source,
        result=result,
        max_abs_error=numbers["max_abs_error"],
        mean_abs_error=numbers["mean_abs_error"],
        relative_error=numbers["relative_error"],
        cosine=numbers["cosine"],
        agreement_percent=100 * numbers["argmax_agreement"],
        accuracy_from=numbers["accuracy_from_percent"],
        accuracy_to=numbers["accuracy_to_percent"],
        low=numbers["change_low_points"],
        high=numbers["change_high_points"],
        images=documents.field(record, "samples", int, source=path),
        split="validation",
        passed=documents.field(record, "passed", bool, source=path),
    )


def _hops(target: Target, variant: Variant, *, host: Host, logits: Logits) -> tuple[Hop, ...]:
    result = f"engine {variant.name}"
    source = host.variant_of(variant.onnx_sha256)
    if source is None:
        reason = f"no bundle has the ONNX file {variant.onnx_sha256[:12]} that {target.name} compiled"
        return (host.saved, Hop(source="ONNX", result=result, missing=reason))
    name = f"{variant.name} on {target.name}"
    engine = host.between(
        source, name, logits=logits.get(variant.name), label=result, tolerance=variant.golden_tolerance
    )
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
        mean_abs_error=same.mean_abs_error,
        relative_error=same.relative_error if directed else None,
        cosine=same.cosine if directed else None,
        agreement_percent=100 * same.argmax_agreement,
        accuracy_from=same.accuracy_from_percent,
        accuracy_to=same.accuracy_to_percent,
        low=same.change_low_points,
        high=same.change_high_points,
        images=same.samples,
        split="test",
        passed=None if tolerance is None or not directed else same.relative_error <= tolerance,
    )


def _worst(hops: tuple[Hop, ...]) -> str:
    lost = [hop for hop in hops if hop.points is not None and hop.points < -LEAST_LOSS_POINTS]
    unmeasured = [hop.name for hop in hops if hop.points is None]
    note = f" ({figures.enumerate_words(unmeasured)} not measured)" if unmeasured else ""
    if not lost:
        return f"no {'measured ' if unmeasured else ''}hop lost accuracy on its images{note}"
    hop = min(lost, key=lambda each: each.points or 0.0)
    chance = ", so it may be chance" if (hop.high or 0.0) >= 0 else ""
    words = f"{figures.points(hop.points or 0.0)} (95 % interval of the change {hop.interval}{chance})"
    return f"{hop.name} lost the most: {words} on the {hop.split} split{note}"
