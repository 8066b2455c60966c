"""What the device is: its fingerprint, stable between runs.

An engine belongs to the machine it was built on. The fingerprint holds only what is stable: no load, temperature,
host name, kernel build or path, so that it changes exactly when engines must be built again.
"""

import hashlib
import os
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.arm import core_name
from deploy.document import SCHEMA, read_document
from deploy.errors import EngineError
from deploy.files import system_text
from deploy.kernel import CPUINFO, MEMINFO, first_match
from deploy.nvidia import board, l4t
from deploy.runtimes import get_runtime
from deploy.target import Target

MACHINE_ID = Path("/etc/machine-id")

SALT = b"slad-edge machine_id "

# The instruction sets that decide which kernels a runtime picks; the full list of flags changes with the kernel.
FEATURES = frozenset({
    "sse4_1", "sse4_2", "avx", "avx2", "fma", "f16c", "avx_vnni",
    "avx512f", "avx512bw", "avx512vl", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16",
    "neon", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16",
    "sve", "sve2", "svei8mm", "svebf16", "sme", "sme2",
})  # fmt: skip
BF16_FEATURES = frozenset({"avx512_bf16", "amx_bf16", "bf16", "svebf16"})


def fingerprint(target: Target) -> dict[str, Any]:
    """Describe this device as the target's engines see it.

    Raises:
        RuntimeMissingError: the target's runtime is not installed.
        EngineError: the device or provider that the target names is not there or does not execute.
    """
    runtime = get_runtime(target.runtime)
    features = cpu_features()
    return {
        "schema": SCHEMA,
        "target": target.name,
        "runtime": target.runtime,
        "runtime_version": runtime.version(),
        "place": runtime.probe(target.options),
        "machine_id": _machine_id(),
        "architecture": platform.machine(),
        "system": platform.system(),
        "cpu": {"model": cpu_model(), "cores": _cores(), "features": features},
        "memory_gb": _memory_gb(),
        "l4t": l4t(),
        "python": ".".join(platform.python_version_tuple()[:2]),
        "bf16": not BF16_FEATURES.isdisjoint(features),
    }


def differences(here: Mapping[str, Any], there: Mapping[str, Any], *, place: str = "the manifest") -> list[str]:
    """Compare two fingerprints, all fields but `target`.

    Returns:
        One phrase per field that differs: "cpu.model 'X' here, 'Y' in the manifest".
    """
    flat_here, flat_there = _flatten(here), _flatten(there)
    keys = [*flat_here, *(key for key in flat_there if key not in flat_here)]
    return [
        f"{key} {flat_here.get(key)!r} here, {flat_there.get(key)!r} in {place}"
        for key in keys
        if key != "target" and flat_here.get(key) != flat_there.get(key)
    ]


def check_device(device: Mapping[str, Any], *, target: Target) -> None:
    """Refuse to work under a fingerprint that is not this machine's own.

    Raises:
        EngineError: the fingerprint on file differs from the one taken now.
        RuntimeMissingError: the runtime is not installed.
    """
    found = differences(fingerprint(target), device, place="the fingerprint on file")
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        msg = (
            f"target {target.name!r}: this device is not the one on file: {'; '.join(found[:3])}{more}; "
            f"run `dvc repro probe@{target.name}`"
        )
        raise EngineError(msg)


def read_fingerprint(path: Path) -> dict[str, Any]:
    """Read a fingerprint that `fingerprint` made and `probe` wrote.

    Raises:
        EngineError: the file is missing or is no fingerprint.
    """
    document = read_document(path, error=EngineError, remedy="write it again with `dvc repro probe@<target>`")
    for key in ("target", "runtime", "runtime_version"):
        document.text(key)
    return dict(document.content)


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping):
            flat.update(_flatten(item, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = item
    return flat


def cpu_features() -> list[str]:
    """Return the known instruction sets, sorted; `Features` is Arm's spelling of `flags`."""
    flags = first_match(CPUINFO, r"^(?:flags|Features)\s*:(.*)$") or ""
    return sorted(FEATURES.intersection(flags.split()))


def cpu_model() -> str:
    """Name the CPU; an Arm kernel gives numbers only, so a board's own name comes first, then the first core's."""
    named = first_match(CPUINFO, r"^model name\s*:(.*)$") or board()
    if named:
        return named
    implementer = first_match(CPUINFO, r"^CPU implementer\s*:(.*)$")
    part = first_match(CPUINFO, r"^CPU part\s*:(.*)$")
    if implementer and part:
        return core_name(implementer, part)
    return platform.processor() or platform.machine() or "unknown"


def _machine_id() -> str | None:
    """Hash the machine's id with a salt: records are published, the id itself is not to be."""
    text = system_text(MACHINE_ID)
    return hashlib.sha256(SALT + text.encode()).hexdigest()[:16] if text else None


def _cores() -> int:
    """Count the cores there are, also those that a Jetson's power mode has switched off."""
    if hasattr(os, "sysconf") and "SC_NPROCESSORS_CONF" in os.sysconf_names:
        return max(1, os.sysconf("SC_NPROCESSORS_CONF"))
    return os.cpu_count() or 1


def _memory_gb() -> int | None:
    total = first_match(MEMINFO, r"^MemTotal:\s*(\d+) kB")
    return round(int(total) / 2**20) if total else None
