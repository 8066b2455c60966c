"""A Jetson at this moment: clocks of its GPU and memory, fan, over-current events, power rails.

Files of the kernel come first; `tegrastats` is asked only for what this account cannot read there. The paths are those
of JetPack 6 and 7: Orin's GPU is the devfreq device `17000000.gpu` in both, Thor's is `gpu-gpc-0`.
"""

import contextlib
import os
import re
import select
import shutil
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.conditions.cpu import HWMON, THERMAL, held
from deploy.files import system_text
from deploy.kernel import in_their_order, whole_number
from deploy.nvidia import board, l4t_text

DEVFREQ = Path("/sys/class/devfreq")
EMC_CLOCK = Path("/sys/kernel/debug/bpmp/debug/clk/emc/rate")  # Orin's, for root alone
GPU_DEVICE = re.compile(r".*\.(gpu|g[a-z]\d\db)|gpu-gpc-\d+")
EMC_DEVICE = "bwmgr"  # Thor's, for every account
TEGRASTATS_S = 5  # it prints a line each second


@dataclass(frozen=True)
class Rail:
    """A rail that the board measures.

    Attributes:
        name: such as "VDD_IN".
        files: one of microwatts, or two of millivolts and milliamperes.
    """

    name: str
    files: tuple[Path, ...]

    def milliwatts(self) -> float | None:
        """Read the power; None where the sensor does not answer."""
        values = [whole_number(file) for file in self.files]
        known = [value for value in values if value is not None]
        if len(known) != len(values):
            return None
        return known[0] / 1000 if len(known) == 1 else known[0] * known[1] / 1000


def jetson() -> dict[str, Any] | None:
    """Describe a Jetson; None on another machine, and what cannot be read is None.

    Returns:
        `gpu` and `emc` (memory), each {mhz, least_mhz, most_mhz, governor} or what `tegrastats` says of their clock;
        `gpu_percent`; `fan` of 255; `throttled`, over-current events since the start of the machine; `alerts`, what is
        being throttled right now; `clocks_held`; `rails_mw`.
    """
    if l4t_text() is None and "Jetson" not in (board() or ""):
        return None
    gpu, emc = _clock(gpu_device()), _clock(_emc_device())
    emc = emc or _said(_megahertz(EMC_CLOCK))
    told = parse_tegrastats(ask_tegrastats() or "") if gpu is None or emc is None else {}
    return {
        "gpu": gpu or _said(told.get("gpu_mhz")),
        "emc": emc or _said(told.get("emc_mhz")),
        "gpu_percent": _gpu_percent(told),
        "fan": fan(),
        "throttled": overcurrent_events(),
        "alerts": throttle_alerts(),
        "clocks_held": clocks_held(gpu),
        "rails_mw": {rail.name: round(power) for rail in rails() if (power := rail.milliwatts()) is not None}
        or told.get("rails_mw")
        or None,
    }


def gpu_device() -> Path | None:
    """Return the folder of the GPU's clock."""
    found = [folder for folder in DEVFREQ.glob("*") if GPU_DEVICE.fullmatch(folder.name)]
    return in_their_order(found)[0] if found else None


def gpu_mhz() -> float | None:
    """Return the GPU's present clock."""
    folder = gpu_device()
    hertz = whole_number(folder / "cur_freq") if folder else None
    return None if hertz is None else hertz / 1e6


def overcurrent_events() -> int | None:
    """Count how often the board has slowed down for over-current or too low a voltage since its start."""
    counts = [
        whole_number(file)
        for folder in HWMON.glob("hwmon*")
        if system_text(folder / "name") == "soctherm_oc"
        for file in folder.glob("oc*_event_cnt")
    ]
    known = [count for count in counts if count is not None]
    return sum(known) if known else None


def throttle_alerts() -> list[str]:
    """Name what the board throttles right now because of heat, such as "gpu"."""
    found = []
    for device in THERMAL.glob("cooling_device*"):
        name = system_text(device / "type") or ""
        if name.endswith("throttle-alert") and (whole_number(device / "cur_state") or 0) > 0:
            found.append(name.removesuffix("throttle-alert").rstrip("-_") or name)
    return sorted(found)


def rails() -> list[Rail]:
    """List the rails that INA3221 and INA238 sensors measure, by the names that the board gives them."""
    found = []
    for folder in in_their_order(list(HWMON.glob("hwmon*"))):
        if not (system_text(folder / "name") or "").startswith("ina"):
            continue
        for label in in_their_order(list(folder.glob("in*_label"))):
            number = label.name.removeprefix("in").removesuffix("_label")
            current = folder / f"curr{number}_input"  # without one it is a sum of shunt voltages, no rail
            if current.exists():
                found.append(Rail(system_text(label) or label.name, (folder / f"in{number}_input", current)))
        name, power = system_text(folder / "label"), folder / "power1_input"
        if name and power.exists():
            found.append(Rail(name, (power,)))
    return [rail for rail in found if rail.name != "NC"]  # not connected


