"""The devices of targets, this machine and others: tried, examined, several at once, and which variant goes to each."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import Any, TypeVar

from platformdirs import user_cache_path

from deploy.bundle import load_bundle
from deploy.doctor import examine
from deploy.errors import DeployError, EngineError, RuntimeMissingError, TargetError
from deploy.remote.session import Say, understood
from deploy.remote.ssh import plain
from deploy.remote.work import at_work
from deploy.target import read_target
from deploy.trial import unfit
from pipeline.base.compose import target_section, target_sections
from pipeline.base.errors import DataError
from pipeline.base.sections import TargetParams
from pipeline.steps.report.documents import MEASUREMENT_SCHEMA, read_json
from stages.boundary import say

T = TypeVar("T")
Sections = Mapping[str, Mapping[str, Any]]


def remote_sections(names: list[str], *, params: Path, configs: Path) -> dict[str, dict[str, Any]]:
    """Returns the sections of the named targets, or of all that have a host.

    Raises:
        TargetError: one has no host, or none has.
        ParamsError: there is no such target.
    """
    found = {name: target_section(name, params=params, configs=configs) for name in names or target_sections(params)}
    without = [name for name, section in found.items() if not section.get("host")]
    if names and without:
        name = without[0]
        added = "" if name in target_sections(params) else f"+target@targets.{name}={name} "
        msg = f"target {name!r} has no `host`; give it one: `slad sync {added}targets.{name}.host=user@machine`"
        raise TargetError(msg)
    remote = {name: section for name, section in found.items() if name not in without}
    if not remote:
        msg = f"no target of {str(params)!r} has a `host`; name one in its file of {str(configs / 'target')!r}"
        raise TargetError(msg)
    for name, section in remote.items():
        read_target(name, section)
    return remote


def side_by_side(
    sections: Sections, work: Callable[[str, Mapping[str, Any], Say], T]
) -> tuple[dict[str, T], dict[str, DeployError]]:
    """Does the same for several targets, at once where they are on different machines.

    Args:
        sections: by name of the target.
        work: takes name and section of a target, and what takes its lines.

    Returns:
        What came of each target, and the errors of the others; both in the order of `sections`.

    Raises:
        KeyboardInterrupt: at once; what runs on the devices ends when this process does.
    """
    done: dict[str, T] = {}
    failed: dict[str, DeployError] = {}
    speaking = threading.Lock()

    def speak(name: str, line: str) -> None:
        with speaking:
            say(f"{name}: {line}" if len(sections) > 1 else line)

    def do_all(names: list[str]) -> None:
        for name in names:
            try:
                done[name] = work(name, sections[name], lambda line, name=name: speak(name, line))  # type: ignore[misc]
            except DeployError as error:
                failed[name] = error
                if len(sections) > 1:
                    speak(name, f"failed: {error}")

    machines: dict[str, list[str]] = {}
    for name, section in sections.items():
        machines.setdefault(section["host"], []).append(name)
    # A pool would wait for its threads before it lets go of an interrupt.
    threads = [threading.Thread(target=do_all, args=(names,), daemon=True) for names in machines.values()]
    for thread in threads:
        thread.start()
    try:
        for thread in threads:
            thread.join()
    except KeyboardInterrupt as error:
        msg = "what was begun on the devices ends there; releases are switched whole, `slad status` tells which serve"
        raise KeyboardInterrupt(msg) from error
    if lost := sections.keys() - done.keys() - failed.keys():
        msg = f"{', '.join(lost)}: a fault of this program, whose traceback stands above"
        raise RuntimeError(msg)
    return {name: done[name] for name in sections if name in done}, {n: failed[n] for n in sections if n in failed}


def raise_failed(failed: Mapping[str, DeployError], *, total: int) -> None:
    """Raises the one error, or one that names all targets that failed, of the kind of the first.

    Args:
        failed: the errors by target.
        total: number of targets that were tried.

    Raises:
        DeployError: at least one failed.
    """
    if not failed:
        return
    name, first = next(iter(failed.items()))
    if total == 1:
        raise first
    words = f"{name}: {first}" if len(failed) == 1 else f"{', '.join(failed)}; what went wrong stands above"
    msg = f"{len(failed)} of {total} targets failed: {words}"
    raise type(first)(msg) from first


def check_devices(targets: Mapping[str, TargetParams]) -> None:
    """Refuses targets that cannot run on their devices: what fails after a long training fails before it too.

    Raises:
        RuntimeMissingError: only because runtimes are not installed.
        EngineError: a device or provider is not there, or does not execute.
        DeviceError: another machine cannot be reached, or is not fit.
    """
    specs = {name: spec.model_dump() for name, spec in targets.items()}
    found = unfit({name: spec for name, spec in specs.items() if spec["host"] is None})
    remote = {name: spec for name, spec in specs.items() if spec["host"] is not None}
    faults = {name: answer["error"] for name, answer in found.items()}
    kinds: list[type[DeployError]] = [
        RuntimeMissingError if answer["missing"] else EngineError for answer in found.values()
    ]
    if remote:
        failed = side_by_side(remote, _fingerprint)[1]
        faults |= {name: str(error) for name, error in failed.items()}
        kinds += [type(error) for error in failed.values()]
    if faults:
        reasons = "; ".join(f"target {name!r}: {fault}" for name, fault in faults.items())
        msg = f"nothing was run: {reasons}; or run without the target, `slad doctor` says more"
        raise (kinds[0] if len(set(kinds)) == 1 else EngineError)(msg)


def _fingerprint(name: str, section: Mapping[str, Any], say: Say) -> object:
    with at_work(name, section, say=say) as work:
        return work.fingerprint()


def examine_all(names: list[str], *, params: Path, configs: Path) -> dict[str, Any]:
    """Examines this machine for the targets without a host, and the devices of the others.

    Args:
        names: of targets; all of params.yaml where there are none.
        params: the parameters.
        configs: the folder of configurations.

    Returns:
        `here`, a report of `deploy.doctor.examine`, None where only targets of other machines were named; `devices`,
        one by target; and `failed`, what kept others from being examined.
    """
    chosen = {name: target_section(name, params=params, configs=configs) for name in names or target_sections(params)}
    remote = {name: section for name, section in chosen.items() if section.get("host")}
    local = {name: section for name, section in chosen.items() if name not in remote}
    folders = [Path("artifacts"), Path(".dvc/cache"), user_cache_path("slad-edge")]
    here = examine(local, folders=folders, on_progress=say) if local or not names else None
    found, failed = side_by_side(remote, _examine) if remote else ({}, {})
    return {"here": here, "devices": found, "failed": failed}


def _examine(name: str, section: Mapping[str, Any], say: Say) -> dict[str, Any]:
    with at_work(name, section, say=say) as work:
        return work.examine()


@dataclass(frozen=True)
class Choice:
    """What is deployed: a variant, and the sha256 of the engine that was measured, where one was."""

    variant: str
    engine_sha256: str | None


def choose(name: str, section: Mapping[str, Any], *, wish: str | None, reports: Path, onnx: Path) -> Choice:
    """Returns the variant that was wished for, or the one that the report chose for a target, as it was measured.

    Raises:
        TargetError: nothing was wished for, and the target has no valid verdict, none of its variants keeps the
            budget, or model, runtime or precision are others by now.
        BundleError: the model's bundle is faulty.
    """
    if wish is not None:
        return Choice(wish, None)
    remedy = "run `slad repro`, or name a variant with --variant"
    try:
        verdict = read_json(reports / "summary.json")["targets"].get(name)
        record = None if verdict is None else read_json(reports / f"{name}.json", schema=MEASUREMENT_SCHEMA)
    except DataError as cause:
        msg = f"target {name!r} has no verdict ({cause}); {remedy}"
        raise TargetError(msg) from cause
    if verdict is None or record is None:
        msg = f"target {name!r} has no verdict in {reports / 'summary.json'}; {remedy}"
        raise TargetError(msg)
    variant = verdict["chosen"]
    measured = record["variants"].get(variant)
    if not verdict["valid"] or (measured and measured["over_budget"]):
        msg = f"target {name!r}: the report decides for no variant: {verdict['words']} Name one with --variant"
        raise TargetError(msg)
    if not measured or not _is_of(verdict["variants"][variant], measured) or not _fits(section, variant, record, onnx):
        msg = f"target {name!r}: it, its model or its record has changed since {variant!r} was chosen; {remedy}"
        raise TargetError(msg)
    return Choice(variant, measured["engine_sha256"])


def _is_of(shown: Mapping[str, Any], measured: Mapping[str, Any]) -> bool:
    """Says whether a summary's figures are those of a record: no two runs have the same to all digits."""
    latency = measured["latency_ms"]
    figures = latency["p50"], latency["p90"], measured["engine_bytes"]
    return (shown["latency_p50_ms"], shown["latency_p90_ms"], shown["size_bytes"]) == figures


