"""What `nvidia-smi` says of the NVIDIA GPUs at this moment, and NVML's words for why clocks are held back."""

import csv
import re
import shutil
import subprocess
from typing import Any

TIMEOUT_S = 20  # a driver that hangs must not keep everything else from being said

QUERY = (
    "index", "pci.bus_id", "pstate", "clocks.sm", "clocks.max.sm", "clocks.mem", "temperature.gpu", "power.draw",
    "power.limit", "utilization.gpu", "memory.used",
)  # fmt: skip
REASONS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")  # the second by drivers before 535

# Bits and words of nvmlClocksEventReasons (NVML API Reference Guide, "NvmlClocksEventReasons").
WORDS = {
    0x001: "GPU Idle",
    0x002: "Applications Clocks Setting",
    0x004: "SW Power Cap",
    0x008: "HW Slowdown",
    0x010: "Sync Boost",
    0x020: "SW Thermal Slowdown",
    0x040: "HW Thermal Slowdown",
    0x080: "HW Power Brake Slowdown",
    0x100: "Display Clock Setting",
}
# Heat or the power supply slow the device down. A power cap or a setting of the clocks is how the device is set up.
THROTTLED = 0x008 | 0x020 | 0x040 | 0x080


def gpus_now() -> list[dict[str, Any]]:
    """Describe each NVIDIA GPU; what one does not say is None; [] without a driver.

    Returns:
        `index`, `pstate`, `sm_mhz`, `most_sm_mhz`, `memory_mhz`, `temperature_c`, `power_w`, `power_limit_w`,
        `utilization_percent`, `memory_used_mb`, `reasons`, words for why the clocks are not higher, and `processes`,
        the number of programs that compute on it.
    """
    command = shutil.which("nvidia-smi")
    if command is None:
        return []
    for reasons in REASONS:  # an unknown field makes the whole question fail
        printed = _ask([command, f"--query-gpu={','.join((*QUERY, reasons))}", "--format=csv,nounits"])
        if printed is not None:
            running = _ask([command, "--query-compute-apps=gpu_bus_id,pid", "--format=csv,nounits"])
            return parse_gpus_now(printed, running or "")
    return []


def parse_gpus_now(text: str, running: str = "") -> list[dict[str, Any]]:
    """Read what `nvidia-smi` prints, as CSV with headers, whatever its columns.

    Args:
        text: of the GPUs.
        running: of the programs that compute on them; "" where it does not say.
    """
    programs = [program.get("gpu_bus_id") for program in _table(running)] if running else None
    return [_gpu(said, programs) for said in _table(text) if "index" in said]


def words_of(mask: int) -> list[str]:
    """Return NVML's words for a mask of reasons; bits that have no word here by their number."""
    known = [word for bit, word in WORDS.items() if mask & bit]
    rest = mask & ~sum(WORDS)
    return known + ([f"reason {rest:#x}"] if rest else [])


def _table(text: str) -> list[dict[str, str]]:
    rows = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines()) if row]
    if not rows:
        return []
    names = [name.partition(" [")[0] for name in rows[0]]
    return [dict(zip(names, row, strict=True)) for row in rows[1:] if len(row) == len(names)]


def _gpu(said: dict[str, str], programs: list[str | None] | None) -> dict[str, Any]:
    mask = next((said[name] for name in REASONS if name in said), "")
    return {
        "index": int(said["index"]) if said["index"].isdecimal() else None,
        "pstate": said.get("pstate") if (said.get("pstate") or "").startswith("P") else None,
        "sm_mhz": _number(said, "clocks.current.sm", "clocks.sm"),
        "most_sm_mhz": _number(said, "clocks.max.sm"),
        "memory_mhz": _number(said, "clocks.current.memory", "clocks.mem"),
        "temperature_c": _number(said, "temperature.gpu"),
        "power_w": _number(said, "power.draw"),
        "power_limit_w": _number(said, "power.limit"),
        "utilization_percent": _number(said, "utilization.gpu"),
        "memory_used_mb": _number(said, "memory.used"),
        "reasons": words_of(int(mask, 16)) if re.fullmatch(r"0x[0-9a-fA-F]+", mask) else None,
        "processes": None if programs is None or "pci.bus_id" not in said else programs.count(said["pci.bus_id"]),
    }


def _number(said: dict[str, str], *names: str) -> float | None:
    """Return a column without its unit; "[N/A]" and the like are None."""
    text = next((said[name] for name in names if name in said), "").partition(" ")[0]
    try:
        return float(text)
    except ValueError:
        return None


def _ask(call: list[str]) -> str | None:
    try:
        done = subprocess.run(call, capture_output=True, text=True, check=False, timeout=TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None
