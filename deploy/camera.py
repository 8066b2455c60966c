"""Pictures from a camera, a video file or a stream, by OpenCV, which is imported when a camera is asked for."""

import importlib
import os
from collections.abc import Generator
from typing import Any

import numpy as np
from PIL import Image

from deploy.errors import ImageError, RuntimeMissingError

INSTALL = (
    "run `pip install 'slad-edge[camera]'`; on a Jetson take JetPack's own OpenCV, which alone opens the CSI camera, "
    "through `python3 -m venv --system-site-packages` and with `pip install 'numpy<2'`"
)
# OpenCV and its FFmpeg would print beside our one line; they may where a user has asked for it.
QUIET = {"OPENCV_LOG_LEVEL": "SILENT", "OPENCV_FFMPEG_LOGLEVEL": "-8"}
SEE_WHY = "`OPENCV_LOG_LEVEL=INFO` in the environment shows why"


def opencv() -> Any:
    """Import OpenCV.

    Raises:
        RuntimeMissingError: it is not installed, or does not go with the NumPy that is.
    """
    if not any(name in os.environ for name in QUIET):
        os.environ.update(QUIET)
    try:
        return importlib.import_module("cv2")
    except ImportError as cause:
        reason = (str(cause).splitlines() or [""])[0] or type(cause).__name__
        msg = f"a camera needs OpenCV, which cannot be imported ({reason}); {INSTALL}"
        raise RuntimeMissingError(msg) from cause


def camera_frames(place: int | str, *, name: str) -> Generator[Image.Image, None, None]:
    """Yield the frames of a camera until it ends, in RGB; closing the generator releases the camera.

    A live camera gives its newest frame each time, as far as its driver lets it: a GStreamer pipeline says so itself
    (`appsink drop=1 max-buffers=1`).

    Args:
        place: the camera's number, or what OpenCV opens by name: a device, a video file, a stream's address, or a
            GStreamer pipeline, known by its " ! ".
        name: of the camera, for messages.

    Raises:
        ImageError: it cannot be opened, gives no frame, is live and gives no more, or its frames are no pictures.
        RuntimeMissingError: there is no OpenCV.
    """
    cv2 = opencv()
    pipeline = isinstance(place, str) and " ! " in place
    capture = cv2.VideoCapture(place, cv2.CAP_GSTREAMER if pipeline else cv2.CAP_ANY)
    count = 0
    try:
        if not capture.isOpened():
            raise ImageError(_unopened(place, name, pipeline=pipeline))
        # Cameras and streams have no number of frames; nor have some files. Path.is_file raises for long pipelines.
        file = isinstance(place, str) and os.path.isfile(place)  # noqa: PTH113
        live = not file and not capture.get(cv2.CAP_PROP_FRAME_COUNT) > 0
        if live and not pipeline:  # some releases restart a pipeline for it
            capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
        while True:
            there, pixels = capture.read()
            if not there:
                break
            yield _picture(pixels, name)
            count += 1
    except cv2.error as cause:
        msg = f"{name}: OpenCV failed after {count} frames ({str(cause).splitlines()[0]}); {SEE_WHY}"
        raise ImageError(msg) from cause
    finally:
        capture.release()
    if live:
        msg = f"{name}: the camera stopped answering after {count} frames; check its connection; {SEE_WHY}"
        raise ImageError(msg)
    if not count:
        msg = f"{name}: not one frame could be read; check that the video plays; {SEE_WHY}"
        raise ImageError(msg)


def _unopened(place: int | str, name: str, *, pipeline: bool) -> str:
    if pipeline:
        remedy = "try it with `gst-launch-1.0`; it needs an OpenCV with GStreamer, such as JetPack's"
    elif isinstance(place, int):
        remedy = f"check that there is a /dev/video{place}, that no other program holds it and that you may read it"
    elif "://" not in place and not os.path.exists(place):  # noqa: PTH110 - Path.exists raises for long texts
        remedy = "there is no such file; correct its name"
    else:
        remedy = "check that it is a video or a stream that answers"
    return f"{name}: cannot be opened; {remedy}; {SEE_WHY}"


def _picture(pixels: Any, name: str) -> Image.Image:
    """Turn OpenCV's array, of shape (H, W, 3) in BGR or (H, W) in grey, into an image in RGB."""
    if pixels.dtype != np.uint8 or not (pixels.ndim == 2 or (pixels.ndim == 3 and pixels.shape[2] == 3)):
        msg = f"{name}: its frames are {pixels.dtype} of shape {pixels.shape}; have it give BGR or grey of 8 bits"
        raise ImageError(msg)
    if pixels.ndim == 2:
        return Image.fromarray(pixels).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(pixels[..., ::-1]))
