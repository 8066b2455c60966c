import numpy as np
import pytest
from PIL import Image

from deploy.preprocess import decode_image
from pipeline.parts.checks import near
from pipeline.parts.checks.names import alike
from pipeline.parts.checks.near import connected, link, pairs_within, similarity


def close(hashes, distance):
    """All pairs, one by one."""
    values = hashes.tolist()
    return {
        (one, other)
        for other in range(len(values))
        for one in range(other)
        if (values[one] ^ values[other]).bit_count() <= distance
    }


@pytest.mark.parametrize("distance", [0, 1, 5, 8, 12])
@pytest.mark.parametrize("at_once", [1, 1 << 20])
def test_every_close_pair_is_found(distance, at_once, monkeypatch):
    monkeypatch.setattr(near, "AT_ONCE", at_once)
    generator = np.random.default_rng(0)
    seeds = generator.integers(0, 2**63, 10, dtype=np.uint64)
    bits = [generator.choice(64, generator.integers(0, 14), replace=False) for _ in range(200)]
    flips = [sum(1 << int(bit) for bit in some) for some in bits]
    hashes = np.array([int(generator.choice(seeds)) ^ flip for flip in flips], np.uint64)
    pairs = {
        tuple(sorted(pair))
        for left, right in pairs_within(hashes, distance)
        for pair in zip(left.tolist(), right.tolist(), strict=True)
    }
    assert pairs == close(hashes, distance)
    assert len(pairs) > 0


@pytest.mark.parametrize("hashes", [[], [7], [7, 2**40 - 1]])
def test_few_images_have_no_links(hashes):
    assert link(np.array(hashes, np.uint64), lambda one, other: 1.0, threshold=0.5) == []


def of_scenes(scenes, asked=None):
    """Rows of one scene are alike."""

    def similar(one, other):
        if asked is not None:
            asked.append((one, other))
        return float(scenes[one] == scenes[other])

    return similar


def linked(links, count):
    """Which rows hang together."""
    ends = np.array([link[:2] for link in links], np.int64).reshape(-1, 2)
    return connected(count, ends).tolist()


def test_images_of_equal_hash_are_linked_scene_by_scene():
    scenes = [0, 1, 1, 0, 2, 1]
    links = link(np.full(6, 5, np.uint64), of_scenes(scenes), threshold=0.5)
    assert linked(links, 6) == scenes


def test_every_scene_of_a_hash_is_compared_with_hashes_near_it():
    scenes, hashes = [0, 1, 2, 1, 0], np.array([0, 0, 0, 3, 12], np.uint64)
    assert linked(link(hashes, of_scenes(scenes), threshold=0.5), 5) == scenes


@pytest.mark.parametrize("at_once", [1, 4, 1 << 20])
def test_what_is_linked_already_is_not_compared(at_once, monkeypatch):
    monkeypatch.setattr(near, "AT_ONCE", at_once)
    asked = []
    hashes = np.array([1 << bit for bit in range(40)], np.uint64)  # each differs in two bits from each other
    links = link(hashes, of_scenes([0] * 40, asked), threshold=0.5)
    assert len(asked) == len(links) == 39


def test_unlike_images_of_near_hashes_stay_apart():
    hashes = np.array([0, 1, 3, 7], np.uint64)
    assert link(hashes, of_scenes([0, 1, 2, 3]), threshold=0.5) == []


def picture(seed, size=(64, 48)):
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), dtype=np.uint8)
    return Image.fromarray(small).resize(size, Image.Resampling.BICUBIC)


def test_similarity_tells_a_scene_from_another(tmp_path):
    picture(0).save(tmp_path / "0.png")
    picture(0, (100, 80)).save(tmp_path / "1.jpg", quality=60)
    picture(1).save(tmp_path / "2.png")
    files = sorted(tmp_path.iterdir())
    similar = similarity(lambda row: decode_image(files[row]))
    assert similar(0, 1) > 0.98
    assert similar(0, 2) < 0.6


def test_flat_pictures_are_alike_by_their_shade():
    shades = [Image.new("RGB", (20, 20), (shade, shade, shade)) for shade in (255, 254, 100)]
    similar = similarity([*shades, picture(0)].__getitem__)
    assert similar(0, 0) == 1
    assert similar(0, 2) == similar(0, 3) == 0


def test_an_image_is_decoded_once():
    asked = []

    def decode(row):
        asked.append(row)
        return picture(row)

    similar = similarity(decode)
    for one, other in ((0, 1), (0, 2), (1, 2)):
        similar(one, other)
    assert sorted(asked) == [0, 1, 2]


def test_names_that_some_file_systems_mix_up_are_found():
    paths = np.array(["a/x.png", "a/X.PNG", "a/caf\u00e9.png", "a/cafe\u0301.png", "b/x.png"], np.dtypes.StringDType())
    found = [finding.paths for finding in alike(paths)]
    assert found == [("a/caf\u00e9.png", "a/cafe\u0301.png"), ("a/x.png", "a/X.PNG")]
    assert alike(paths[-1:]) == []


def test_folders_that_some_file_systems_mix_up_are_found():
    paths = np.array(["train/b/1.png", "train/B/2.png", "test/b/3.png"], np.dtypes.StringDType())
    assert [finding.paths for finding in alike(paths)] == [("train/B", "train/b")]
