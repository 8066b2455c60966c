"""Names that some file systems cannot keep apart."""

import unicodedata
from collections import defaultdict

import numpy as np
from numpy.typing import NDArray

from pipeline.parts.sources.listing import Finding

TWICE = "one name in two spellings"


def alike(paths: NDArray[np.str_]) -> list[Finding]:
    """Finds paths, or folders on their way, that differ only in case or in the form of a Unicode character.

    Args:
        paths: of shape (count,).
    """
    folders: dict[str, set[str]] = defaultdict(set)
    for folder in {parent for path in paths for parent in _parents(str(path))}:
        folders[_plain(folder)].add(folder)
    found = [Finding("names", tuple(sorted(names)), TWICE) for names in folders.values() if len(names) > 1]
    # Hashes first: a million names in a dictionary take a quarter of a gigabyte.
    hashes = np.fromiter((hash(_plain(str(path))) for path in paths), np.int64, len(paths))
    values, counts = np.unique(hashes, return_counts=True)
    groups = defaultdict(list)
    for row in np.flatnonzero(np.isin(hashes, values[counts > 1])):
        groups[_plain(str(paths[row]))].append(int(row))
    rows_of = [rows for rows in groups.values() if len(rows) > 1]
    found += [Finding("names", tuple(str(paths[row]) for row in rows), TWICE) for rows in rows_of]
    return sorted(found, key=lambda finding: finding.paths)


def _parents(path: str) -> list[str]:
    parts = path.split("/")
    return ["/".join(parts[:length]) for length in range(1, len(parts))]


def _plain(path: str) -> str:
    return unicodedata.normalize("NFC", path).casefold()
