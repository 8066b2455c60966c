"""The measurement's side of its workers: one process per engine, asked one at a time."""

import json
import os
import queue
import random
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any

from deploy.child import end, how_it_ended, start
from deploy.errors import BundleError, EngineError, ImageError, MeasureError, RuntimeMissingError, TargetError

# A query of a large model on a small CPU takes seconds, the placement of its nodes more; a minute of nothing more.
SILENCE_S = 600.0
ENDING_S = 10.0
KINDS = {
    kind.__name__: kind
    for kind in (EngineError, BundleError, ImageError, MeasureError, RuntimeMissingError, TargetError)
}

Say = Callable[[str], None]


@dataclass
class Turns:
    """What one engine has done of a scenario.

    Attributes:
        rounds: samples in nanoseconds of each of its turns.
        spent_ns: length of its turns together, with what lies between queries and without what leads in.
        outcome: the scenario's, once it is over.
    """

    rounds: list[list[int]] = field(default_factory=list)
    spent_ns: int = 0
    outcome: dict[str, Any] | None = None

    @property
    def samples(self) -> list[int]:
        """All samples in the order measured."""
        return [sample for turn in self.rounds for sample in turn]


class Worker:
    """A process that holds one engine; see `deploy.measure.worker` for what it can be asked.

    Args:
        name: of the variant.
        say: takes the lines that it says.
    """

    def __init__(self, name: str, *, say: Say) -> None:
        self.name, self._say = name, say
        self._printed: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self._scratch = tempfile.TemporaryDirectory(prefix="slad-edge-")  # what a killed process leaves goes with it
        self.closed = False
        self._began = time.monotonic()
        child = start(
            "measure.worker",
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._printed,
            text=True,
            env={**os.environ, "TMPDIR": self._scratch.name},
        )
        assert child.stdin is not None
        assert child.stdout is not None
        self._child, self._stdin, self._stdout = child, child.stdin, child.stdout
        self._lines: queue.Queue[str] = queue.Queue()
        threading.Thread(target=self._listen, daemon=True).start()
        self.first_answer_s: float | None = None

    @property
    def pid(self) -> int:
        """Of its process."""
        return int(self._child.pid)

    def close(self) -> None:
        """End the process, and remove what it left."""
        self.closed = True
        end(self._child)
        self._printed.close()
        self._scratch.cleanup()

    def ask(self, do: str, **request: Any) -> Any:
        """Have it do something, and return its answer.

        Raises:
            EngineError: it ended, or says nothing for ten minutes.
            DeployError: what it raised.
        """
        self.send({"do": do, **request})
        return self.receive()["done"]

    def send(self, request: Mapping[str, Any]) -> None:
        """Send one request, without waiting for its answer."""
        try:
            self._stdin.write(json.dumps(request) + "\n")
            self._stdin.flush()
        except OSError:
            self._fail()

    def receive(self) -> dict[str, Any]:
        """Wait for its next answer, and pass on what it says until then.

        Raises:
            EngineError: it ended, or says nothing for ten minutes.
            DeployError: what it raised.
        """
        while True:
            answer = self._next()
            if "error" in answer:
                raise KINDS.get(answer["kind"], EngineError)(answer["error"])
            if "say" not in answer:
                return answer
            if answer["say"] is None:
                self.first_answer_s = time.monotonic() - self._began
            else:
                self._say(f"{self.name}: {answer['say']}")

    def _next(self) -> dict[str, Any]:
        try:
            line = self._lines.get(timeout=SILENCE_S)
        except queue.Empty:
            msg = f"engine {self.name!r}: no sign of life for {SILENCE_S:g} s, ended; build it again"
            raise EngineError(msg) from None
        if not line:
            self._fail()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _listen(self) -> None:
        try:
            for line in self._stdout:
                self._lines.put(line)
        except ValueError:  # closed by `close` while it waited
            pass
        self._lines.put("")

    def _fail(self) -> None:
        try:
            code = self._child.wait(timeout=ENDING_S)
        except subprocess.TimeoutExpired:  # its streams are closed, and it hangs all the same
            self._child.kill()
            code = self._child.wait()
        self._printed.seek(0, 2)
        self._printed.seek(max(0, self._printed.tell() - 4096))
        how = how_it_ended(code, self._printed.read())
        msg = f"engine {self.name!r}: its process {how} while it was measured; build it again, and see `slad doctor`"
        raise EngineError(msg)


def interleave(
    workers: Mapping[str, Worker],
    requests: Mapping[str, Mapping[str, Any]],
    *,
    turn_ns: int,
    seed: int,
    found: dict[str, Turns],
    on_round: Callable[[], None],
) -> dict[str, str]:
    """Run a scenario on all engines, in rounds: in each, every engine has one turn, in random order.

    Args:
        workers: by variant.
        requests: of `do_scenario`, by variant.
        turn_ns: length of a turn in nanoseconds.
        seed: of the order.
        found: by variant, takes what each engine did, as it comes.
        on_round: called after each round.

    Returns:
        Why engines failed, by variant; the others went on.
    """
    shuffle = random.Random(seed).shuffle  # noqa: S311 - an order of measurement, no secret
    failed: dict[str, str] = {}

    def begin(name: str) -> bool:
        workers[name].send({"do": "scenario", **requests[name]})
        workers[name].receive()
        return True

    def turn(name: str) -> bool:
        return _turn(workers[name], found[name], turn_ns)

    def goes_on(step: Callable[[str], bool], name: str) -> bool:
        try:
            return step(name)
        except (EngineError, MeasureError) as error:
            failed[name] = str(error)
            return False

    active = [name for name in workers if goes_on(begin, name)]
    while active:
        shuffle(active)
        active = [name for name in active if goes_on(turn, name)]
        on_round()
    return failed


def _turn(worker: Worker, turns: Turns, turn_ns: int) -> bool:
    """Give an engine a turn, take its samples, and say whether its scenario goes on."""
    worker.send({"go": turn_ns})
    answer = worker.receive()
    turns.rounds.append(answer["turn"])
    turns.spent_ns += answer["ns"]
    if not answer.get("last"):
        return True
    turns.outcome = worker.receive()["done"]
    return False
