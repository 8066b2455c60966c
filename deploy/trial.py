"""Runtimes tried for real, in processes of their own: one that crashes or hangs takes nothing else with it."""

import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from deploy.child import end, how_it_ended, start, voice
from deploy.errors import DeployError, RuntimeMissingError
from deploy.runtimes import get_runtime
from deploy.target import read_target

LIMIT_S = 120
VERSION, PLACES, TARGET = "version", "places", "target"

Question = tuple[str, str]
Answer = dict[str, Any]


def unfit(specs: Mapping[str, Any], *, limit_s: float = LIMIT_S) -> dict[str, Answer]:
    """Try the device that each target names.

    Args:
        specs: sections of params.yaml by target, already checked.
        limit_s: seconds that one process may take.

    Returns:
        By target, {"error": ..., "missing": ...} of those that do not execute here.
    """
    found: dict[str, Answer] = {}
    for runtime in dict.fromkeys(spec["runtime"] for spec in specs.values()):
        mine = {name: spec for name, spec in specs.items() if spec["runtime"] == runtime}
        found |= try_runtime(runtime, mine, places=False, limit_s=limit_s)["targets"]
    return {name: answer for name, answer in found.items() if "error" in answer}


def try_runtime(
    runtime: str, specs: Mapping[str, Any], *, places: bool = True, limit_s: float = LIMIT_S
) -> dict[str, Any]:
    """Ask a runtime for its version, what each of `specs` gets on this device, and all of its places.

    Args:
        runtime: one of `deploy.runtimes.RUNTIMES`.
        specs: sections of params.yaml by target, all of this runtime and already checked.
        places: whether all of its places are tried too.
        limit_s: seconds that one process may take.

    Returns:
        `version`, `places`, and `targets` by name; each is {"value": ...}, or {"error": ..., "missing": ...}, where
        `missing` says whether the error is that the runtime is not installed.
    """
    questions = [(VERSION, ""), *((TARGET, name) for name in specs), *([(PLACES, "")] if places else [])]
    answers: list[Answer] = []
    while len(answers) < len(questions):
        answers += _ask(runtime, questions[len(answers) :], specs, limit_s=limit_s)
        if "error" in answers[0]:  # the rest would say the same, each after its own wait
            answers = [answers[0]] * len(questions)
    return {
        "version": answers[0],
        "targets": dict(zip(specs, answers[1 : 1 + len(specs)], strict=True)),
        "places": answers[-1] if places else {},
    }


def _ask(runtime: str, questions: Sequence[Question], specs: Mapping[str, Any], *, limit_s: float) -> list[Answer]:
    """Return the answers of one process; where it ends before its time, the last one says how."""
    given = json.dumps({"runtime": runtime, "questions": questions, "specs": dict(specs)})
    child = start("trial", stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    try:
        said, printed = child.communicate(given.encode(), timeout=limit_s)
        ended = how_it_ended(child.returncode, printed)
    except subprocess.TimeoutExpired as late:
        said, ended = late.stdout or b"", f"gave no answer within {limit_s:g} s"
    finally:
        end(child)
    lines = said.decode(errors="replace").split("\n")[:-1]  # what follows the last newline is an answer cut short
    answers: list[Answer] = [json.loads(line) for line in lines]
    if len(answers) < len(questions):
        answers.append({"error": f"the process that tried it {ended}", "missing": False})
    return answers


def main() -> None:
    """Answer the questions on the standard input, one line of JSON each, as the process that `try_runtime` starts."""
    given = json.load(sys.stdin)
    with voice() as answers:
        for question in given["questions"]:
            try:
                reply: Answer = {"value": _reply(given["runtime"], tuple(question), given["specs"])}
            except DeployError as error:
                reply = {"error": str(error), "missing": isinstance(error, RuntimeMissingError)}
            answers.write(json.dumps(reply) + "\n")
            answers.flush()


def _reply(name: str, question: Question, specs: Mapping[str, Any]) -> Any:
    runtime = get_runtime(name)
    kind, about = question
    if kind == VERSION:
        return runtime.version()
    if kind == PLACES:
        return dict(runtime.places())
    target = read_target(about, specs[about])
    place = runtime.probe(target.options)
    variants = {variant.name: runtime.supports(target.settings(variant.precision)) for variant in target.variants}
    return {"place": place, "variants": variants}
