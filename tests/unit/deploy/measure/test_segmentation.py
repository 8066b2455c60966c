"""Masks on the device: a model that gives every pixel a class, on both runtimes."""

import hashlib
import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploy.__main__ import main
from deploy.build import build_target
from deploy.bundle import load_bundle, load_golden
from deploy.conditions import cpu as cpu_module
from deploy.data import load_split
from deploy.device import fingerprint
from deploy.errors import BundleError, MeasureError
from deploy.measure.accuracy import Segmentation
from deploy.measure.plan import Plan
from deploy.measure.step import measure_target
from deploy.preprocess import OUTSIDE, load_mask, unfit_mask
from deploy.target import read_target
from tests import tiny
from tests.unit.deploy.conftest import LABELS, listing, reference, write_split

HEIGHT, WIDTH, IGNORE = 16, 24, 9
PREPROCESS = {
    "resize": HEIGHT,
    "resize_mode": "squash",
    "crop": [HEIGHT, WIDTH],
    "interpolation": "bilinear",
    "mean": [0.5, 0.5, 0.5],
    "std": [0.5, 0.5, 0.5],
    "color": "RGB",
}
QUICK = Plan(profile="quick", scenarios=(), queries=16, seconds=0.0, attempts=1, seed=0)


def save_segmenter(folder):
    """A bundle whose model looks at 3 x 3 pixels to tell one of four classes."""
    folder.mkdir(parents=True)
    kernel = np.random.default_rng(0).normal(size=(len(LABELS), 3, 3, 3)).astype(np.float32)
    node = helper.make_node("Conv", ["image", "kernel"], ["logits"], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    shapes = {"image": [1, 3, HEIGHT, WIDTH], "logits": [1, len(LABELS), HEIGHT, WIDTH]}
    values = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()}
    graph = helper.make_graph(
        [node], "segmenter", [values["image"]], [values["logits"]], [numpy_helper.from_array(kernel, "kernel")]
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10), folder / "model.onnx"
    )
    inputs = np.random.default_rng(1).normal(size=(3, 3, HEIGHT, WIDTH)).astype(np.float32)
    np.savez(folder / "golden.npz", inputs=inputs, outputs=reference(folder / "model.onnx", inputs))
    content = {
        "schema": 1,
        "name": "segmenter",
        "variant": "fp32",
        "precision": "fp32",
        "task": "segmentation",
        "input": {"name": "image", "shape": shapes["image"], "dtype": "float32", "layout": "NCHW"},
        "output": {"name": "logits", "shape": shapes["logits"], "dtype": "float32"},
        "preprocess": PREPROCESS,
        "labels": LABELS,
        "onnx": "model.onnx",
        "golden": {"file": "golden.npz", "count": 3, "tolerance": {"fp32": 0.001}},
        "files": listing(folder, "model.onnx", "golden.npz"),
        "lineage": {},
    }
    (folder / "bundle.json").write_text(json.dumps(content))


def save_pairs(folder):
    generator = np.random.default_rng(2)
    entries = []
    for number in range(5):
        entry = {"path": f"images/{number}.png", "label": 0, "sha256": "", "mask": f"masks/{number}.png"}
        pixels = generator.integers(0, 256, (20, 30, 3), dtype=np.uint8)
        mask = generator.choice([0, 1, 2, IGNORE], (20, 30)).astype(np.uint8)
        for key, array in (("path", pixels), ("mask", mask)):
            file = folder / "images" / entry[key]
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(file)
            entry["sha256" if key == "path" else "mask_sha256"] = hashlib.sha256(file.read_bytes()).hexdigest()
        entries.append(entry)
    write_split(folder, "test", entries)
    index = json.loads((folder / "index.json").read_text())
    (folder / "index.json").write_text(json.dumps(index | {"ignore": IGNORE}))


@pytest.fixture(params=["onnxruntime", "openvino"])
def masked(request, tmp_path, monkeypatch):
    """Folders onnx, data, engines and measured, and the options that measure them."""
    monkeypatch.setattr(cpu_module.os, "getloadavg", lambda: (0.5, 0.5, 0.5))
    save_segmenter(tmp_path / "onnx/fp32")
    save_pairs(tmp_path / "data")
    spec = {"runtime": request.param, "threads": 1, "variants": {"fp32": {"onnx": "fp32", "precision": "fp32"}}}
    device = fingerprint(read_target("here", spec))
    common = {"target": "here", "spec": spec, "onnx_root": tmp_path / "onnx", "device": device, "on_progress": print}
    for name in ("engines", "measured"):
        (tmp_path / name).mkdir()
    build_target(tmp_path / "engines", **common)
    options = {**common, "engines": tmp_path / "engines", "data": tmp_path / "data", "plan": QUICK}
    options["journal"] = tmp_path / "journal"
    return tmp_path, options


