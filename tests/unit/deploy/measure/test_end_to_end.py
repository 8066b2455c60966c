from types import SimpleNamespace

import numpy as np
import pytest

from deploy.bundle import load_bundle
from deploy.data import load_split
from deploy.errors import ImageError
from deploy.measure.end_to_end import STEPS, answer, end_to_end


class Clock:
    """Ticks once with each look, and by what the engine takes."""

    def __init__(self):
        self.now = 0

    def __call__(self):
        self.now += 1
        return self.now


def engine(clock, *, copy_ns, run_ns):
    def run(image):
        clock.now += run_ns
        return np.zeros((1, 4), np.float32)

    def copy(image):
        clock.now += copy_ns
        return copy_ns > 0

    return SimpleNamespace(run=run, copy=copy)


def told(clock):
    return {"on_progress": print, "clock": clock}


@pytest.fixture
def images(plant):
    return [item.path for item in load_split(plant.data, "test").items[:3]]


@pytest.fixture
def preprocess(plant):
    return load_bundle(plant.onnx_root / "fp32").preprocess


def test_inference_is_a_query_less_its_copies(images, preprocess):
    clock = Clock()
    found = end_to_end(
        engine(clock, copy_ns=100, run_ns=1000), images, preprocess, rounds=2, on_progress=print, clock=clock
    )
    assert list(found) == [*STEPS, "total"]
    assert {len(values) for values in found.values()} == {6}
    assert set(found["copy"]) == {101}
    assert set(found["inference"]) == {1001 - 101}
    assert set(found["total"]) == {1001}


def test_a_slow_engine_is_told_of_and_ends_in_time(images, preprocess):
    clock, lines = Clock(), []
    slow = engine(clock, copy_ns=0, run_ns=3_000_000_000)
    found = end_to_end(slow, images, preprocess, rounds=100, on_progress=lines.append, clock=clock)
    assert len(found["total"]) == 8
    assert lines[0] == "from file to answer: 1 images"


def test_an_engine_that_works_in_place_has_no_copies(images, preprocess):
    clock = Clock()
    found = end_to_end(
        engine(clock, copy_ns=0, run_ns=1000), images, preprocess, rounds=1, on_progress=print, clock=clock
    )
    assert "copy" not in found
    assert set(found["inference"]) == {1001}


def test_an_image_that_is_gone_is_named(images, preprocess):
    images[1].unlink()
    clock = Clock()
    with pytest.raises(ImageError, match=f"{images[1].name}: no such file"):
        end_to_end(engine(clock, copy_ns=0, run_ns=1), images, preprocess, rounds=1, **told(clock))


def test_answers_are_labels_with_their_probability_or_masks():
    label, probability = answer(np.array([0, np.log(3), 0], np.float32))
    assert (label, probability) == (1, pytest.approx(0.6))
    np.testing.assert_array_equal(answer(np.eye(2, dtype=np.float32)[:, :, None]), [[0], [1]])
