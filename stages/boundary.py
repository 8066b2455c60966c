"""The process boundary of every stage: expected errors become one line and an exit code, the rest a traceback.

Exit codes: 0 done, 2 parameters or target options, 3 data, 4 weights or models, 5 parity or accuracy budget, 6 bundle,
7 engine, 8 runtime missing, 9 measurement, 10 another machine, 11 over budget, 12 regression, 130 interrupted.
"""

import os
import sys
from collections.abc import Callable
from typing import TextIO

from deploy.errors import DeployError
from pipeline.base.errors import PipelineError

DEBUG = "SLAD_DEBUG"  # set to anything: expected errors show their traceback too


def say(line: str) -> None:
    """Writes a line for the user, at once."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def _one_line(error: Exception) -> str:
    """What an error says; where torch hands one on from a process that loads images, without its traceback there."""
    words = str(error)
    if "Original Traceback" in words:
        return words.strip().splitlines()[-1].split(": ", 1)[-1]
    return words


def run(stage: Callable[[], object], *, voice: TextIO | None = None) -> None:
    """Runs `stage` and exits: 0 when it returns, an error's own code when it raises an expected one.

    Args:
        stage: to be run.
        voice: where the line of an expected error goes; None is the standard error stream.
    """
    try:
        stage()
    except (PipelineError, DeployError) as error:
        if os.environ.get(DEBUG):
            raise
        (voice or sys.stderr).write(f"error: {_one_line(error)}\n")
        sys.exit(error.exit_code)
    except KeyboardInterrupt as error:
        (voice or sys.stderr).write(f"interrupted; {error or 'nothing was changed'}\n")
        sys.exit(130)