def fan() -> int | None:
    """Return how hard the fan is driven, 0 to 255."""
    for folder in HWMON.glob("hwmon*"):
        if system_text(folder / "name") == "pwmfan":
            return whole_number(folder / "pwm1")
    return None


def clocks_held(gpu: dict[str, Any] | None) -> bool | None:
    """Say whether the clocks of CPU and GPU are held, as `jetson_clocks` does."""
    cpu = held()
    if cpu is None or gpu is None or gpu["least_mhz"] is None:
        return None
    return cpu and gpu["least_mhz"] == gpu["most_mhz"]


def ask_tegrastats() -> str | None:
    """Return one line of `tegrastats`; None where it is not there, or prints nothing within 5 s."""
    command = shutil.which("tegrastats")
    if command is None:
        return None
    with contextlib.ExitStack() as stack:
        try:
            asked = subprocess.Popen([command, "--interval", "1000"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        except OSError:
            return None
        stack.enter_context(asked)
        stack.callback(asked.kill)  # before the `with` waits for it: it would print for ever
        assert asked.stdout is not None
        end, printed = time.monotonic() + TEGRASTATS_S, b""
        while b"\n" not in printed and (left := end - time.monotonic()) > 0:
            if not select.select([asked.stdout], [], [], left)[0] or not (
                piece := os.read(asked.stdout.fileno(), 65536)
            ):
                break
            printed += piece
    return printed.partition(b"\n")[0].decode(errors="replace") or None


def parse_tegrastats(line: str) -> dict[str, Any]:
    """Read a line of `tegrastats` of JetPack 6 or 7; what it does not say is None.

    Returns:
        `ram_used_mb`, `ram_total_mb`, `cpu_percent` and `cpu_mhz` (a list, without the cores that are off),
        `emc_percent`, `emc_mhz`, `gpu_percent`, `gpu_mhz` (the highest of its clusters'), `zones_c` and `rails_mw`
        (present values) by name.
    """
    ram = re.search(r"\bRAM (\d+)/(\d+)MB", line)
    cores = re.findall(r"(\d+)%@(\d+)", (re.search(r"\bCPU \[([^\]]*)\]", line) or [""])[0])
    emc = re.search(r"\bEMC_FREQ (?:(\d+)%)?(?:@(\d+))?", line)
    gpu = re.search(r"\bGR3D_FREQ (?:(\d+)%)?(?:@\[?([\d,]+))?", line)
    clocks = [int(each) for each in (gpu[2] or "").split(",") if each] if gpu else []
    return {
        "ram_used_mb": int(ram[1]) if ram else None,
        "ram_total_mb": int(ram[2]) if ram else None,
        "cpu_percent": [int(percent) for percent, _ in cores],
        "cpu_mhz": [int(clock) for _, clock in cores],
        "emc_percent": int(emc[1]) if emc and emc[1] else None,
        "emc_mhz": int(emc[2]) if emc and emc[2] else None,
        "gpu_percent": int(gpu[1]) if gpu and gpu[1] else None,
        "gpu_mhz": max(clocks, default=None),
        "zones_c": {name: float(degrees) for name, degrees in re.findall(r"\b(\w+)@(-?[\d.]+)C\b", line)},
        "rails_mw": {name: int(power) for name, power in re.findall(r"\b([A-Z]\w+) (-?\d+)mW\b", line)},
    }


def _clock(folder: Path | None) -> dict[str, Any] | None:
    if folder is None:
        return None
    now, least, most = (_megahertz(folder / f"{name}_freq") for name in ("cur", "min", "max"))
    if now is None:
        return None
    return {"mhz": now, "least_mhz": least, "most_mhz": most, "governor": system_text(folder / "governor")}


def _megahertz(file: Path) -> int | None:
    hertz = whole_number(file)
    return None if hertz is None else round(hertz / 1e6)


def _emc_device() -> Path | None:
    folder = DEVFREQ / EMC_DEVICE
    return folder if folder.exists() else None


def _gpu_percent(told: dict[str, Any]) -> float | None:
    folder = gpu_device()
    permille = whole_number(folder / "device/load") if folder else None
    return told.get("gpu_percent") if permille is None else permille / 10


def _said(megahertz: int | None) -> dict[str, int] | None:
    return None if megahertz is None else {"mhz": megahertz}