@pytest.mark.slow
def test_the_record_follows_from_the_answers(masked):
    root, options = masked
    record = measure_target(root / "measured", **options)["variants"]["fp32"]
    assert record["golden"]["argmax_agreement"] == 1
    bundle, split = load_bundle(root / "onnx/fp32"), load_split(root / "data", "test")
    assert (split.masked, split.ignore) == (True, IGNORE)
    with np.load(root / "measured/logits.npz") as stored:
        logits = stored["fp32"]
    assert logits.shape == (5, len(LABELS), HEIGHT, WIDTH)
    score = Segmentation(LABELS, ignore=IGNORE)
    for one, item in zip(logits, split.items, strict=True):
        score.add(one, load_mask(item.mask, bundle.preprocess))
    assert record["accuracy"] == score.summary()
    assert set(record["accuracy"]["per_class_percent"]) == set(LABELS)
    assert 0 < record["accuracy"]["percent"] < 50
    heading, *rows = (root / "measured/predictions.csv").read_text().splitlines()
    assert heading == "path,label,fp32"
    assert [float(row.split(",")[2]) for row in rows] == score.by_image()


@pytest.mark.slow
def test_a_mask_that_was_changed_is_refused(masked):
    root, options = masked
    Image.new("L", (30, 20)).save(root / "data/images/masks/3.png")
    with pytest.raises(MeasureError, match=r"test mask .*3.png: sha256 .* in the index; restore it"):
        measure_target(root / "measured", **options)


def test_data_without_masks_is_refused(masked):
    root, options = masked
    entries = [{"path": "images/0.png", "label": 0, "sha256": "ab"}]
    write_split(root / "data", "test", entries)
    with pytest.raises(MeasureError, match="a bundle for segmentation, but the data is for classification"):
        measure_target(root / "measured", **options)


def test_a_mask_outside_of_the_data_is_refused(masked):
    root, _ = masked
    write_split(root / "data", "test", [{"path": "a.png", "label": 0, "sha256": "ab", "mask": "../m.png"}])
    with pytest.raises(BundleError, match=r"line 2: `mask` '../m.png' leaves the root"):
        load_split(root / "data", "test")


