"""The images that quantisers are fitted to: of the calibration list, which is of train, and checked to be images."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.base.errors import DataError
from pipeline.base.provenance import sha256_of
from pipeline.parts.index import Index, Load, Loaded, evenly

# Correlation of neighbouring pixels within an image. Photographs have 0.9 and more, the 8 x 8 digits 0.9 once they are
# scaled up; values drawn independently have 0.00 to 0.01.
LEAST_CORRELATION = 0.1
EXAMINED = 32  # images


class Calibration:
    """Calibration images, decoded whenever they are asked for: all of them need not fit into memory.

    Args:
        index: the data set.
        root: folder the items' paths start from.
        load: decodes and preprocesses one file.
        subset_size: number of images, at most; evenly spaced over the list.
        shape: of one image as the network takes it, (3, height, width).

    Raises:
        DataError: the list is empty, holds an image that is judged on, or a file that has changed; or the images have
            another shape than the network's input, or show nothing but one value or noise.
    """

    def __init__(self, index: Index, root: Path, *, load: Load, subset_size: int, shape: Sequence[int]) -> None:
        items = index.parts["calibration"]
        if not len(items):
            msg = f"the calibration list of {str(root)!r} is empty; raise `prepare.calibration_size`"
            raise DataError(msg)
        self._root, self._load = root, load
        self._items = items[evenly(len(items), subset_size)]
        self._shape = tuple(shape)
        self._check_apart(index)
        for item in self._items:
            if not (root / item.path).is_file() or sha256_of(root / item.path) != item.sha256:
                msg = f"the calibration image {str(root / item.path)!r} is gone or has changed; run `dvc repro prepare`"
                raise DataError(msg)
        self._check_images()

    @property
    def images(self) -> Loaded:
        """All of them."""
        return self.some(len(self._items))

    def some(self, most: int) -> Loaded:
        """Returns `most` images, evenly spaced, or all."""
        items = self._items[evenly(len(self._items), most)]
        return Loaded(self._root, items, load=self._load.image)

    @property
    def hashes(self) -> list[str]:
        """SHA-256 of every file."""
        return [item.sha256 for item in self._items]

    @staticmethod
    def _check_apart(index: Index) -> None:
        """Refuses images that are judged on, by their content: a copy under another name leaks as much."""
        chosen = {item.sha256: item.path for item in index.parts["calibration"]}
        for part in ("validation", "test"):
            shared = [(chosen[item.sha256], item.path) for item in index.parts[part] if item.sha256 in chosen]
            if shared:
                msg = (
                    f"{len(shared)} calibration image(s) are also in {part}, such as {shared[0][0]!r} as "
                    f"{shared[0][1]!r}: its accuracy would be no proof; run `dvc repro -f prepare`"
                )
                raise DataError(msg)

    def _check_images(self) -> None:
        """Refuses images that are none."""
        least, highest, products = np.inf, -np.inf, np.zeros(3)
        images = self.some(EXAMINED)
        for place in range(len(images)):
            image = images[place : place + 1][0].astype(np.float64)
            if image.shape != self._shape:
                msg = (
                    f"a calibration image has shape {image.shape}, the network takes {self._shape}; "
                    f"make `preprocess.crop` and `student.image_size` agree"
                )
                raise DataError(msg)
            least, highest = min(least, image.min()), max(highest, image.max())
            image -= image.mean(axis=(1, 2), keepdims=True)
            for one, other in ((image[:, :, :-1], image[:, :, 1:]), (image[:, :-1], image[:, 1:])):
                products += ((one * other).sum(), (one**2).sum(), (other**2).sum())
        if not products[1] * products[2]:
            msg = (
                f"every calibration image is flat (values {least:g} to {highest:g}); calibrate with images of the task"
            )
            raise DataError(msg)
        correlation = float(products[0] / np.sqrt(products[1] * products[2]))
        if abs(correlation) < LEAST_CORRELATION:
            msg = (
                f"the calibration images look like random noise: neighbouring pixels correlate by {correlation:.2f}, "
                f"those of images by 0.9; quantisers fitted to noise are wrong, so calibrate with images of the task"
            )
            raise DataError(msg)
