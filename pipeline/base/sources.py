"""The section `prepare` of `params.yaml`: each source of images has its own keys, and refuses those of others."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from pipeline.base.sections import Count, Section, Seed, Share

Strict = Literal["refuse", "drop"]
"""What is done about files that cannot be used."""
Lenient = Literal["refuse", "drop", "keep"]
"""What is done about files that could be used."""

SOURCES = ("digits", "folder", "split_folders", "list", "named", "masks")


def _given(path: Any) -> Any:
    if path is None:
        msg = "`prepare.path` is not set; give the folder that holds your images, or the list that names them"
        raise ValueError(msg)
    return path


def _absent(path: Any) -> Any:
    if path is not None:
        msg = f"`prepare.path` {path!r} has no effect on the built-in digits; add data=folder or another source"
        raise ValueError(msg)
    return path


Place = Annotated[str, BeforeValidator(_given)]
"""A folder or file of the user's."""


class PrepareBase(Section):
    """How the files of any source are checked and drawn."""

    watch: str | None
    validation_fraction: Share
    test_fraction: Share
    calibration_size: Count
    per_class: Count | None
    split_seed: Seed
    workers: Annotated[int, Field(ge=0)]
    broken: Strict
    animated: Lenient
    unpaired: Strict
    names: Literal["refuse", "keep"]
    copies: Lenient
    near_copies: Lenient
    near_similarity: Share | None

    @model_validator(mode="after")
    def _leaves_images_to_train_on(self) -> Self:
        if self.validation_fraction + self.test_fraction >= 1:
            msg = (
                f"`prepare.validation_fraction` {self.validation_fraction} and `prepare.test_fraction` "
                f"{self.test_fraction} leave nothing to train on; lower them"
            )
            raise ValueError(msg)
        return self

    @property
    def policy(self) -> dict[str, str]:
        """What is done about each kind of finding."""
        kinds = ("broken", "animated", "unpaired", "mask", "names", "copies", "near_copies")
        return {kind: getattr(self, kind) for kind in kinds if hasattr(self, kind)}


class DigitsParams(PrepareBase):
    """The built-in digits."""

    source: Literal["digits"]
    path: Annotated[None, BeforeValidator(_absent)]


class FilesParams(PrepareBase):
    """Files of one's own, labelled by their folders or by a list."""

    source: Literal["folder", "split_folders", "list"]
    path: Place


class NamedParams(PrepareBase):
    """What timm's `create_dataset` knows by name."""

    source: Literal["named"]
    name: str | None
    path: str | None
    download: bool
    splits: dict[Literal["train", "validation", "test"], str]

    @model_validator(mode="after")
    def _is_complete(self) -> Self:
        if self.name is None:
            msg = '`prepare.name` is not set; give a name that timm\'s create_dataset knows, such as "hfds/user/name"'
            raise ValueError(msg)
        if not self.name and self.path is None:
            msg = "`prepare.name` is empty and `prepare.path` is not set; give the path of the tar file or folder"
            raise ValueError(msg)
        if "train" not in self.splits:
            msg = f"`prepare.splits` names {', '.join(self.splits) or 'nothing'}; it must say what is trained on"
            raise ValueError(msg)
        return self


class MasksParams(PrepareBase):
    """Images with masks."""

    source: Literal["masks"]
    path: Place
    images: str
    masks: str
    classes: tuple[str, ...] | None
    ignore: Annotated[int, Field(ge=0, le=255)] | None
    mask: Strict


PrepareParams = Annotated[DigitsParams | FilesParams | NamedParams | MasksParams, Field(discriminator="source")]
