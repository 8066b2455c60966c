"""What this machine is: system, board, GPUs, memory, disks, packages. No runtime is imported here."""

import contextlib
import ctypes
import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from deploy.conditions import cpu, limits
from deploy.conditions.state import state
from deploy.device import cpu_features, cpu_model
from deploy.files import system_text
from deploy.nvidia import board, gpus, l4t, l4t_text

DEVICES = Path("/dev")
GRAPHICS = Path("/sys/class/drm")
CUDA_FOLDERS = Path("/usr/local")
LDCONFIG_S = 10

# By the first two numbers of L4T (NVIDIA's release notes).
JETPACKS = {
    "36.3": "6.0", "36.4": "6.1 to 6.2.1", "36.5": "6.2.2", "38.2": "7.0", "38.4": "7.1", "39.2": "7.2",
}  # fmt: skip
VENDORS = {"0x8086": "Intel", "0x1002": "AMD", "0x10de": "NVIDIA"}

# All of them are the folder `onnxruntime`: what is installed last overwrites the others' files.
ONNXRUNTIMES = (
    "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "onnxruntime-directml", "onnxruntime-gpu-extended",
)  # fmt: skip
RARE = ("tensorrt-cu12", "tensorrt-cu13")  # shown where they are there
PACKAGES = (
    "numpy", "pillow", "onnxruntime", "onnxruntime-gpu", "onnxruntime-openvino", "openvino", "tensorrt", "torch",
    "torch-tensorrt", "cuda-python", "cuda-bindings", "mlcommons-loadgen",
)  # fmt: skip


def facts(folders: Sequence[Path]) -> dict[str, Any]:
    """Describe this machine in JSON values; what it does not say is None.

    Args:
        folders: where files will be written; they need not exist.
    """
    return {
        "system": _system(),
        "cpu": {"model": cpu_model(), "features": cpu_features(), **_cores()},
        "nvidia": _nvidia(),
        "other_accelerators": _accelerators(),
        "memory": _memory(),
        "state": state(),
        "disks": disks(folders),
        "packages": packages(),
    }


def packages() -> dict[str, str]:
    """Return the versions of those that are installed, without importing one."""
    found = {}
    for name in dict.fromkeys((*PACKAGES, *ONNXRUNTIMES, *RARE)):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def disks(folders: Sequence[Path]) -> list[dict[str, Any]]:
    """Return the space left on each file system that one of `folders` will be written to, in 10^9 bytes."""
    found: dict[int, dict[str, Any]] = {}
    for folder in (*folders, Path(tempfile.gettempdir())):
        there = next(each for each in (folder.absolute(), *folder.absolute().parents) if each.exists())
        disk = found.setdefault(
            there.stat().st_dev, {"free_gb": round(shutil.disk_usage(there).free / 1e9, 1), "for": []}
        )
        if str(folder) not in disk["for"]:
            disk["for"].append(str(folder))
    return list(found.values())


def _system() -> dict[str, Any]:
    try:
        name = platform.freedesktop_os_release()["PRETTY_NAME"]
    except (OSError, KeyError):
        name = platform.system()
    return {
        "os": name,
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "container": limits.container(),
        "virtual_machine": limits.virtual_machine(),
        "python": platform.python_version(),
        "interpreter": sys.executable,
    }


def _cores() -> dict[str, Any]:
    """Return the number of cores, of those this process may use, and the container's limit in cores."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {"cores": os.cpu_count() or 1, "usable": usable, "limit": limits.cpu_limit()}


def _memory() -> dict[str, int | None]:
    """Return megabytes (2^20 bytes): of the machine, available, and the container's limit where it is below."""
    found = cpu.memory()
    return {
        "total_mb": found["total_mb"],
        "available_mb": found["available_mb"],
        "limit_mb": limits.memory_limit_mb(),
    }


def _nvidia() -> dict[str, Any]:
    release = l4t()
    return {
        "board": board(),
        "l4t": l4t_text(),
        "jetpack": JETPACKS.get(".".join(release.split(".")[:2])) if release else None,
        "gpus": [asdict(gpu) for gpu in gpus()],
        "driver_cuda": _driver_cuda(),
        "libcudart": libraries("libcudart.so"),
        "libnvinfer": libraries("libnvinfer.so"),
    }


def _driver_cuda() -> str | None:
    """Ask the driver which CUDA it is made for; the call needs no device."""
    try:
        driver = ctypes.CDLL("nvcuda.dll" if os.name == "nt" else "libcuda.so.1")
    except OSError:
        return None
    number = ctypes.c_int()
    if driver.cuDriverGetVersion(ctypes.byref(number)) != 0:
        return None
    return f"{number.value // 1000}.{number.value % 1000 // 10}"


def libraries(start: str) -> list[str]:
    """Return the shared libraries whose names start so, their links resolved, without loading them.

    Looked for where the linker, CUDA's installer and NVIDIA's wheels put them.
    """
    found = {str(file.resolve()) for folder in _library_folders() for file in folder.glob(f"{start}*")}
    found |= {str(Path(line).resolve()) for line in re.findall(rf"=> (\S+/{re.escape(start)}\S*)", _linker_cache())}
    return sorted(found)


def _library_folders() -> Iterator[Path]:
    yield from (Path(each) for each in os.environ.get("LD_LIBRARY_PATH", "").split(os.pathsep) if each)
    yield from CUDA_FOLDERS.glob("cuda*/lib64")
    for package in ("nvidia", "tensorrt_libs"):
        spec = importlib.util.find_spec(package)
        for folder in map(Path, (spec and spec.submodule_search_locations) or ()):
            yield from (folder, *folder.glob("*/lib"))


def _linker_cache() -> str:
    command = shutil.which("ldconfig", path=os.pathsep.join([os.environ.get("PATH", ""), "/sbin"]))
    if command is None:
        return ""
    try:
        return subprocess.run([command, "-p"], capture_output=True, text=True, check=False, timeout=LDCONFIG_S).stdout
    except (OSError, subprocess.TimeoutExpired):
        return ""


def _accelerators() -> list[dict[str, Any]]:
    """List the graphics and NPU devices, and whether this account may open them; OpenVINO needs that."""
    found = []
    for file in (*sorted(DEVICES.glob("dri/renderD*")), *sorted(DEVICES.glob("accel/accel*"))):
        vendor = system_text(GRAPHICS / file.name / "device/vendor")
        found.append(
            {
                "device": str(file),
                "vendor": VENDORS.get(vendor or "", vendor),
                "may_open": os.access(file, os.R_OK | os.W_OK),
            }
        )
    return found
