import os
import sys
from pathlib import Path

import pytest
from PIL import Image

from deploy import sources as module
from deploy.errors import ImageError, RuntimeMissingError, TargetError
from deploy.sources import Camera, ImageFile, read_sources


@pytest.fixture
def with_opencv(monkeypatch):
    monkeypatch.setattr(module, "opencv", lambda: None)


def save(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 4)).save(path, format="PNG")
    return path


def test_a_folder_is_all_images_below_it_sorted(tmp_path):
    for name in ("b.JPG", "a/z.png", "a/b/c.tiff", ".hidden.png", ".cache/x.png", "notes.txt", "noext"):
        save(tmp_path / "images" / name)
    save(tmp_path / "elsewhere/linked.webp")
    (tmp_path / "images/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "images/a/loop").symlink_to(tmp_path / "images")
    found = read_sources([str(tmp_path / "images")])
    names = ["a/b/c.tiff", "a/z.png", "b.JPG", "more/linked.webp"]
    assert [source.path for source in found] == [tmp_path / "images" / name for name in names]
    assert [source.mask.as_posix() for source in found] == ["a/b/c.png", "a/z.png", "b.png", "more/linked.png"]


def test_a_folder_without_images_is_named(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ImageError, match=r"^folder .*: no image in it or below; images end with .*\.jpg.*\.webp$"):
        read_sources([str(tmp_path)])


def test_a_folder_that_cannot_be_listed_is_an_error(tmp_path, monkeypatch):
    def refuse(path):
        raise PermissionError(13, "Permission denied", path)

    save(tmp_path / "a.png")
    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(PermissionError, match=str(tmp_path)):
        read_sources([str(tmp_path)])


@pytest.mark.usefixtures("with_opencv")
def test_cameras_by_number_and_by_text_and_a_file_of_that_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save(tmp_path / "camera")
    pipeline = "videotestsrc ! video/x-raw,format=BGR ! appsink drop=1"
    found = read_sources(["camera", "camera:1", "camera:a:b.mp4", f"camera:{pipeline}", "./camera", "cameras.png"])
    assert [source.place for source in found[:4]] == [0, 1, "a:b.mp4", pipeline]
    assert [source.name for source in found[:3]] == ["camera:0", "camera:1", "camera:a:b.mp4"]
    assert found[4:] == [
        ImageFile(Path("camera"), Path("camera.png")),
        ImageFile(Path("cameras.png"), Path("cameras.png")),
    ]


@pytest.mark.usefixtures("with_opencv")
@pytest.mark.parametrize(
    ("given", "frames", "words"),
    [
        (["camera:"], None, "no camera is named; write `camera:0`"),
        (["camera: "], None, "no camera is named"),
        (["camera"], 0, "`--frames` 0: should be 1 or more"),
        (["x.png"], 3, "`--frames` 3: has no effect without a camera"),
    ],
)
def test_what_makes_no_sense_is_refused(given, frames, words):
    with pytest.raises(TargetError, match=words):
        read_sources(given, frames=frames)


def test_masks_among_the_images_are_refused(tmp_path):
    save(tmp_path / "a.png")
    for masks in (tmp_path, tmp_path / "masks"):
        with pytest.raises(TargetError, match="lies in the folder of images"):
            read_sources([str(tmp_path)], masks=masks)
    assert len(read_sources([str(tmp_path)], masks=tmp_path.with_name("masks"))) == 1


def test_a_camera_without_opencv_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(RuntimeMissingError, match=r"needs OpenCV.*`pip install 'slad-edge\[camera\]'`; on a Jetson"):
        read_sources(["x.png", "camera"])
    assert read_sources(["x.png"])


def test_a_pipeline_of_several_lines_has_a_name_of_one():
    assert Camera("a !\n  b\t! c", None).name == "camera:a ! b ! c"


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("rtsp://me:se@cret@10.0.0.9/live", "camera:rtsp://10.0.0.9/live"),
        ("rtsp://me:se/cret@cam/1", "camera:rtsp://cam/1"),
        ("http://cam/snap?password=secret&size=2", "camera:http://cam/snap?password=&size=2"),
        ("rtspsrc user-id=me user-pw=secret ! appsink", "camera:rtspsrc user-id=me user-pw= ! appsink"),
    ],
)
def test_a_password_is_in_no_name(place, name):
    camera = Camera(place, None)
    assert camera.name == name
    assert "secret" not in str(camera.mask)
    assert "se@cret" not in str(camera.mask)


def test_as_many_frames_as_asked_and_the_camera_is_released(monkeypatch):
    released = []

    def endless(place, *, name):
        try:
            while True:
                yield Image.new("RGB", (2, 2))
        finally:
            released.append((place, name))

    monkeypatch.setattr(module, "camera_frames", endless)
    pictures = list(Camera(7, 3).pictures())
    assert [picture.name for picture in pictures] == ["camera:7#0", "camera:7#1", "camera:7#2"]
    assert [picture.mask.as_posix() for picture in pictures] == [f"camera-7/00000{number}.png" for number in range(3)]
    assert released == [(7, "camera:7")]
    unended = Camera("x", None).pictures()
    next(unended)
    unended.close()
    assert released[1:] == [("x", "camera:x")]
