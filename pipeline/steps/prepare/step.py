"""Prepare: turns a source of labelled images into a checked index with splits."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from pipeline.base.errors import DataError
from pipeline.parts.checks.look import DecodeImage, DecodeMask, look_at_image, look_at_mask
from pipeline.parts.checks.names import alike
from pipeline.parts.checks.survey import Survey
from pipeline.parts.index import Index, Items, write_index
from pipeline.parts.sources.listing import Listing
from pipeline.steps.prepare.copies import near_files, near_links, same_files, with_scenes
from pipeline.steps.prepare.gathered import Gathered, gather, gather_masks
from pipeline.steps.prepare.policy import Outcome, settle
from pipeline.steps.prepare.report import write_report, write_samples
from pipeline.steps.prepare.splits import draw, few, split


@dataclass(frozen=True, kw_only=True)
class Decoders:
    """How files become pixels: as on the device.

    Attributes:
        image: of an image.
        count_frames: number of pictures in an image file.
        mask: of a mask.
        broken: what all raise for a file that cannot be decoded.
    """

    image: DecodeImage
    count_frames: Callable[[Path], int]
    mask: DecodeMask
    broken: type[Exception]


@dataclass(frozen=True, kw_only=True)
class Draw:
    """How images are drawn.

    Attributes:
        validation_fraction: share of the images to validate on, where the source has no such split.
        test_fraction: the same of the images that nothing but the measurement reads.
        calibration_size: images of the train split that quantisation may look at.
        per_class: training images kept of each class, where it has more; None keeps all.
        split_seed: fixes the splits that are drawn.
        seed: fixes which images are kept, and the calibration images.
    """

    validation_fraction: float
    test_fraction: float
    calibration_size: int
    per_class: int | None
    split_seed: int
    seed: int


def prepare(
    output: Path,
    listing: Listing,
    *,
    source: str,
    decoders: Decoders,
    survey: Survey,
    policy: Mapping[str, str],
    near_similarity: float | None,
    ignore: int | None,
    draws: Draw,
) -> Index:
    """Checks every file, settles what is found, draws splits, and writes index, report and samples to `output`.

    Args:
        output: existing folder.
        listing: the images; a root below `output` is stored relative to it.
        source: name of the source, for the report.
        decoders: how files become pixels.
        survey: looks at files.
        policy: what to do about findings: "refuse", "drop" or "keep" by kind.
        near_similarity: correlation from which two images are taken for one scene; None does not look for such.
        ignore: value of a mask's pixels that have no class.
        draws: how images are drawn.

    Raises:
        DataError: findings that are refused, too few images, or nothing left of a class or split.
    """
    found, outcomes = _checked(listing, decoders=decoders, survey=survey, policy=policy, ignore=ignore)
    given = tuple(listing.parts)
    del listing  # not a million images twice; so below
    links = [] if near_similarity is None else near_links(found, decode=decoders.image, threshold=near_similarity)
    found = with_scenes(found, links)
    found, more = settle(found, [*same_files(found), *near_files(found, links)], policy)
    outcomes += more
    labels, root, sizes, pixels = found.labels, found.root, found.sizes, found.pixels
    splits = split(
        found,
        given=given,
        validation_fraction=draws.validation_fraction,
        test_fraction=draws.test_fraction,
        seed=draws.split_seed,
    )
    del found
    place = root.relative_to(output).as_posix() if root.is_relative_to(output) else str(root)
    index = Index(labels, place, _drawn(splits, draws), ignore)
    _refuse_gaps(index, outcomes)
    index = write_index(index, output)
    write_report(
        output,
        index,
        sizes=sizes,
        pixels=pixels,
        outcomes=outcomes,
        source=source,
        policy=policy,
        near_similarity=near_similarity,
    )
    write_samples(output / "samples", index.parts["train"], labels=labels, root=root, decode=decoders.image)
    return index


def _drawn(splits: dict[str, Items], draws: Draw) -> dict[str, Items]:
    """Returns the parts of the index."""
    train, others = splits["train"], [splits["validation"], splits["test"]]
    if draws.per_class is not None:
        train = few(train, draws.per_class, seed=draws.seed)
    calibration = draw(train, draws.calibration_size, apart_from=others, seed=draws.seed)
    return splits | {"train": train, "calibration": calibration}


def _checked(
    listing: Listing, *, decoders: Decoders, survey: Survey, policy: Mapping[str, str], ignore: int | None
) -> tuple[Gathered, list[Outcome]]:
    """Looks at every file, and settles what is wrong with single ones."""
    count = sum(len(items) for items in listing.parts.values())

    def paths(column: str) -> Iterator[Path]:
        return (listing.root / str(name) for items in listing.parts.values() for name in items.columns[column])

    look = partial(look_at_image, decode=decoders.image, count_frames=decoders.count_frames, broken=decoders.broken)
    found, findings = gather(listing, survey.look(paths("path"), look, count=count, title="images"))
    if found.items.masked:
        look = partial(look_at_mask, decode=decoders.mask, broken=decoders.broken)
        found, more = gather_masks(found, survey.look(paths("mask"), look, count=count, title="masks"), ignore=ignore)
        findings += more
    return settle(found, [*listing.findings, *alike(found.items.columns["path"]), *findings], policy)


def _refuse_gaps(index: Index, outcomes: Sequence[Outcome]) -> None:
    """Refuses an index with an empty part, or with nothing to train on in a class."""
    dropped = Counter(one.finding.kind for one in outcomes for _ in one.dropped)
    gone = "".join(f", {count} dropped as `{kind}`" for kind, count in sorted(dropped.items()))
    train = index.parts["train"]
    if not train.masked:
        counts = np.bincount(train.labels, minlength=len(index.labels))
        for name, count in zip(index.labels, counts.tolist(), strict=True):
            if not count:
                msg = f"no image of class {name!r} is left to train on{gone}; add images, or drop fewer"
                raise DataError(msg)
    for name, items in index.parts.items():
        if not len(items):
            msg = f"no image is left for {name}{gone}; add images, or drop fewer"
            raise DataError(msg)
