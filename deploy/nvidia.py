"""What the system says of NVIDIA devices: `nvidia-smi` for graphics cards, files for a Jetson."""

import contextlib
import ctypes
import functools
import os
import re
import shutil
import subprocess
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from deploy.files import system_text

TEGRA_RELEASE = Path("/etc/nv_tegra_release")
DEVICE_TREE_MODEL = Path("/proc/device-tree/model")
QUERY = ("name", "compute_cap", "driver_version", "memory.total")
TIMEOUT_S = 20  # a driver that hangs must not keep everything else from being said


@dataclass(frozen=True)
class Gpu:
    """One device as `nvidia-smi` lists it; None where it does not say, as on a Jetson.

    Attributes:
        name: such as "NVIDIA H200" or "Orin (nvgpu)".
        compute_capability: such as "8.7".
        driver: such as "580.95.05".
        memory_mb: of the device.
    """

    name: str
    compute_capability: str | None
    driver: str | None
    memory_mb: int | None


def gpus() -> tuple[Gpu, ...]:
    """List the devices in the order of `nvidia-smi`; () without a driver."""
    return _gpus(shutil.which("nvidia-smi"))


@functools.lru_cache(maxsize=4)
def _gpus(command: str | None) -> tuple[Gpu, ...]:
    if command is None:
        return ()
    call = [command, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return ()
    return parse_gpus(done.stdout) if done.returncode == 0 else ()


def parse_gpus(text: str) -> tuple[Gpu, ...]:
    """Read what `nvidia-smi` prints for `QUERY`, in CSV without header and units."""
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.split(",")]
        if len(cells) == len(QUERY):
            said = [None if cell.startswith("[") or cell in {"", "N/A"} else cell for cell in cells]
            name, capability, driver, memory = said
            megabytes = int(memory) if memory and memory.isdecimal() else None
            found.append(Gpu(name or "unknown", capability, driver, megabytes))
    return tuple(found)


def l4t() -> str | None:
    """Return a Jetson's release, "36.4.3" for "# R36 (release), REVISION: 4.3, ..."; None elsewhere."""
    found = re.search(r"R(\d+) \(release\), REVISION: ([\d.]+)", l4t_text() or "")
    return f"{found[1]}.{found[2]}" if found else None


def l4t_text() -> str | None:
    """Return the first line of a Jetson's release file as it stands; None elsewhere."""
    return (system_text(TEGRA_RELEASE) or "").partition("\n")[0] or None


def board() -> str | None:
    """Return a board's own name, such as "NVIDIA Jetson Orin Nano Developer Kit"."""
    return system_text(DEVICE_TREE_MODEL)


def in_the_order_of_the_bus() -> None:
    """Have CUDA count the devices as `nvidia-smi` does; only before CUDA is first used in this process."""
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")


def infer_version() -> str | None:
    """Return the release of the TensorRT library that the loader finds, such as "10.3.0"; None where it finds none."""
    for major in (11, 10):
        with contextlib.suppress(OSError, AttributeError):
            number = int(ctypes.CDLL(f"libnvinfer.so.{major}").getInferLibVersion())
            first = 10_000 if number >= 100_000 else 1_000  # 100300 is 10.3.0
            return f"{number // first}.{number % first // 100}.{number % 100}"
    return None


def describe(index: int) -> dict[str, Any]:
    """Describe what an engine of GPU `index` is tied to: the device, and the driver or the Jetson's release."""
    devices, place = gpus(), smi_index(index)
    device = asdict(devices[place]) if place is not None and place < len(devices) else None
    return {"gpu": device, "board": board(), "l4t": l4t_text()}


def smi_index(index: int) -> int | None:
    """Return what `nvidia-smi` counts CUDA's device `index` as; None where `CUDA_VISIBLE_DEVICES` hides it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return index
    chosen = [int(name) for name in visible.split(",") if name.strip().isdecimal()]
    return chosen[index] if index < len(chosen) else None


def nvpmodel() -> str | None:
    """Return a Jetson's power mode, such as "MAXN_SUPER"; None where there is no `nvpmodel` or it does not say."""
    # Its folder is not on every account's path.
    command = shutil.which("nvpmodel", path=os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"]))
    if command is None:
        return None
    try:
        done = subprocess.run([command, "-q"], capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return parse_nvpmodel(done.stdout)


def parse_nvpmodel(text: str) -> str | None:
    """Read the name that `nvpmodel -q` prints; the mode's number stands in the next line."""
    found = re.search(r"^NV Power Mode:\s*(\S+)", text, re.MULTILINE)
    return found[1] if found else None
