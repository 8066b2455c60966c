"""The machine's facts, from files and commands that a test writes itself."""

import os
from collections import namedtuple
from pathlib import Path

import pytest

from deploy import device, nvidia, system
from deploy.conditions import cpu, limits, state
from deploy.nvidia import parse_nvpmodel
from deploy.system import disks, facts, libraries, packages

# Recorded on JetPack 6; the second with the fan's mode in front, as JetPack 5 prints it.
NVPMODEL = "NV Power Mode: MAXN_SUPER\n2\n"
NVPMODEL_5 = "NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n0\n"
TEGRA = "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64, DATE: Wed Jan  8 2025\n"
FILES = {
    system: ("DEVICES", "GRAPHICS", "CUDA_FOLDERS"),
    device: ("CPUINFO", "MEMINFO"),
    cpu: ("CPUINFO", "MEMINFO", "CPUS", "THERMAL", "HWMON"),
    limits: ("CPUINFO", "MEMINFO", "CGROUPS", "OWN_CGROUP", "INIT_CGROUP"),
    state: ("PLATFORM_PROFILE",),
    nvidia: ("TEGRA_RELEASE", "DEVICE_TREE_MODEL"),
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine without any file or command; `write` gives it some."""
    for module, names in FILES.items():
        for name in names:
            monkeypatch.setattr(module, name, tmp_path / name)
    monkeypatch.setattr(limits, "CONTAINER_MARKS", (tmp_path / "dockerenv",))
    monkeypatch.setattr(system, "_driver_cuda", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    monkeypatch.delenv("LD_LIBRARY_PATH", raising=False)
    (tmp_path / "bin").mkdir()
    return tmp_path


def write(file: Path, text: str = "") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)


def command(folder: Path, name: str, printed: str) -> None:
    file = folder / "bin" / name
    file.write_text(f"#!/bin/sh\nprintf '%s' '{printed}'\n")
    file.chmod(0o755)


def test_a_machine_that_says_nothing(machine):
    found = facts([machine])
    assert (found["nvidia"]["board"], found["nvidia"]["l4t"], found["nvidia"]["gpus"]) == (None, None, [])
    assert found["memory"] == {"total_mb": None, "available_mb": None, "limit_mb": None}
    assert (found["system"]["container"], found["other_accelerators"]) == (None, [])
    assert (found["cpu"]["limit"], found["state"]["power_mode"]) == (None, None)


def test_a_jetson(machine):
    write(machine / "TEGRA_RELEASE", TEGRA)
    write(machine / "DEVICE_TREE_MODEL", "NVIDIA Jetson Orin Nano Developer Kit\0")
    command(machine, "nvpmodel", NVPMODEL)
    command(machine, "nvidia-smi", "Orin (nvgpu), [N/A], 540.4.0, [N/A]\n")
    found = facts([machine])
    assert found["nvidia"]["board"] == "NVIDIA Jetson Orin Nano Developer Kit"
    assert found["nvidia"]["l4t"] == TEGRA.strip()
    assert found["nvidia"]["jetpack"] == "6.1 to 6.2.1"
    assert found["nvidia"]["gpus"] == [
        {"name": "Orin (nvgpu)", "compute_capability": None, "driver": "540.4.0", "memory_mb": None}
    ]
    assert found["state"]["power_mode"] == "MAXN_SUPER"
    write(machine / "TEGRA_RELEASE", TEGRA.replace("R36", "R99"))
    assert facts([machine])["nvidia"]["jetpack"] is None


@pytest.mark.parametrize(
    ("printed", "name"),
    [(NVPMODEL, "MAXN_SUPER"), (NVPMODEL_5, "MODE_15W"), ("NVPM ERROR: no config file\n", None), ("", None)],
)
def test_power_mode_of_a_jetson(printed, name):
    assert parse_nvpmodel(printed) == name


@pytest.mark.parametrize(
    ("files", "cores", "megabytes"),
    [
        ({"cpu.max": "150000 100000\n", "memory.max": "1073741824\n"}, 1.5, 1024),
        ({"cpu.max": "max 100000\n", "memory.max": "max\n"}, None, None),
        (
            {
                "cpu/cpu.cfs_quota_us": "50000",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "536870912",
            },
            0.5,
            512,
        ),
        (
            {
                "cpu/cpu.cfs_quota_us": "-1",
                "cpu/cpu.cfs_period_us": "100000",
                "memory/memory.limit_in_bytes": "9223372036854771712",
            },
            None,
            None,
        ),
    ],
    ids=["v2", "v2 without limits", "v1", "v1 without limits"],
)
def test_limits_of_a_container(machine, files, cores, megabytes):
    write(machine / "MEMINFO", "MemTotal:  4194304 kB\nMemAvailable:  2097152 kB\n")
    write(machine / "INIT_CGROUP", "0::/system.slice/docker-0123.scope\n")
    for name, text in files.items():
        write(machine / "CGROUPS" / name, text)
    found = facts([machine])
    assert (found["cpu"]["limit"], found["memory"]["limit_mb"]) == (cores, megabytes)
    assert (found["memory"]["total_mb"], found["memory"]["available_mb"]) == (4096, 2048)
    assert found["system"]["container"].endswith("names docker")


def test_libraries_are_named_by_their_files(machine, monkeypatch):
    write(machine / "lib/libnvinfer.so.10.3.0")
    (machine / "lib/libnvinfer.so.10").symlink_to("libnvinfer.so.10.3.0")
    write(machine / "lib/libnvinfer_plugin.so.10")
    monkeypatch.setenv("LD_LIBRARY_PATH", f"{machine / 'nowhere'}{os.pathsep}{machine / 'lib'}")
    assert libraries("libnvinfer.so") == [str(machine / "lib/libnvinfer.so.10.3.0")]
    write(machine / "other/libnvinfer.so.11.1.0")
    line = f"libnvinfer.so.11 (libc6,AArch64) => {machine / 'other/libnvinfer.so.11.1.0'}\n"
    command(machine, "ldconfig", f"2 libs found\n\t{line}\tlibm.so.6 (libc6) => /lib/libm.so.6\n")
    assert [Path(file).name for file in libraries("libnvinfer.so")] == ["libnvinfer.so.10.3.0", "libnvinfer.so.11.1.0"]


def test_accelerators_without_permission(machine, monkeypatch):
    write(machine / "DEVICES/dri/renderD128")
    write(machine / "DEVICES/accel/accel0")
    write(machine / "GRAPHICS/renderD128/device/vendor", "0x8086\n")
    monkeypatch.setattr(os, "access", lambda file, mode: Path(file).name == "accel0")
    found = {Path(each["device"]).name: (each["vendor"], each["may_open"]) for each in facts([])["other_accelerators"]}
    assert found == {"renderD128": ("Intel", False), "accel0": (None, True)}


def test_a_disk_is_named_once_with_all_that_goes_there(tmp_path, monkeypatch):
    usage = namedtuple("usage", "free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(1_540_000_000))
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    later = tmp_path / "not/yet/there"
    assert disks([tmp_path, later]) == [{"free_gb": 1.5, "for": [str(tmp_path), str(later)]}]


def test_packages_are_those_installed():
    found = packages()
    assert {"numpy", "pillow"} <= set(found)
    assert all(version[0].isdigit() for version in found.values())
