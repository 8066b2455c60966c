"""What this machine is, what works on it really, and for each target what will not work, why, and what to do."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from deploy.conditions.rules import too_busy
from deploy.document import SCHEMA
from deploy.errors import EngineError, RuntimeMissingError
from deploy.runtimes import RUNTIMES, get_runtime
from deploy.system import ONNXRUNTIMES, facts
from deploy.target import Target, read_target
from deploy.trial import LIMIT_S, try_runtime

WORKS, FAILS = "will work", "will not work"
DISK_GB = 2  # engines, their caches and copies of a few variants
MEMORY_MB = 1024  # a runtime with its libraries, and a build
AT_ONCE = 2  # every runtime loads its libraries: a small board has not the memory for all of them together


def examine(
    specs: Mapping[str, Any],
    *,
    folders: Sequence[Path],
    limit_s: float = LIMIT_S,
    on_progress: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Examine this machine, for targets that are or will be run on it.

    Args:
        specs: sections of params.yaml by target.
        folders: where files will be written.
        limit_s: seconds that one process that tries a runtime may take.
        on_progress: called with one line before what takes long.

    Returns:
        JSON values: `facts`, `runtimes` and `targets` by name, and `warnings`.

    Raises:
        TargetError: a section is wrong.
    """
    targets = {name: read_target(name, spec) for name, spec in specs.items()}
    found = facts(folders)
    on_progress(f"trying {', '.join(RUNTIMES)}, each in a process of its own ...")

    def trial(runtime: str) -> dict[str, Any]:
        asked = {name: specs[name] for name, target in targets.items() if target.runtime == runtime}
        return try_runtime(runtime, asked, limit_s=limit_s)

    with ThreadPoolExecutor(max_workers=AT_ONCE) as pool:
        trials = dict(zip(RUNTIMES, pool.map(trial, RUNTIMES), strict=True))
    return {
        "schema": SCHEMA,
        "facts": found,
        "runtimes": {name: {key: each[key] for key in ("version", "places")} for name, each in trials.items()},
        "targets": {
            name: _judge(target, trials[target.runtime]["targets"][name], found) for name, target in targets.items()
        },
        "warnings": _warnings(found),
    }


def check_targets(targets: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse targets of which one will not work.

    Args:
        targets: by name, what reports say of them.

    Raises:
        RuntimeMissingError: only because runtimes are not installed.
        EngineError: for another reason.
    """
    failed = {name: each for name, each in targets.items() if each["verdict"] == FAILS}
    if failed:
        if len(failed) == 1:
            [(name, each)] = failed.items()
            msg = f"target {name!r} will not work on its device: {'; '.join(each['reasons'])}"
        else:
            msg = (
                f"{len(failed)} of {len(targets)} targets will not work on their devices: "
                f"{', '.join(failed)}; the report says why, and what to do"
            )
        raise (RuntimeMissingError if all(each["missing"] for each in failed.values()) else EngineError)(msg)


def _judge(target: Target, answer: Mapping[str, Any], found: Mapping[str, Any]) -> dict[str, Any]:
    value: Mapping[str, Any] = answer.get("value") or {"place": None, "variants": {}}
    variants: Mapping[str, str | None] = value["variants"]
    reasons = [answer["error"]] if "error" in answer else []
    if variants and all(variants.values()):
        reasons.append(f"no variant can run here; add one in another precision to configs/target/{target.name}.yaml")
    mode = found["state"]["power_mode"]
    wanted = target.conditions.power_mode
    if wanted not in (None, mode):
        reasons.append(
            f"the power mode is {mode!r}, and only in {wanted!r} are measurements valid; set it "
            "(on a Jetson `sudo nvpmodel -p --verbose` lists the modes) or change the target's `conditions.power_mode`"
        )
    return {
        **_outline(target),
        "place": value["place"],
        "variants": variants,
        "power_mode": {"wanted": wanted, "found": mode},
        "verdict": FAILS if reasons else WORKS,
        "reasons": reasons,
        "missing": bool(answer.get("missing")),
    }


def _outline(target: Target) -> dict[str, Any]:
    known = get_runtime(target.runtime).OPTIONS
    chosen = {name: value for name, value in target.options.items() if value != known[name].default}
    return {"runtime": target.runtime, "host": target.host, "options": chosen}


def _warnings(found: Mapping[str, Any]) -> list[str]:
    """Say what of the machine's facts will spoil something, and what to do."""
    warnings = []
    copies = [name for name in ONNXRUNTIMES if name in found["packages"]]
    if len(copies) > 1:
        warnings.append(
            f"{' and '.join(copies)} are installed over one another: they share one folder, and the one installed last "
            f"is what runs; run `pip uninstall {' '.join(copies)}`, then install one of them"
        )
    warnings += [
        f"only {disk['free_gb']} GB of disk are free for {', '.join(disk['for'])}; make room, {DISK_GB} GB at least"
        for disk in found["disks"]
        if disk["free_gb"] < DISK_GB
    ]
    available, limit = found["memory"]["available_mb"], found["memory"]["limit_mb"]
    room = min((each for each in (available, limit) if each is not None), default=None)
    if room is not None and room < MEMORY_MB:
        warnings.append(f"only {room} MB of memory are free: a build may be killed; end other programs")
    busy = too_busy(found["state"])
    if busy:
        warnings.append(f"the machine is busy, {busy}: measurements are not valid until it falls")
    warnings += [
        f"{device['device']} ({device['vendor']}) is closed to this account; run `sudo usermod -aG render $USER` and "
        "log in again"
        for device in found["other_accelerators"]
        if not device["may_open"]
    ]
    return warnings
