import numpy as np
from PIL import Image

from pipeline.parts.sources.digits import write_digits


def test_digits_are_the_real_ones(tmp_path):
    write_digits(tmp_path / "digits")
    files = sorted((tmp_path / "digits").rglob("*.png"))
    assert len(files) == 1797
    zero = np.asarray(Image.open(tmp_path / "digits" / "0" / "0000.png"))
    assert zero[0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # ink 0 0 5 13 9 1 0 0 of 16
