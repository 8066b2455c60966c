"""Stage prepare: lists, checks and splits the images."""

import argparse
from pathlib import Path

from platformdirs import user_cache_path

from deploy.errors import ImageError
from deploy.files import replaced_folder
from deploy.preprocess import count_frames, decode_image, decode_mask
from pipeline.base.params import PrepareStage, read_params
from pipeline.base.sources import DigitsParams, FilesParams, MasksParams, NamedParams, PrepareParams
from pipeline.parts.checks.cache import Cache
from pipeline.parts.checks.survey import Survey
from pipeline.parts.sources.digits import write_digits
from pipeline.parts.sources.folders import list_classes, list_splits
from pipeline.parts.sources.listing import Listing, existing
from pipeline.parts.sources.lists import list_listed
from pipeline.parts.sources.masks import list_masks
from pipeline.parts.sources.named import write_named
from pipeline.steps.prepare.step import Decoders, Draw, prepare
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and prepares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--cache", type=Path, default=user_cache_path("slad-edge") / "checks.sqlite")
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, PrepareStage)
    settings = params.prepare
    # Files that are written anew each time would only fill it.
    lasting = None if isinstance(settings, DigitsParams | NamedParams) else args.cache
    with replaced_folder(args.output) as output, Cache(lasting) as cache:
        prepare(
            output,
            listing_of(settings, output / "images"),
            source=settings.source,
            decoders=Decoders(image=decode_image, count_frames=count_frames, mask=decode_mask, broken=ImageError),
            survey=Survey(cache, workers=settings.workers),
            policy=settings.policy,
            near_similarity=settings.near_similarity,
            ignore=settings.ignore if isinstance(settings, MasksParams) else None,
            draws=Draw(
                validation_fraction=settings.validation_fraction,
                test_fraction=settings.test_fraction,
                calibration_size=settings.calibration_size,
                per_class=settings.per_class,
                split_seed=settings.split_seed,
                seed=params.seed,
            ),
        )


def listing_of(settings: PrepareParams, written: Path) -> Listing:
    """Lists the images of the chosen source; those that are no files yet are written to the folder `written`."""
    path = None if settings.path is None else Path(settings.path)
    match settings:
        case MasksParams():
            root = existing(path, source="masks")
            return list_masks(root, images=settings.images, masks=settings.masks, classes=settings.classes)
        case NamedParams():
            splits = {str(ours): theirs for ours, theirs in settings.splits.items()}
            return write_named(written, name=settings.name or "", root=path, splits=splits, download=settings.download)
        case FilesParams():
            lists = {"folder": list_classes, "split_folders": list_splits, "list": list_listed}
            return lists[settings.source](existing(path, source=settings.source))
    write_digits(written)
    return list_classes(written)


if __name__ == "__main__":
    run(main)
