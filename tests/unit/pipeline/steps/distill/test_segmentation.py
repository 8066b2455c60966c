"""Masks: the same methods, with a decoder in place of the head, on images that are twice as wide as high."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from deploy.measure.accuracy import Segmentation
from pipeline.base.errors import ModelError, ParamsError
from pipeline.parts.index import Loaded, Targets, read_index
from pipeline.parts.models import load_merged
from pipeline.parts.predict import torch_logits
from pipeline.steps.merge import merge_models
from tests import tiny
from tests.unit.pipeline.steps.distill.methods import METHODS, cnn, curve_of, logits_of, specs, train

DECODERS = {"slad": ("linear", "conv"), "joint_lora": ("conv",)}  # linear for the others
CASES = [(name, decoder) for name in METHODS for decoder in DECODERS.get(name, ("linear",))]


@pytest.fixture(scope="session")
def masked(tmp_path_factory):
    root = tmp_path_factory.mktemp("masked")
    tiny.prepared_masks(root / "index", tiny.write_masked(root / "pairs"))
    return root / "index"


def pair_of(pretrained, name, decoder="linear"):
    return {role: tiny.wide(spec, decoder=decoder) for role, spec in specs(pretrained, name).items()}


def truth_of(data, split="validation"):
    index, root = read_index(data)
    return np.stack(list(Targets(root, index.parts[split], load=tiny.LOAD_WIDE.mask, ignore=index.ignore)))


QUICK = (("slad", "conv"), ("finetune_kd", "linear"))


@pytest.mark.parametrize(
    ("name", "decoder"), [case if case in QUICK else pytest.param(*case, marks=pytest.mark.slow) for case in CASES]
)
def test_every_method_learns_masks_and_merges(tmp_path, masked, pretrained, name, decoder):
    pair = pair_of(pretrained, name, decoder)
    scores = train(tmp_path / "out", masked, METHODS[name], pair, load=tiny.LOAD_WIDE)
    (tmp_path / "merged").mkdir()
    options = {"data": masked, "tolerance": 1e-5, "load": tiny.LOAD_WIDE}
    assert merge_models(tmp_path / "merged", distilled=tmp_path / "out", **options, **pair).passed

    metrics = json.loads((tmp_path / "out/metrics.json").read_text())
    assert metrics["metric"] == "mIoU"
    assert metrics["trained_parameters"] > 0
    logits, truth = logits_of(tmp_path / "out"), truth_of(masked)
    assert logits.pop("places").tolist() == list(range(len(truth)))
    assert logits.keys() == scores.keys()
    index, root = read_index(masked)
    images = Loaded(root, index.parts["validation"], load=tiny.LOAD_WIDE.image)
    for role, found in logits.items():
        assert found.shape == (len(truth), 3, *tiny.WIDE.crop)
        on_device = Segmentation(index.labels, ignore=255)
        for one, mask in zip(found, truth, strict=True):
            on_device.add(one, mask)
        assert scores[role] == pytest.approx(on_device.summary()["percent"], abs=0.01)
        merged, labels = load_merged(tmp_path / "merged", role, pair[role])
        assert labels == list(tiny.MASK_CLASSES)
        np.testing.assert_allclose(tiny.stacked(torch_logits(merged, images)), found, atol=1e-3)
    assert scores["student"] > 30  # all ground would be 17
    curve = curve_of(tmp_path / "out")
    last = [float(row["loss"]) for row in curve if row["phase"] == curve[-1]["phase"]]
    assert last[-1] < last[0]


def test_the_merged_networks_are_judged_by_class(tmp_path, masked, pretrained):
    pair = pair_of(pretrained, "slad")
    train(tmp_path / "out", masked, METHODS["slad"], pair, load=tiny.LOAD_WIDE)
    (tmp_path / "merged").mkdir()
    options = {"data": masked, "tolerance": 1e-5, "load": tiny.LOAD_WIDE}
    merge_models(tmp_path / "merged", distilled=tmp_path / "out", **options, **pair)
    record = json.loads((tmp_path / "merged/accuracy.json").read_text())
    assert record["metric"] == "mIoU"
    for role in ("teacher", "student"):
        each = record[role]["test_per_class_percent"]
        assert tuple(each) == tiny.MASK_CLASSES
        assert record[role]["test_accuracy_percent"] == pytest.approx(np.mean(list(each.values())), abs=0.002)


def test_weights_of_classes_change_what_is_learnt(tmp_path, masked, pretrained):
    pair, answers = pair_of(pretrained, "student_only"), {}
    for name, weights in (("plain", None), ("ones", (1.0, 1.0, 1.0)), ("spot", (1.0, 1.0, 40.0))):
        changes = {"load": tiny.LOAD_WIDE, "class_weights": weights}
        train(tmp_path / name, masked, METHODS["student_only"], pair, **changes)
        answers[name] = logits_of(tmp_path / name)["student"].argmax(1)
    assert (answers["plain"] == answers["ones"]).mean() > 0.99
    assert (answers["spot"] == 2).sum() > 1.2 * (answers["plain"] == 2).sum()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["slad", "finetune_kd"])
def test_micro_batches_leave_the_result_as_it_is(tmp_path, masked, pretrained, name):
    pair, weights = pair_of(pretrained, name), (1.0, 1.0, 20.0)
    for folder, micro_batch in (("whole", None), ("parts", 2)):
        changes = {"load": tiny.LOAD_WIDE, "class_weights": weights, "micro_batch": micro_batch}
        train(tmp_path / folder, masked, METHODS[name], pair, **changes)
    whole, parts = (float(curve_of(tmp_path / folder)[0]["loss"]) for folder in ("whole", "parts"))
    assert parts == pytest.approx(whole, rel=1e-3)
    whole, parts = (logits_of(tmp_path / folder)["student"].argmax(1) for folder in ("whole", "parts"))
    assert (whole == parts).mean() > 0.98


def test_a_decoder_with_frozen_features_is_all_that_a_probe_trains(tmp_path, masked, pretrained):
    method = replace(METHODS["student_only"], training="probe")
    train(tmp_path / "out", masked, method, pair_of(pretrained, "slad"), load=tiny.LOAD_WIDE)
    assert set(load_file(tmp_path / "out/student.safetensors")) == {"head.project.weight", "head.project.bias"}


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1.0, 1.0, 1.0)], ids=str)
def test_a_weight_for_each_class_is_needed(tmp_path, masked, pretrained, weights):
    with pytest.raises(ParamsError, match=r"holds \d weights for the 3 classes ground, leaf, spot; give one each"):
        train(
            tmp_path / "out",
            masked,
            METHODS["slad"],
            pair_of(pretrained, "slad"),
            load=tiny.LOAD_WIDE,
            class_weights=weights,
        )


def test_images_without_masks_are_refused(tmp_path, untested, pretrained):
    with pytest.raises(ParamsError, match="`task` is for masks, but the data has no masks; choose data=folder_seg"):
        train(tmp_path / "out", untested, METHODS["slad"], pair_of(pretrained, "slad"))


def test_another_size_than_the_networks_take_is_refused(tmp_path, masked, pretrained):
    with pytest.raises(ModelError, match=r"`preprocess.crop` is \[16, 16\], but `teacher.image_size` is \[16, 32\]"):
        train(tmp_path / "out", masked, METHODS["slad"], pair_of(pretrained, "slad"))


def test_a_network_without_patches_is_refused(tmp_path, masked, pretrained):
    pair = pair_of(pretrained, "slad") | {"student": tiny.wide(cnn(pretrained))}
    with pytest.raises(ModelError, match="`student.model` is a ResNet without a grid of patches"):
        train(tmp_path / "out", masked, METHODS["finetune_kd"], pair, load=tiny.LOAD_WIDE)


def test_a_mask_moves_with_its_image(masked):
    from pipeline.parts.data import Augment, Images
    from pipeline.parts.index import IGNORED

    index, root = read_index(masked)
    strong = Augment(degrees=30, translate=0.2, scale=(0.7, 1.4), flip=True).transform((-9.0, -9.0, -9.0))
    images = Images(root, index.parts["train"], load=tiny.LOAD_WIDE, ignore=index.ignore, transform=strong, seed=0)
    moved = 0
    for place in range(len(images)):
        image, mask = images[3, place]
        assert type(image) is type(mask) is torch.Tensor
        assert set(mask.unique().tolist()) <= {0, 1, 2, IGNORED}
        brightness = (image.mean(0) + 1) * 127.5
        # Far from the edges between classes a pixel's brightness tells its class, wherever it was moved.
        inside = (torch.nn.functional.max_pool2d(mask[None].float(), 5, 1, 2)[0] == mask) & (
            -torch.nn.functional.max_pool2d(-mask[None].float(), 5, 1, 2)[0] == mask
        )
        inside[[0, 1, -2, -1]] = inside[:, [0, 1, -2, -1]] = False  # what lies beyond may be black
        for label, low, high in ((0, -1, 40), (1, 95, 140), (2, 195, 256)):
            seen = brightness[inside & (mask == label)]
            assert seen.numel() == 0 or (low < seen.min() and seen.max() < high)
        moved += int((mask == IGNORED).sum() > 0)
    assert moved > 10
