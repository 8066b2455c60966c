"""Masks from the folder to the report, by the very commands of dvc.yaml."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image

from deploy.__main__ import main
from deploy.measure.accuracy import Segmentation
from pipeline.parts.index import Targets, read_index
from tests import tiny
from tests.stages.conftest import CHAIN, Project, parameters

TARGETS = ("cpu-openvino", "cpu-onnxruntime")


@pytest.fixture(scope="module", params=["linear", "conv"])
def segmented(request, tmp_path_factory):
    root = tmp_path_factory.mktemp("segmented")
    pairs = tiny.write_masked(root / "pairs")
    content = parameters(pairs)
    masks = {"source": "masks", "images": "images", "masks": "masks", "classes": None, "mask": "refuse"}
    content["prepare"] |= masks | {"ignore": tiny.NO_CLASS}
    content["task"] = {"name": "segmentation", "decoder": request.param, "class_weights": [1.0, 1.0, 2.0]}
    content["preprocess"] |= {"crop": list(tiny.WIDE.crop)}
    for role in ("teacher", "student"):
        content[role] |= {"image_size": list(tiny.WIDE.crop)}
    content["distill"]["schedule"] |= {"epochs": 12}
    content["report"]["max_drop_points"] = 1.0
    (root / "configs").mkdir()
    text = yaml.safe_dump(content, sort_keys=False)
    (root / "params.yaml").write_text(text)
    (root / "configs/config.yaml").write_text(text)
    return Project(root)


@pytest.mark.slow
def test_masks_go_all_the_way(segmented, capsys, monkeypatch):
    for stage in CHAIN:
        result = segmented.run(stage, capsys, monkeypatch)
        assert result.code == 0, f"{stage}: {result.error}"
    root = segmented.root
    index, images = read_index(root / "artifacts/data")
    assert index.ignore == tiny.NO_CLASS
    truth = list(Targets(images, index.parts["test"], load=tiny.LOAD_WIDE.mask, ignore=index.ignore))
    host = json.loads((root / "artifacts/merged/accuracy.json").read_text())["student"]["test_per_class_percent"]
    for target in TARGETS:
        variants = json.loads((root / f"reports/{target}.json").read_text())["variants"]
        with np.load(root / f"artifacts/measured/{target}/logits.npz") as stored:
            logits = dict(stored)
        for name, variant in variants.items():
            assert logits[name].shape == (len(truth), 3, *tiny.WIDE.crop)
            score = Segmentation(index.labels, ignore=255)
            for one, mask in zip(logits[name], truth, strict=True):
                score.add(one, mask)
            assert variant["accuracy"] == score.summary()
        assert variants["fp32"]["accuracy"]["per_class_percent"] == pytest.approx(host, abs=0.05)
        assert variants["fp32"]["accuracy"]["percent"] > 50  # all ground would be 17
        assert variants["int8"]["accuracy"]["percent"] == pytest.approx(variants["fp32"]["accuracy"]["percent"], abs=3)
    summary = json.loads((root / "reports/summary.json").read_text())
    assert summary["metric"] == "mIoU"
    html = (root / "reports/report.html").read_text()
    assert "IoU of each class" in html
    assert html.count("data:image/jpeg") >= 4 * (2 + 2 * len(TARGETS))

    capsys.readouterr()
    engine = root / "artifacts/compiled/cpu-openvino/int8"
    picture = images / index.parts["test"][0].path
    arguments = ["--bundle", root / "artifacts/onnx/int8", "--engine", engine, "--masks", root / "masks", picture]
    assert main(["run", *map(str, arguments)]) == 0
    assert capsys.readouterr().out.startswith(f"{picture}\tground 0.")
    assert np.asarray(Image.open(root / f"masks/{picture.name}")).shape == (12, 24)


@pytest.mark.slow
def test_what_a_mask_cannot_be_is_refused_in_one_line(segmented, capsys, monkeypatch):
    images, _ = segmented.root / "pairs/images", segmented.run("guard", capsys, monkeypatch)
    broken = segmented.root / "pairs/masks" / sorted(images.iterdir())[3].name
    good = broken.read_bytes()
    before = segmented.snapshot()
    for mode, size, words in (
        ("RGB", (24, 12), "mode 'RGB', one index of 8 bits per pixel expected"),
        ("L", (24, 10), "24 x 10 pixels, its image 24 x 12"),
    ):
        Image.new(mode, size).save(broken)
        result = segmented.run("prepare", capsys, monkeypatch)
        assert (result.code, result.error.count("error:")) == (3, 1)
        assert words in result.error
        assert broken.name in result.error
        assert segmented.snapshot() == before
    broken.write_bytes(good)
