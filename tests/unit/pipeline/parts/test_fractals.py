import numpy as np

from pipeline.parts.fractals import MAX_FILL, MIN_FILL, Systems, draw_systems, fractal_images, render


def test_same_seed_draws_the_same_images_and_another_does_not():
    one, labels = fractal_images(classes=4, instances=2, size=16, seed=3)
    again, _ = fractal_images(classes=4, instances=2, size=16, seed=3)
    other, _ = fractal_images(classes=4, instances=2, size=16, seed=4)
    assert one.shape == (8, 16, 16)
    assert labels.tolist() == [0, 1, 2, 3] * 2
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_accepted_systems_are_neither_specks_nor_clouds():
    generator = np.random.default_rng(0)
    systems = draw_systems(20, size=32, generator=generator)
    fill = (render(systems, size=32, generator=generator) > 0).mean(axis=(1, 2))
    assert len(systems.affine) == 20
    assert np.all(fill > MIN_FILL / 2)
    assert np.all(fill < (1 + MAX_FILL) / 2)


def test_the_sierpinski_triangle_comes_out():
    half = [[0.5, 0.0], [0.0, 0.5]]
    maps = np.zeros((1, 6, 2, 3), dtype=np.float32)
    maps[0, :3, :, :2] = half
    maps[0, :3, :, 2] = [[0, 0], [0.5, 0], [0, 0.5]]
    probability = np.array([[1 / 3, 2 / 3, 1, 1, 1, 1]], dtype=np.float32)
    image = render(Systems(maps, probability), size=32, generator=np.random.default_rng(0))[0]
    assert (image[:14, :14] > 0).mean() > 0.3
    assert (image[18:, 18:] > 0).sum() == 0  # the quarter that no map reaches


def test_a_diverging_system_gives_a_blank_image():
    maps = np.full((1, 6, 2, 3), 9.0, dtype=np.float32)
    probability = np.linspace(1 / 6, 1, 6, dtype=np.float32)[None]
    assert render(Systems(maps, probability), size=16, generator=np.random.default_rng(0)).max() == 0
