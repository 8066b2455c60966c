"""An engine in a process of its own: its build ends in time, and a crash of its runtime is only an error."""

import json
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any

from deploy.bundle import load_bundle
from deploy.child import end, how_it_ended, start, voice
from deploy.conditions.cpu import memory
from deploy.errors import BundleError, DeployError, EngineError, RuntimeMissingError
from deploy.golden import GoldenCheck, check_golden
from deploy.runtime import Placement, Settings, Source
from deploy.runtimes import get_runtime

SAY_EVERY_S = 10.0
# Of the host's memory; a GPU's is the runtime's own to speak of.
NO_MEMORY = re.compile(r"bad_alloc|MemoryError|failed to allocate memory for requested", re.IGNORECASE)
SPARE = "end other programs, add swap, or take a smaller model"
KINDS = {kind.__name__: kind for kind in (EngineError, BundleError, RuntimeMissingError)}


@dataclass(frozen=True)
class Built:
    """What is known of an engine that was built, loaded and run once on the golden inputs.

    Attributes:
        told: what the runtime was told, by its own names.
        seconds: that the build took.
        golden: of its answers.
        placement: of its nodes.
    """

    told: Mapping[str, Any]
    seconds: float
    golden: GoldenCheck
    placement: Placement


def build_isolated(
    runtime: str,
    bundle: Path,
    engine_path: Path,
    settings: Settings,
    *,
    limit_s: float,
    on_wait: Callable[[float], None],
) -> Built:
    """Build an engine in a child process, load it there, and run the golden inputs.

    Args:
        runtime: its name.
        bundle: folder of the model.
        engine_path: the file to write.
        settings: how it is built.
        limit_s: seconds after which the child is killed.
        on_wait: called with the seconds that have passed, every `SAY_EVERY_S`.

    Raises:
        EngineError: the runtime refused the model or its own engine, the time was up, memory ran out, or it crashed.
        BundleError: the bundle has no golden answers for this precision.
        RuntimeMissingError: the runtime is not installed.
    """
    request = {"bundle": str(bundle), "engine": str(engine_path), **_of(runtime, settings)}
    what = f"{bundle}: {runtime} in {settings.precision}"
    answer = _ask(request, what, limit_s=limit_s, on_wait=on_wait)
    placement = answer["placement"] | {"strays": tuple(answer["placement"]["strays"])}
    return Built(answer["told"], answer["seconds"], GoldenCheck(**answer["golden"]), Placement(**placement))


def _of(runtime: str, settings: Settings) -> dict[str, Any]:
    asked = {"precision": settings.precision, "threads": settings.threads, "options": dict(settings.options)}
    return {"runtime": runtime, "settings": asked}


def _ask(request: dict[str, Any], what: str, *, limit_s: float, on_wait: Callable[[float], None]) -> Any:
    """Have a child do the work, and return its answer or raise in this process what went wrong in that one."""
    free = _free_mb()
    with tempfile.TemporaryFile() as printed:
        code, answer = _run(json.dumps(request), printed, limit_s=limit_s, on_wait=on_wait)
        words = _last_words(printed)
    if code is None:
        msg = f"{what}: the build was ended after {limit_s:g} s; raise `build_limit_s` of the target"
        raise EngineError(msg)
    try:
        result: dict[str, Any] = json.loads(answer)
    except ValueError as cause:
        raise EngineError(_death(what, code, words, free)) from cause
    if "error" not in result:
        return result["done"]
    if NO_MEMORY.search(result["error"]):
        msg = f"{what}: not enough memory for the build, {free}; {SPARE}"
        raise EngineError(msg)
    raise KINDS.get(result["kind"], EngineError)(result["error"])


def _run(
    request: str, printed: IO[bytes], *, limit_s: float, on_wait: Callable[[float], None]
) -> tuple[int | None, str]:
    """Run the child; return its exit code, None where the time was up, and its answer."""
    began = time.monotonic()
    child = start("isolated", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=printed, text=True)
    say: str | None = request
    try:
        while True:
            left = limit_s - (time.monotonic() - began)
            if left <= 0:
                return None, ""
            try:
                answer, _ = child.communicate(say, timeout=min(SAY_EVERY_S, left))
            except subprocess.TimeoutExpired:
                say = None  # it has been sent
                on_wait(time.monotonic() - began)
            else:
                return child.returncode, answer
    finally:
        end(child)


def _death(what: str, code: int, printed: bytes, free: str) -> str:
    if -code == signal.SIGKILL:
        return f"{what}: the build was killed, most often because memory ran out, {free}; {SPARE}"
    if NO_MEMORY.search(printed.decode(errors="replace")):
        return f"{what}: not enough memory for the build, {free}; {SPARE}"
    ended = how_it_ended(code, printed)
    remedy = "check the model" if code < 0 else "check the runtime's installation"
    return f"{what}: the process of the build {ended}; {remedy}, and see `slad doctor`"


def _last_words(printed: IO[bytes]) -> bytes:
    printed.seek(0, 2)
    printed.seek(max(0, printed.tell() - 4096))
    return printed.read()


def _free_mb() -> str:
    free = memory()["available_mb"]
    return "free memory unknown" if free is None else f"{free} MB were free"


def main() -> None:
    """Read a request from the standard input, do it, and answer on the standard output."""
    with voice() as answers:
        request = json.load(sys.stdin)
        answers.write(json.dumps(_answer(request)))


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    path, settings = Path(request["engine"]), Settings(**request["settings"])
    try:
        return {"done": _built(request["runtime"], Path(request["bundle"]), path, settings)}
    except DeployError as error:
        return {"kind": type(error).__name__, "error": str(error)}
    except MemoryError:
        return {"kind": EngineError.__name__, "error": MemoryError.__name__}
    except OSError as error:
        words = f"{path}: cannot be written or read ({error}); check the folder, its permissions and the free space"
        return {"kind": EngineError.__name__, "error": words}


def _built(name: str, folder: Path, path: Path, settings: Settings) -> dict[str, Any]:
    runtime, bundle = get_runtime(name), load_bundle(folder)
    began = time.perf_counter()
    told = runtime.build(Source(onnx=bundle.onnx, program=bundle.program), path, settings)
    seconds = time.perf_counter() - began
    if not path.is_file():
        msg = f"{path}: {name} said that it built the engine, but left no file; build it again"
        raise EngineError(msg)
    engine = runtime.load(path, settings)
    golden = check_golden(engine, bundle, precision=settings.precision)
    return {"told": told, "seconds": seconds, "golden": asdict(golden), "placement": asdict(engine.placement())}
