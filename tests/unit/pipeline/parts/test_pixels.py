import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from deploy.files import sha256_file
from deploy.preprocess import fit_image, load_image, normalised
from pipeline.parts.pixels import KeptPixels
from tests import tiny

ROOT = Path(__file__).parents[4]


def write(path, seed=0):
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)).save(path)
    return path


@pytest.fixture
def image(tmp_path):
    return write(tmp_path / "image.png")


def kept(folder, *, fit=None, recipe="a"):
    return KeptPixels(
        folder,
        fit=fit or partial(fit_image, preprocess=tiny.PREPROCESS),
        normalise=partial(normalised, preprocess=tiny.PREPROCESS),
        recipe=recipe,
    )


def refuse(path):
    raise AssertionError(path)


def test_values_are_those_of_a_fresh_load(image, tmp_path):
    expected = load_image(image, tiny.PREPROCESS)
    for _ in range(2):
        assert np.array_equal(kept(tmp_path / "pixels").load(image, sha256_file(image)), expected)


def test_what_was_kept_is_not_decoded_again(image, tmp_path):
    expected = kept(tmp_path / "pixels").load(image, sha256_file(image))
    again = kept(tmp_path / "pixels", fit=refuse).load(image, sha256_file(image))
    assert np.array_equal(again, expected)


def test_another_recipe_is_another_file(image, tmp_path):
    kept(tmp_path / "pixels").load(image, sha256_file(image))
    with pytest.raises(AssertionError):
        kept(tmp_path / "pixels", fit=refuse, recipe="b").load(image, sha256_file(image))


def test_a_file_that_changed_is_not_kept_under_its_earlier_hash(image, tmp_path):
    earlier, original = sha256_file(image), image.read_bytes()
    write(image, seed=1)
    kept(tmp_path / "pixels").load(image, earlier)
    image.write_bytes(original)
    assert np.array_equal(kept(tmp_path / "pixels").load(image, earlier), load_image(image, tiny.PREPROCESS))


def test_a_damaged_file_is_written_anew(image, tmp_path):
    expected = kept(tmp_path / "pixels").load(image, sha256_file(image))
    (file,) = (tmp_path / "pixels").rglob("*.npz")
    whole = file.read_bytes()
    middle = len(whole) // 2
    for damaged in (b"", whole[:40], whole[:-1], b"x" * len(whole), whole[:middle] + b"\0" * 9 + whole[middle + 9 :]):
        file.write_bytes(damaged)
        assert np.array_equal(kept(tmp_path / "pixels").load(image, sha256_file(image)), expected)
        assert np.array_equal(kept(tmp_path / "pixels", fit=refuse).load(image, sha256_file(image)), expected)


def test_a_folder_that_cannot_be_written_is_done_without(image, tmp_path, capsys):
    (tmp_path / "pixels").write_text("a file")
    pixels = kept(tmp_path / "pixels")
    for _ in range(2):
        assert np.array_equal(pixels.load(image, sha256_file(image)), load_image(image, tiny.PREPROCESS))
    assert capsys.readouterr().err.count("`distill.pixels`: cannot write") == 1


# A process of its own that imports no torch.
SHARE = """
import sys
from pathlib import Path
import numpy as np
from pipeline.parts.pixels import KeptPixels
folder, *images = map(Path, sys.argv[1:])
fit = lambda path: np.full((9, 9, 3), int(path.stem), np.uint8)
pixels = KeptPixels(folder, fit=fit, normalise=np.float32, recipe="")
for image in images:
    assert (pixels.load(image, image.with_suffix(".sha256").read_text()) == int(image.stem)).all()
"""


def test_processes_share_a_folder(tmp_path):
    images = [write(tmp_path / f"{number}.png", number) for number in range(50)]
    for image in images:
        image.with_suffix(".sha256").write_text(sha256_file(image))
    command = [sys.executable, "-c", SHARE, str(tmp_path / "pixels"), *map(str, images)]
    processes = [subprocess.Popen(command, cwd=ROOT) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(list((tmp_path / "pixels").rglob("*.npz"))) == 50
    assert not list((tmp_path / "pixels").rglob("*.tmp"))
