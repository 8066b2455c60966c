"""What the kernel says of itself in small files; a file that is not there, or says something else, is None."""

import re
from pathlib import Path

from deploy.files import system_text

CPUINFO = Path("/proc/cpuinfo")
MEMINFO = Path("/proc/meminfo")


def first_match(path: Path, pattern: str) -> str | None:
    """Return the first group of a pattern's first match in a file, stripped."""
    found = re.search(pattern, system_text(path) or "", re.MULTILINE)
    return found[1].strip() if found else None


def whole_number(path: Path) -> int | None:
    """Return the integer that a file holds."""
    try:
        return int(system_text(path) or "")
    except ValueError:
        return None


def in_their_order(paths: list[Path]) -> list[Path]:
    """Sort files of the kernel by the numbers in their names: cpu2 comes before cpu10."""
    return sorted(paths, key=lambda path: [(len(part), part) for part in re.findall(r"\d+|\D+", str(path))])
