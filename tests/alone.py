"""Runs a function of a test module in an interpreter of its own."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]


def alone(function: Callable[..., None], *paths: Path) -> None:
    """Calls `function` with paths where no other test has loaded an inference runtime.

    In a process in which OpenVINO had run, tensors that worker processes shared were seen to change, or it crashed.
    """
    code = f"from {function.__module__} import {function.__name__} as f; from pathlib import Path; import sys; "
    code += "f(*map(Path, sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, paths)], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