def test_golden_masks_are_read_and_checked(tmp_path):
    save_segmenter(tmp_path / "fp32")
    inputs, outputs = load_golden(load_bundle(tmp_path / "fp32"))
    assert outputs.shape == (3, len(LABELS), HEIGHT, WIDTH)
    np.savez(tmp_path / "fp32/golden.npz", inputs=inputs, outputs=outputs[:, :, :8])
    content = json.loads((tmp_path / "fp32/bundle.json").read_text())
    content["files"] = listing(tmp_path / "fp32", "model.onnx", "golden.npz")
    (tmp_path / "fp32/bundle.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=r"`outputs` should be finite float32 of shape \(3, 4, 16, 24\)"):
        load_golden(load_bundle(tmp_path / "fp32"))


@pytest.mark.parametrize(
    ("task", "shape", "words"),
    [
        ("segmentation", [1, 4, 8, 24], r"does not fit 4 `labels` of segmentation: \[1, 4, 16, 24\] expected"),
        ("segmentation", [1, 4], "`output.shape` should be 4 integers"),
        ("classification", [1, 4, 16, 24], "`output.shape` should be 2 integers"),
        ("detection", [1, 4, 16, 24], "`task` should be one of classification, segmentation, got 'detection'"),
    ],
)
def test_a_bundle_of_another_shape_or_task_is_refused(tmp_path, task, shape, words):
    save_segmenter(tmp_path / "fp32")
    content = json.loads((tmp_path / "fp32/bundle.json").read_text())
    content["task"], content["output"]["shape"] = task, shape
    (tmp_path / "fp32/bundle.json").write_text(json.dumps(content))
    with pytest.raises(BundleError, match=words):
        load_bundle(tmp_path / "fp32")


def run(root, *arguments):
    return main(["run", "--bundle", str(root / "onnx/fp32"), "--engine", str(root / "engines/fp32"), *arguments])


def test_run_prints_shares_and_writes_masks_of_the_images_size(masked, capsys):
    root, _ = masked
    images = [str(root / f"data/images/images/{number}.png") for number in range(2)]
    assert run(root, "--masks", str(root / "out/masks"), *images) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == images
    for path, *shares in lines:
        named = dict(share.rsplit(" ", 1) for share in shares)
        assert list(named) == LABELS
        assert sum(map(float, named.values())) == pytest.approx(1, abs=1e-3)
        mask = np.asarray(Image.open(root / "out/masks" / path.rsplit("/", 1)[1]))
        assert mask.shape == (20, 30)
        assert set(np.unique(mask)) <= {0, 1, 2, 3}
    assert len(list((root / "out/masks").iterdir())) == 2


def test_run_writes_no_two_masks_to_one_file(masked, capsys):
    root, _ = masked
    image = str(root / "data/images/images/0.png")
    assert run(root, "--masks", str(root / "out"), image, image) == 2
    assert "would both leave" in capsys.readouterr().err
    assert not (root / "out").exists()


def test_masks_of_a_folder_lie_as_its_images_do(masked, capsys):
    root, _ = masked
    images = root / "photos"
    for place in ("a", "b/c"):
        (images / place).mkdir(parents=True)
        (images / place / "0.png").write_bytes((root / "data/images/images/0.png").read_bytes())
    assert run(root, "--masks", str(root / "out"), "--json", str(images)) == 0
    answers = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [answer["name"] for answer in answers] == [str(images / "a/0.png"), str(images / "b/c/0.png")]
    assert all(list(answer["shares"]) == LABELS for answer in answers)
    assert sorted(path for path in (root / "out").rglob("*.png")) == [root / "out/a/0.png", root / "out/b/c/0.png"]
    assert run(root, "--masks", str(images / "out"), str(images)) == 2
    assert "lies in the folder of images" in capsys.readouterr().err


def test_each_frame_of_a_camera_has_its_mask(masked, capsys, monkeypatch):
    root, _ = masked
    frames = [Image.new("RGB", (30, 20), (shade, 0, 0)) for shade in (0, 90)]
    monkeypatch.setattr("deploy.sources.opencv", lambda: None)
    monkeypatch.setattr("deploy.sources.camera_frames", lambda place, name: (frame for frame in frames))
    assert run(root, "--masks", str(root / "out"), "camera", str(root / "data/images/images/0.png")) == 0
    assert capsys.readouterr().out.splitlines()[1].startswith("camera:0#1\t")
    files = sorted(path.relative_to(root / "out").as_posix() for path in (root / "out").rglob("*.png"))
    assert files == ["0.png", "camera-0/000000.png", "camera-0/000001.png"]
    image = root / "out/camera-0/000001.png"
    assert run(root, "--masks", str(root / "out"), "camera", str(image)) == 2
    assert "would replace the image" in capsys.readouterr().err
    assert run(root, "--masks", str(root / "out"), "camera:0", "camera") == 2
    assert "camera:0 and camera:0 would both leave" in capsys.readouterr().err


def test_run_replaces_no_image_with_its_mask(masked, capsys):
    root, _ = masked
    image = root / "data/images/images/0.png"
    before = image.read_bytes()
    assert run(root, "--masks", str(image.parent), str(image)) == 2
    assert f"would replace the image {image}; name another one" in capsys.readouterr().err
    assert image.read_bytes() == before


def test_a_mask_goes_back_to_where_its_image_was_cropped():
    cropped = tiny.PREPROCESS.__class__(**{**vars(tiny.PREPROCESS), "resize_mode": "shortest", "crop": (16, 16)})
    mask = np.ones((16, 16), np.uint8)
    whole = unfit_mask(mask, (40, 20), cropped)  # resized to 32 x 16: the crop leaves 8 at either side out
    assert whole.shape == (20, 40)
    assert (whole[:, 10:30] == 1).all()
    assert (whole[:, :10] == OUTSIDE).all()
    assert (whole[:, 30:] == OUTSIDE).all()


def test_fitting_a_mask_and_undoing_it_gives_the_mask(tmp_path):
    mask = np.repeat(np.repeat(np.arange(4, dtype=np.uint8).reshape(2, 2), 8, 0), 8, 1)
    Image.fromarray(mask).save(tmp_path / "m.png")
    fitted = load_mask(tmp_path / "m.png", tiny.WIDE)
    assert fitted.shape == (16, 32)
    np.testing.assert_array_equal(unfit_mask(fitted.astype(np.uint8), (16, 16), tiny.WIDE), mask)
