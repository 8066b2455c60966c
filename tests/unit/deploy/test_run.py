import json
import os
import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from deploy.__main__ import main
from deploy.bundle import load_bundle
from deploy.errors import EngineError
from deploy.preprocess import load_image
from deploy.run import run
from deploy.sources import read_sources
from tests.interrupts import heard


@pytest.fixture
def release(pristine, built, tmp_path):
    """A bundle and its engine side by side, as a release lies on a device."""
    shutil.copytree(pristine / "onnx/fp32", tmp_path / "release/bundle")
    shutil.copytree(built["onnxruntime"] / "fp32", tmp_path / "release/engine")
    return tmp_path / "release"


@pytest.fixture
def images(pristine):
    return sorted(map(str, (pristine / "data/images").rglob("*.png")))


def test_the_engine_beside_the_bundle_is_taken(release, images, capsys, monkeypatch):
    assert main(["run", "--bundle", str(release / "bundle"), images[0]]) == 0
    line = capsys.readouterr().out
    for folder, bundle in ((release, "bundle"), (release / "bundle", ".")):
        monkeypatch.chdir(folder)
        assert main(["run", "--bundle", bundle, images[0]]) == 0
        assert capsys.readouterr().out == line
    (release / "engine").rename(release / "other")
    assert main(["run", "--bundle", ".", images[0]]) == 7
    assert capsys.readouterr().err == (
        "error: engine ../engine: no engine lies beside the bundle .; name its folder with `--engine`\n"
    )
    assert main(["run", "--bundle", ".", "--engine", "../other", images[0]]) == 0


def test_a_folder_gives_a_line_of_text_or_json_for_each_image(release, images, pristine, capsys):
    command = ["run", "--bundle", str(release / "bundle"), str(pristine / "data")]
    assert main(command) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == images
    assert main([*command, "--json"]) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [[a["name"], a["label"], f"{a['probability']:.4f}"] for a in answers] == lines


def test_broken_images_are_named_and_keep_no_other_from_its_answer(release, images, tmp_path, capsys):
    (tmp_path / "broken.png").write_bytes(b"no image")
    given = [images[0], str(tmp_path / "broken.png"), str(tmp_path / "none.png"), images[1]]
    assert main(["run", "--bundle", str(release / "bundle"), *given]) == 3
    shown = capsys.readouterr()
    assert [line.split("\t")[0] for line in shown.out.splitlines()] == images[:2]
    broken, missing, last = shown.err.splitlines()
    assert broken.startswith(f"error: image {tmp_path / 'broken.png'}: cannot be decoded (")
    assert broken.endswith("; replace or remove it")
    assert missing == f"error: image {tmp_path / 'none.png'}: no such file; restore it"
    assert last == "error: 2 of 4 images or cameras could not be read, each named above; the others were"


def test_one_broken_image_alone_is_one_line(release, capsys):
    assert main(["run", "--bundle", str(release / "bundle"), "none.png"]) == 3
    assert capsys.readouterr().err == "error: image none.png: no such file; restore it\n"


def test_a_camera_without_opencv_is_told_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert main(["run", "--bundle", str(tmp_path), "camera"]) == 8
    shown = capsys.readouterr().err
    assert shown.startswith("error: a camera needs OpenCV, which cannot be imported (")
    assert shown.count("\n") == 1


@pytest.mark.skipif(sys.platform != "linux", reason="names of files need not be UTF-8 on Linux alone")
@pytest.mark.parametrize("form", [[], ["--json"]])
def test_a_name_that_is_no_text_is_printed(release, images, tmp_path, capsys, form):
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff.png")
    shutil.copy(images[0], name)
    assert main(["run", "--bundle", str(release / "bundle"), *form, name]) == 0
    assert "udcff.png" in capsys.readouterr().out


def test_answers_that_are_not_finite_are_no_predictions(bundle, images):
    class Broken:
        def run(self, image, /):
            return np.full((1, 4), np.nan, np.float32)

    sources, model = read_sources(images[:1]), load_bundle(bundle)
    with pytest.raises(EngineError, match="the engine's answer is not finite; test it with"):
        run(sources, model, Broken(), masks=None, on_answer=pytest.fail, on_broken=pytest.fail)


@pytest.mark.slow
def test_ctrl_c_leaves_the_lines_so_far(release, images, tmp_path):
    os.mkfifo(tmp_path / "waiting.png")  # nobody writes: the program waits
    command = [sys.executable, "-m", "deploy", "run", "--bundle", release / "bundle", images[0]]
    with subprocess.Popen(
        [*command, tmp_path / "waiting.png", images[1]],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,  # noqa: PLW1509 - it calls nothing that another thread could hold
    ) as process:
        try:
            assert process.stdout.readline().startswith(f"{images[0]}\t")
            process.send_signal(signal.SIGINT)
            rest, errors = process.communicate(timeout=60)
        finally:
            process.kill()
    assert (process.returncode, rest, errors) == (130, "", "interrupted; no file is left half-written\n")


def test_the_probability_is_the_softmax_of_the_models_answer(release, images, onnx_reference, capsys):
    model = load_bundle(release / "bundle")
    logits = onnx_reference(model.onnx, load_image(images[2], model.preprocess)[None])[0].astype(np.float64)
    assert main(["run", "--bundle", str(release / "bundle"), "--json", images[2]]) == 0
    answer = json.loads(capsys.readouterr().out)
    odds = np.exp(logits) / np.exp(logits).sum()
    assert answer["label"] == model.labels[int(odds.argmax())]
    assert answer["probability"] == pytest.approx(odds.max(), rel=1e-5)
