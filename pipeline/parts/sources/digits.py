"""The built-in data: scanned handwritten digits that come with scikit-learn, written out as image files.

1797 grey images of 8 x 8 pixels in ten classes, the test half of the UCI set "Optical Recognition of Handwritten
Digits" (Alpaydin and Kaynak, 1998). Each pixel counts the ink in a 4 x 4 cell of the scan, 0 to 16.
"""

from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

MOST_INK = 16


def write_digits(folder: Path) -> None:
    """Writes `<folder>/<digit>/<number>.png`, grey, 8 x 8."""
    digits = load_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True)
    for number, (ink, digit) in enumerate(zip(digits.images, digits.target, strict=True)):
        grey = np.round(ink / MOST_INK * 255).astype(np.uint8)
        Image.fromarray(grey).save(folder / str(digit) / f"{number:04d}.png")
