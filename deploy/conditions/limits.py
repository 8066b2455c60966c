"""What keeps this process from the whole machine: a container, limits of its control group and of those above it."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.files import system_text
from deploy.kernel import CPUINFO, MEMINFO, first_match

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUP = Path("/proc/self/cgroup")
INIT_CGROUP = Path("/proc/1/cgroup")
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))


def limits() -> dict[str, Any]:
    """Return the limits: `cpus` (time of so many cores), `memory_mb` (2^20 bytes), and `stopped`, see `stopped`."""
    return {"cpus": cpu_limit(), "memory_mb": memory_limit_mb(), "stopped": stopped()}


def container() -> str | None:
    """Say what shows that this is a container; without a mark it may still be one."""
    for mark in CONTAINER_MARKS:
        if mark.exists():
            return f"{mark} is there"
    named = re.search(r"docker|kubepods|containerd|lxc|libpod", system_text(INIT_CGROUP) or "")
    return f"{INIT_CGROUP} names {named[0]}" if named else None


def virtual_machine() -> bool:
    """Say whether the CPU names a hypervisor, which x86 ones do."""
    return " hypervisor" in (system_text(CPUINFO) or "")


def cpu_limit() -> float | None:
    """Return the number of cores whose time the control groups allow; None without a limit."""
    allowed = []
    for group in _groups("cpu"):
        said = (system_text(group / "cpu.max") or "").split()
        if len(said) != 2:  # version 1 of control groups has two files, and -1 for no limit
            said = [system_text(group / f"cpu.cfs_{each}_us") or "" for each in ("quota", "period")]
        if all(each.isdecimal() and int(each) for each in said):
            allowed.append(int(said[0]) / int(said[1]))
    return min(allowed, default=None)


def memory_limit_mb() -> int | None:
    """Return the most memory that the control groups allow in megabytes (2^20 bytes); None where all of it is."""
    total = first_match(MEMINFO, r"^MemTotal:\s*(\d+) kB")
    allowed = []
    for group in _groups("memory"):
        said = system_text(group / "memory.max") or system_text(group / "memory.limit_in_bytes") or ""
        if said.isdecimal():
            allowed.append(int(said) >> 20)
    below = [limit for limit in allowed if total is not None and limit < int(total) // 1024]
    return min(below, default=None)


def stopped() -> int | None:
    """Count how often the limits of CPU time have stopped these control groups; None where nothing counts."""
    counts = [first_match(group / "cpu.stat", r"^nr_throttled (\d+)") for group in _groups("cpu")]
    known = [int(count) for count in counts if count]
    return sum(known) if known else None


def _groups(controller: str) -> Iterator[Path]:
    """Yield the folders of this process's own group and of all above it, of both versions of control groups.

    In a container the path can be the host's and the folders the container's own; those that are not there are left
    out, and the topmost one remains.
    """
    places = [(CGROUPS, "/"), (CGROUPS / controller, "/")]
    for line in (system_text(OWN_CGROUP) or "").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            places += [(CGROUPS, path), (CGROUPS / "unified", path)]
        elif controller in controllers.split(","):
            places += [(CGROUPS / controllers, path), (CGROUPS / controller, path)]
    seen = set()
    for root, path in places:
        own = root / path.lstrip("/")
        for group in (own, *own.parents):
            if not group.is_relative_to(root) or ".." in group.parts:
                break
            folder = group.resolve()
            if folder not in seen and folder.is_dir():
                seen.add(folder)
                yield group
