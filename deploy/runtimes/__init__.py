"""The runtimes: one file each, the same four functions in the same order, none knows another.

To add one: a file here, a case in `get_runtime`, its name in `RUNTIMES`, an extra in pyproject.toml, a row in the
tests' matrix.
"""

from deploy.errors import TargetError
from deploy.runtime import Runtime

RUNTIMES = ("onnxruntime", "openvino")


def get_runtime(name: str) -> Runtime:
    """Return a runtime's module; the runtime itself is imported when one of its functions is called.

    Raises:
        TargetError: no such runtime.
    """
    match name:
        case "openvino":
            from deploy.runtimes import openvino

            return openvino
        case "onnxruntime":
            from deploy.runtimes import onnxruntime

            return onnxruntime
        case _:
            msg = f"runtime {name!r} is unknown; known ones: {', '.join(RUNTIMES)}"
            raise TargetError(msg)