def _fits(section: Mapping[str, Any], variant: str, record: Mapping[str, Any], onnx: Path) -> bool:
    """Says whether a target still asks for what was measured, of the model that there is now."""
    spec, measured = section["variants"].get(variant), record["variants"][variant]
    if spec is None or (section["runtime"], spec["precision"]) != (record["runtime"], measured["precision"]):
        return False
    return bool(load_bundle(onnx / spec["onnx"]).onnx_sha256 == measured["onnx_sha256"])


def deployed_line(variant: str, result: Mapping[str, Any]) -> str:
    """Says what became of a deployment."""
    if not result["new"]:
        return plain(f"release {result['release']} ({variant}) serves already; {result['line']}")
    removed = f"; removed {', '.join(result['removed'])}" if result["removed"] else ""
    sent = f"{result['sent'] / 1e6:.2f} MB sent" if result["sent"] else "nothing to send"
    return plain(
        f"release {result['release']} ({variant}) serves now; {sent}, engine {result['engine']}, "
        f"{result['line']}{removed}"
    )


def rolled_back_line(result: Mapping[str, Any]) -> str:
    """Says what became of a rollback."""
    return plain(f"release {result['release']} serves instead of {result['before'] or 'none'}; {result['line']}")


def status_text(found: Mapping[str, Any], sections: Sections) -> str:
    """Shows the releases of each target, newest first, with the one that serves marked."""
    parts = []
    for name, each in found.items():
        with understood(sections[name]["host"]):
            rows = [_row(row, each["current"]) for row in reversed(each["releases"])]
        widths = [max(map(len, column)) for column in zip_longest(*(row[:-1] for row in rows), fillvalue="")]
        lines = ["  ".join(map(str.ljust, row, [*widths, 0])).rstrip() for row in rows] or ["no release yet"]
        parts.append("".join([f"{name} on {sections[name]['host']}\n", *(f"  {line}\n" for line in lines)]))
    return "\n".join(parts)


def _row(release: Mapping[str, Any], current: str | None) -> list[str]:
    words = ["current" if release["release"] == current else "kept", release["release"]]
    if "error" in release:
        words.append(f"broken: {release['error']}")
    else:
        words += [release["variant"], release["model"], f"engine {release['engine_sha256'][:12]}", release["runtime"]]
        words.append(f"{release['device_clock'][:16].replace('T', ' ')} UTC by the device's clock")
    return [plain(word) for word in words]
