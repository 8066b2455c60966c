import numpy as np
import pytest

from pipeline.parts import scenes
from pipeline.parts.scenes import CLASSES_PER_FRACTAL, CLASSES_PER_TEXTURE, scene_images


def drawn(*, classes=8, instances=3, size=32, seed=0):
    return scene_images(classes=classes, instances=instances, size=size, seed=seed)


def distance(one, other):
    return np.abs(one.astype(float) - other.astype(float)).mean()


@pytest.mark.parametrize("size", [16, 32])
@pytest.mark.parametrize("classes", [2, 8])
def test_there_are_as_many_images_of_each_class_as_asked(classes, size):
    images, labels = drawn(classes=classes, size=size)
    assert images.shape == (3 * classes, 3, size, size)
    assert images.dtype == np.uint8
    assert labels.tolist() == [*range(classes)] * 3


def test_the_seed_decides_and_the_global_generator_does_not():
    np.random.seed(1)
    one, _ = drawn()
    np.random.seed(2)
    assert np.array_equal(one, drawn()[0])
    assert not np.array_equal(one, drawn(seed=1)[0])


def test_fewer_instances_are_the_first_of_more():
    assert np.array_equal(drawn(instances=2)[0], drawn(instances=3)[0][: 2 * 8])


def test_images_of_a_class_are_alike_and_those_of_others_differ():
    images, _ = drawn(classes=20, instances=2)
    first, second = images[:20], images[20:]
    own = np.mean([distance(a, b) for a, b in zip(first, second, strict=True)])
    other = np.mean([distance(first[i], second[j]) for i in range(20) for j in range(20) if i != j])
    assert 0 < own < 0.85 * other


def test_no_image_is_one_colour_and_channels_differ():
    images, _ = drawn(classes=40, instances=1)
    spread = images.reshape(40, -1).std(axis=1)
    assert spread.min() > 3
    assert np.abs(images[:, 0].astype(float) - images[:, 2]).mean() > 3


@pytest.fixture
def parts(monkeypatch):
    """Notes which fractal and which texture each class of a set of 120 gets."""
    seen = {}
    render, of = scenes.render, scenes.Textures.of

    def note_fractal(systems, **options):
        seen["fractal"] = [row.tobytes() for row in systems.probability]
        return render(systems, **options)

    def note_texture(self, classes, **options):
        seen["texture"] = classes.tolist()
        return of(self, classes, **options)

    monkeypatch.setattr(scenes, "render", note_fractal)
    monkeypatch.setattr(scenes.Textures, "of", note_texture)
    drawn(classes=120, instances=1, size=16)
    return seen


def test_fractals_and_textures_both_vary_and_each_serves_several_classes(parts):
    assert len(set(parts["fractal"])) == 120 // CLASSES_PER_FRACTAL
    assert len(set(parts["texture"])) == 120 // CLASSES_PER_TEXTURE
    assert all(parts["fractal"].count(one) == CLASSES_PER_FRACTAL for one in parts["fractal"])
    assert all(parts["texture"].count(one) == CLASSES_PER_TEXTURE for one in parts["texture"])


def test_a_fractal_does_not_tell_the_texture(parts):
    pairs = set(zip(parts["fractal"], parts["texture"], strict=True))
    assert len(pairs) > 2 * len(set(parts["fractal"]))


def test_a_texture_and_a_fractal_each_change_the_picture(monkeypatch):
    plain, _ = drawn(instances=1)
    with monkeypatch.context() as patched:
        patched.setattr(scenes, "render", lambda s, *, size, generator: np.zeros((len(s.affine), size, size), np.uint8))
        ground, _ = drawn(instances=1)
    with monkeypatch.context() as patched:
        flat = lambda self, *, size, generator: np.zeros((len(self.decay), size, size), np.float32)  # noqa: E731
        patched.setattr(scenes.Textures, "render", flat)
        figure, _ = drawn(instances=1)
    assert min(distance(a, b) for a, b in zip(plain, ground, strict=True)) > 1
    assert min(distance(a, b) for a, b in zip(plain, figure, strict=True)) > 1
