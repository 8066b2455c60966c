"""Where an output comes from: git revision and hashes of files."""

import hashlib
import subprocess
from pathlib import Path


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_revision(folder: Path) -> str | None:
    """Returns the commit checked out in `folder`, with "-dirty" where code or configs differ from it.

    What a run itself writes (params.yaml, dvc.lock, reports) does not count. None outside a repository or without git.
    """
    git = ["git", "-C", str(folder)]
    try:
        head = subprocess.run([*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
        changed = subprocess.run(
            [*git, "status", "--porcelain", "--", "*.py", "configs", "dvc.yaml"],
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    if head.returncode:
        return None
    return head.stdout.strip() + ("-dirty" if changed.stdout.strip() else "")
