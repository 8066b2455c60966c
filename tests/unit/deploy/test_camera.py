"""Cameras: real video files through OpenCV, and a stand-in for what no file does."""

import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from deploy import camera as module
from deploy.camera import camera_frames
from deploy.engine import open_engine
from deploy.errors import ImageError
from deploy.run import run
from deploy.sources import read_sources

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 24, 32, 3), dtype=np.uint8)  # RGB


@pytest.fixture
def video(tmp_path):
    """A video of three frames whose pixels come back as they were."""
    cv2 = pytest.importorskip("cv2", reason="OpenCV is not installed")
    path = tmp_path / "noise.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"FFV1"), 10, (32, 24))
    assert writer.isOpened()
    for frame in PIXELS:
        writer.write(np.ascontiguousarray(frame[..., ::-1]))
    writer.release()
    return path


def test_a_video_gives_its_frames_in_rgb_and_ends(video):
    frames = list(camera_frames(str(video), name="v"))
    assert [frame.mode for frame in frames] == ["RGB"] * 3
    np.testing.assert_array_equal(np.stack([np.asarray(frame) for frame in frames]), PIXELS)


def test_a_frame_and_its_picture_in_a_file_give_the_same_logits(video, bundle, built, tmp_path):
    Image.fromarray(PIXELS[1]).save(tmp_path / "frame.png")
    model, opened = open_engine(bundle, built["onnxruntime"] / "fp32")
    logits = []

    class Listening:
        def run(self, image, /):
            logits.append(opened.engine.run(image))
            return logits[-1]

    answers = []
    sources = read_sources([f"camera:{video}", str(tmp_path / "frame.png")])
    run(sources, model, Listening(), masks=None, on_answer=answers.append, on_broken=pytest.fail)
    np.testing.assert_array_equal(logits[1], logits[3])
    assert not np.array_equal(logits[0], logits[3])
    assert [answer.name for answer in answers[:2]] == [f"camera:{video}#0", f"camera:{video}#1"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("99", "check that there is a /dev/video99"),
        ("none.mp4", "there is no such file"),
        ("broken.mp4", "check that it is a video"),
        ("videotestsrc ! nothing ! appsink", "needs an OpenCV with GStreamer"),
    ],
)
def test_a_camera_that_cannot_be_opened_is_one_line(plant, built, tmp_path, place, words):
    pytest.importorskip("cv2", reason="OpenCV is not installed")
    (tmp_path / "broken.mp4").write_bytes(b"x" * 1000)
    engine = ["--bundle", plant.onnx_root / "fp32", "--engine", built["onnxruntime"] / "fp32"]
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "run", *engine, f"camera:{place}"],
        cwd=tmp_path,
        env={name: value for name, value in os.environ.items() if not name.startswith("OPENCV_")}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.startswith(f"error: camera:{place}: cannot be opened; ")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


class StandIn:
    """What is asked of OpenCV, with a camera that gives the frames it is made with."""

    CAP_ANY, CAP_GSTREAMER, CAP_PROP_FRAME_COUNT, CAP_PROP_BUFFERSIZE = 0, 1800, 7, 38

    class error(Exception):  # noqa: N801, N818 - OpenCV's name
        pass

    def __init__(self, frames, *, count=-1.0) -> None:
        self.frames, self.count, self.calls = iter(frames), count, []

    def VideoCapture(self, place, backend):  # noqa: N802 - OpenCV's name
        self.calls.append(("open", place, backend))
        return SimpleNamespace(
            isOpened=lambda: True,
            get=lambda key: self.count,
            set=lambda key, value: self.calls.append(("set", key, value)),
            read=self.read,
            release=lambda: self.calls.append(("release",)),
        )

    def read(self):
        frame = next(self.frames, None)
        if isinstance(frame, Exception):
            raise frame
        return frame is not None, frame


GREEN = np.full((4, 6, 3), (0, 255, 0), np.uint8)


def taken(monkeypatch, stand_in, place=0):
    """The frames, and the error that ended them."""
    monkeypatch.setattr(module, "opencv", lambda: stand_in)
    frames = []
    try:
        frames.extend(camera_frames(place, name="camera"))
    except ImageError as error:
        return frames, str(error)
    return frames, None


def test_a_live_camera_that_stops_answering_is_an_error_and_gives_its_newest_frame(monkeypatch):
    stand_in = StandIn([GREEN, GREEN])
    frames = []
    monkeypatch.setattr(module, "opencv", lambda: stand_in)
    with pytest.raises(ImageError, match="the camera stopped answering after 2 frames; check its connection"):
        frames.extend(camera_frames(0, name="camera"))
    assert stand_in.calls == [("open", 0, 0), ("set", 38, 1), ("release",)]


def test_a_pipeline_goes_to_gstreamer_and_is_not_started_twice(monkeypatch):
    stand_in = StandIn([GREEN])
    pipeline = "nvarguscamerasrc ! nvvidconv ! appsink drop=1 max-buffers=1" + " " * 300
    _, error = taken(monkeypatch, stand_in, pipeline)
    assert "stopped answering after 1 frames" in error
    assert stand_in.calls == [("open", pipeline, 1800), ("release",)]


@pytest.mark.parametrize(("count", "known"), [(5.0, False), (-1.0, True)])
def test_what_has_a_number_of_frames_or_is_a_file_ends_without_an_error(monkeypatch, tmp_path, count, known):
    (tmp_path / "raw.h264").write_bytes(b"x")
    place = str(tmp_path / "raw.h264") if known else "https://example.org/video.mp4"
    frames, error = taken(monkeypatch, StandIn([GREEN], count=count), place)
    assert (len(frames), error) == (1, None)


def test_a_video_without_a_frame_is_an_error(monkeypatch):
    _, error = taken(monkeypatch, StandIn([], count=5.0), "v.mp4")
    assert "not one frame could be read" in error


def test_grey_frames_are_pictures_and_other_kinds_are_not(monkeypatch):
    frames, _ = taken(monkeypatch, StandIn([np.full((4, 6), 9, np.uint8)], count=1.0), "v.mp4")
    assert (frames[0].mode, frames[0].size, frames[0].getpixel((0, 0))) == ("RGB", (6, 4), (9, 9, 9))
    for pixels in (np.zeros((4, 6), np.uint16), np.zeros((4, 6, 2), np.uint8)):
        stand_in = StandIn([pixels])
        frames, error = taken(monkeypatch, stand_in)
        assert f"its frames are {pixels.dtype} of shape {pixels.shape}" in error
        assert stand_in.calls[-1] == ("release",)


def test_an_error_of_opencv_is_one_line_and_the_camera_is_released(monkeypatch):
    stand_in = StandIn([GREEN, StandIn.error("OpenCV(5.0) failed\nin read\n")])
    frames, error = taken(monkeypatch, stand_in)
    assert len(frames) == 1
    assert error.startswith("camera: OpenCV failed after 1 frames (OpenCV(5.0) failed); ")
    assert stand_in.calls[-1] == ("release",)


def test_opencv_is_quiet_unless_it_is_asked(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", StandIn([]))
    for name in module.QUIET:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENCV_LOG_LEVEL", "INFO")
    module.opencv()
    assert "OPENCV_FFMPEG_LOGLEVEL" not in os.environ
    monkeypatch.delenv("OPENCV_LOG_LEVEL")
    monkeypatch.setattr(module.os, "environ", dict(os.environ))
    module.opencv()
    assert module.os.environ.items() >= module.QUIET.items()
