"""What `run` looks at: image files, folders of them, and cameras."""

import itertools
import os
import re
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from deploy.camera import camera_frames, opencv
from deploy.errors import ImageError, TargetError
from deploy.preprocess import FORMATS, decode_image

CAMERA = "camera"
# A stream's address or a pipeline may hold one, which is nobody else's to read.
PASSWORD = re.compile(r"(?<=://)\S*@|(?<=pw=)[^\s&]+|(?<=pass=)[^\s&]+|(?<=password=)[^\s&]+", re.IGNORECASE)


@dataclass(frozen=True)
class Picture:
    """One decoded image.

    Attributes:
        name: path of its file, or camera and number of the frame, "camera:0#17"; the first one is 0.
        image: upright, in RGB.
        mask: where its mask goes, below the folder of masks.
    """

    name: str
    image: Image.Image
    mask: Path


@dataclass(frozen=True)
class ImageFile:
    """One image file, and where its mask goes, below the folder of masks."""

    path: Path
    mask: Path

    def pictures(self) -> Generator[Picture, None, None]:
        """Decode the image.

        Raises:
            ImageError: it is missing or cannot be decoded.
        """
        yield Picture(str(self.path), decode_image(self.path), self.mask)


@dataclass(frozen=True)
class Camera:
    """One camera.

    Attributes:
        place: its number, or what OpenCV opens by name.
        most: frames to take; None takes all there are.
    """

    place: int | str
    most: int | None

    @property
    def name(self) -> str:
        """As it was given, in one line and without a password."""
        return PASSWORD.sub("", " ".join(f"{CAMERA}:{self.place}".split()))

    @property
    def mask(self) -> Path:
        """Folder of its masks, below the folder of masks."""
        return Path(re.sub(r"[^A-Za-z0-9]+", "-", self.name).strip("-")[:64])

    def pictures(self) -> Generator[Picture, None, None]:
        """Take the frames one after another; closing the generator releases the camera.

        Raises:
            ImageError: as `camera_frames`.
            RuntimeMissingError: there is no OpenCV.
        """
        with closing(camera_frames(self.place, name=self.name)) as frames:
            for number, image in enumerate(itertools.islice(frames, self.most)):
                yield Picture(f"{self.name}#{number}", image, self.mask / f"{number:06}.png")


def read_sources(
    given: Sequence[str], *, frames: int | None = None, masks: Path | None = None
) -> list[ImageFile | Camera]:
    """Find what the arguments name, decoding nothing; a file that is not there is found when its turn comes.

    Args:
        given: paths of images and folders, `camera`, `camera:<number>` and `camera:<text>`.
        frames: to take of each camera; None takes all there are.
        masks: folder that masks go to.

    Raises:
        TargetError: an argument names no camera, `frames` is wrong, or `masks` lies in a folder of images.
        ImageError: a folder holds no image.
        RuntimeMissingError: a camera is asked for and there is no OpenCV.
    """
    found: list[ImageFile | Camera] = []
    for text in given:
        kind, colon, place = text.partition(":")
        if kind == CAMERA:
            found.append(_camera(place if colon else "0", frames))
        elif Path(text).is_dir():
            if masks is not None and masks.resolve().is_relative_to(Path(text).resolve()):
                msg = f"`--masks` {str(masks)!r}: lies in the folder of images {text}; name one outside of it"
                raise TargetError(msg)
            found += _images(Path(text))
        else:
            found.append(ImageFile(Path(text), Path(f"{Path(text).stem}.png")))
    cameras = any(isinstance(source, Camera) for source in found)
    if frames is not None and (frames < 1 or not cameras):
        what = "should be 1 or more" if cameras else "has no effect without a camera; leave it out"
        msg = f"`--frames` {frames}: {what}"
        raise TargetError(msg)
    if cameras:
        opencv()
    return found


def _camera(place: str, frames: int | None) -> Camera:
    if not place.strip():
        msg = "source 'camera:': no camera is named; write `camera:0`, or `camera:` and a video, stream or pipeline"
        raise TargetError(msg)
    return Camera(int(place) if re.fullmatch(r"[0-9]{1,6}", place) else place, frames)


def _images(folder: Path) -> list[ImageFile | Camera]:
    """Return the image files below a folder, sorted by path; links are followed, hidden files and folders are not."""
    known = {suffix for suffix, kind in Image.registered_extensions().items() if kind in FORMATS}
    paths = []
    seen: set[Path] = set()
    for place, folders, names in os.walk(folder, onerror=_fail, followlinks=True):
        where = Path(place)
        seen.add(where.resolve())
        folders[:] = sorted(name for name in folders if name[0] != "." and (where / name).resolve() not in seen)
        paths += [where / name for name in names if name[0] != "." and Path(name).suffix.lower() in known]
    if not paths:
        msg = f"folder {folder}: no image in it or below; images end with {', '.join(sorted(known))}"
        raise ImageError(msg)
    return [ImageFile(path, path.relative_to(folder).with_suffix(".png")) for path in sorted(paths)]


def _fail(error: OSError) -> None:
    """Let no folder be left out without a word."""
    raise error
