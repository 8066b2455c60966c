from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from pipeline.base.errors import DataError
from pipeline.parts.index import Items, read_index
from pipeline.steps.quantize.calibration import Calibration
from tests import tiny

SHAPE = (3, tiny.SIZE, tiny.SIZE)


@pytest.fixture
def data(tmp_path):
    index = tiny.prepared(tmp_path / "data", tiny.write_images(tmp_path / "images"))
    return index, read_index(tmp_path / "data")[1]


def calibration(data, *, index=None, load=tiny.LOAD, subset_size=6, shape=SHAPE):
    return Calibration(index or data[0], data[1], load=load, subset_size=subset_size, shape=shape)


def with_part(index, **parts):
    return replace(index, parts=index.parts | parts)


def redraw(data, pixels):
    """Overwrites the calibration images, and lets the index know."""
    index, root = data
    for number, item in enumerate(index.parts["calibration"]):
        Image.fromarray(pixels(number)).save(root / item.path)
    from pipeline.base.provenance import sha256_of

    items = [replace(item, sha256=sha256_of(root / item.path)) for item in index.parts["calibration"]]
    return with_part(index, calibration=Items.of(items))


def test_images_are_those_of_the_list(data):
    found = calibration(data, subset_size=4)
    assert len(found.images) == 4
    assert found.images[:].shape == (4, *SHAPE)
    assert set(found.hashes) <= {item.sha256 for item in data[0].parts["train"]}
    assert len(found.some(2)) == 2


def test_an_empty_list_is_refused(data):
    with pytest.raises(DataError, match="calibration list .* is empty; raise `prepare.calibration_size`"):
        calibration(data, index=with_part(data[0], calibration=Items.of([])))


@pytest.mark.parametrize("part", ["validation", "test"])
def test_an_image_that_is_judged_on_is_refused(data, part):
    index = data[0]
    leaked = replace(index.parts["calibration"][0], path="another_name.png")
    index = with_part(index, **{part: Items.of([*index.parts[part], leaked])})
    with pytest.raises(DataError, match=f"1 calibration image.* also in {part}, such as .* as 'another_name.png'"):
        calibration(data, index=index)


@pytest.mark.parametrize("change", ["gone", "changed"])
def test_a_file_that_is_gone_or_has_changed_is_refused(data, change):
    path = data[1] / data[0].parts["calibration"][0].path
    if change == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes() + b"\0")
    with pytest.raises(DataError, match="is gone or has changed; run `dvc repro prepare`"):
        calibration(data)


def test_another_shape_than_the_networks_is_refused(data):
    with pytest.raises(DataError, match=r"shape \(3, 16, 32\), the network takes \(3, 16, 16\)"):
        calibration(data, load=tiny.LOAD_WIDE)


def test_noise_is_refused(data):
    generator = np.random.default_rng(0)
    index = redraw(data, lambda _: generator.integers(0, 256, (tiny.SIZE, tiny.SIZE, 3), dtype=np.uint8))
    with pytest.raises(DataError, match="look like random noise: neighbouring pixels correlate by -?0.0"):
        calibration(data, index=index)


def test_one_flat_colour_is_refused(data):
    index = redraw(data, lambda _: np.full((tiny.SIZE, tiny.SIZE, 3), 127, np.uint8))
    with pytest.raises(DataError, match="every calibration image is flat"):
        calibration(data, index=index)


def test_flat_images_of_several_colours_show_nothing_either(data):
    index = redraw(data, lambda number: np.full((tiny.SIZE, tiny.SIZE, 3), 40 * number, np.uint8))
    with pytest.raises(DataError, match="every calibration image is flat"):
        calibration(data, index=index)
