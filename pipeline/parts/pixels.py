"""Fitted pixels, kept as files: an image is decoded, resized and cropped once for all epochs and all runs."""

import contextlib
import hashlib
import os
import zlib
from collections.abc import Callable
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
from numpy.typing import NDArray

from pipeline.base.progress import notice

Fit = Callable[[Path], NDArray[np.uint8]]
"""Decodes, resizes and crops one file; gives (height, width, 3)."""
Normalise = Callable[[NDArray[np.uint8]], NDArray[np.float32]]
"""Makes the model's input of what `Fit` gives, (3, height, width)."""


class KeptPixels:
    """Loads images, and keeps their fitted pixels by content and by recipe; the values are those of a fresh load.

    A file is written when it is first asked for, whole or not at all, so that several processes can share the folder.

    Args:
        folder: holds one folder per recipe; made when needed. It can be deleted at any time.
        fit: the part of the loading that is kept.
        normalise: the part that is not.
        recipe: all that `fit` depends on, apart from the file.
    """

    def __init__(self, folder: Path, *, fit: Fit, normalise: Normalise, recipe: str) -> None:
        self._folder = folder / hashlib.sha256(recipe.encode()).hexdigest()[:16]
        self._fit, self._normalise = fit, normalise
        self._writes = True

    def load(self, path: Path, sha256: str) -> NDArray[np.float32]:
        """Returns the image at `path`, whose bytes have the hash `sha256`, of shape (3, height, width)."""
        file = self._folder / sha256[:2] / f"{sha256}.npz"
        try:
            with file.open("rb") as stream, np.load(stream) as archive:  # which holds a checksum
                pixels: NDArray[np.uint8] = archive["pixels"]
        except (OSError, ValueError, EOFError, KeyError, BadZipFile, zlib.error):  # not there yet, or damaged since
            pixels = self._fit(path)
            # A file that was changed after it was indexed must not be kept under its earlier hash.
            if self._writes and hashlib.sha256(path.read_bytes()).hexdigest() == sha256:
                self._keep(pixels, file)
        return self._normalise(pixels)

    def _keep(self, pixels: NDArray[np.uint8], file: Path) -> None:
        temporary = file.with_suffix(f".{os.getpid()}.tmp")
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as stream:
                np.savez(stream, pixels=pixels)
            temporary.replace(file)
        except OSError as error:
            self._writes = False
            with contextlib.suppress(OSError):
                temporary.unlink()
            notice(f"`distill.pixels`: cannot write {str(file.parent)!r} ({error}); images are decoded each time")
