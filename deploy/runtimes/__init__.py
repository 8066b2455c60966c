"""The runtimes: one file each with what `deploy.runtime.Runtime` names, and none knows another.

To add one: a file here, its extra in pyproject.toml, a target in configs/target/, a row in the tests' matrix.
"""

import importlib
from pathlib import Path

from deploy.errors import TargetError
from deploy.runtime import Runtime

RUNTIMES = tuple(sorted(file.stem for file in Path(__file__).parent.glob("[a-z]*.py")))


def get_runtime(name: str) -> Runtime:
    """Return a runtime's module; the runtime itself is imported when one of its functions is called.

    Raises:
        TargetError: no such runtime.
    """
    if name not in RUNTIMES:
        msg = f"runtime {name!r} is unknown; known ones: {', '.join(RUNTIMES)}"
        raise TargetError(msg)
    runtime: Runtime = importlib.import_module(f"deploy.runtimes.{name}")
    return runtime
