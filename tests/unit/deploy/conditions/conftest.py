"""Machines made of recorded files: a test plants what a real one has shown, and the readers find nothing else."""

from pathlib import Path

import pytest

from deploy import kernel, nvidia
from deploy.conditions import cpu, jetson, limits, meters, nvml, state, watch

RECORDED = Path(__file__).parent / "recorded"
SYS, PROC = "sys", "proc"
ROOTS = {
    cpu: {
        "CPUS": "sys/devices/system/cpu", "THERMAL": "sys/class/thermal", "HWMON": "sys/class/hwmon",
        "PRESSURE": "proc/pressure/cpu", "CPUINFO": "proc/cpuinfo", "MEMINFO": "proc/meminfo",
    },
    jetson: {
        "DEVFREQ": "sys/class/devfreq", "THERMAL": "sys/class/thermal", "HWMON": "sys/class/hwmon",
        "EMC_CLOCK": "sys/kernel/debug/bpmp/debug/clk/emc/rate",
    },
    limits: {
        "CGROUPS": "sys/fs/cgroup", "OWN_CGROUP": "proc/self/cgroup", "INIT_CGROUP": "proc/1/cgroup",
        "CPUINFO": "proc/cpuinfo", "MEMINFO": "proc/meminfo",
    },
    meters: {"POWERCAP": "sys/class/powercap"},
    state: {"PLATFORM_PROFILE": "sys/firmware/acpi/platform_profile"},
    watch: {"PROC": "proc"},
    kernel: {"CPUINFO": "proc/cpuinfo", "MEMINFO": "proc/meminfo"},
    nvidia: {"TEGRA_RELEASE": "etc/nv_tegra_release", "DEVICE_TREE_MODEL": "proc/device-tree/model"},
}  # fmt: skip


def recorded(name: str) -> str:
    """The text of a recording, without the lines in front that say where it is from."""
    head, _, text = (RECORDED / name).read_text().partition("\n\n")
    assert all(line.startswith("#") for line in head.splitlines()), name
    return text


class Machine:
    """A machine without any file or command; tests give it some."""

    def __init__(self, root: Path) -> None:
        self.root = root
        (root / "bin").mkdir()

    def write(self, path: str, text: str) -> Path:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        return file

    def plant(self, name: str, *, under: str) -> None:
        """Write a recording of `path: text` lines below a folder."""
        for line in recorded(name).splitlines():
            path, _, text = line.partition(": ")
            self.write(f"{under}/{path}", text.replace("\\n", "\n").replace("\\t", "\t") + "\n")

    def command(self, name: str, script: str) -> None:
        file = self.write(f"bin/{name}", f"#!/bin/sh\n{script}\n")
        file.chmod(0o755)

    def jetson(self) -> None:
        self.write("etc/nv_tegra_release", "# R36 (release), REVISION: 5.0, GCID: 1, BOARD: generic\n")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    for module, names in ROOTS.items():
        for name, place in names.items():
            monkeypatch.setattr(module, name, tmp_path / place)
    monkeypatch.setattr(limits, "CONTAINER_MARKS", (tmp_path / "dockerenv",))
    monkeypatch.setattr(nvml, "LIBRARY", "libno-such-library.so.1")
    # The commands of a test are scripts for the shell, which is looked for by its own path.
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return Machine(tmp_path)
