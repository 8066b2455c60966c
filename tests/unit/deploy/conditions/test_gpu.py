import subprocess

import pytest

from deploy.conditions import gpu as module
from deploy.conditions.gpu import QUERY, REASONS, gpus_now, parse_gpus_now, words_of
from tests.unit.deploy.conditions.conftest import recorded

# Made up, in the order of the question: no recording has all of its columns.
HEADER = (
    "index, pci.bus_id, pstate, clocks.current.sm [MHz], clocks.max.sm [MHz], clocks.current.memory [MHz], "
    "temperature.gpu, power.draw [W], power.limit [W], utilization.gpu [%], memory.used [MiB], "
    "clocks_event_reasons.active\n"
)


def test_reasons_under_their_new_name_in_a_recording():
    first, second = parse_gpus_now(recorded("nvidia_smi_blackwell.csv"))
    assert (first["index"], second["index"]) == (0, 1)
    assert first["reasons"] == ["SW Power Cap"]
    assert (first["sm_mhz"], first["temperature_c"]) == (None, None)


def test_numbers_with_units_in_a_recording():
    first, second = parse_gpus_now(recorded("nvidia_smi_power.csv"))
    assert (first["temperature_c"], first["power_w"], first["power_limit_w"]) == (25, 30.39, 600)
    assert (second["power_w"], second["reasons"]) == (28.54, None)


def test_every_column():
    running = "gpu_bus_id, pid\n00000000:01:00.0, 5\n00000000:02:00.0, 6\n00000000:01:00.0, 7\n"
    row = "0, 00000000:01:00.0, P0, 1590, 1980, 2619, 71, 699.80, 700.00, 100, 1024, 0x000000000000000C\n"
    [gpu] = parse_gpus_now(HEADER + row, running)
    assert gpu == {
        "index": 0, "pstate": "P0", "sm_mhz": 1590, "most_sm_mhz": 1980, "memory_mhz": 2619, "temperature_c": 71,
        "power_w": 699.8, "power_limit_w": 700, "utilization_percent": 100, "memory_used_mb": 1024,
        "reasons": ["SW Power Cap", "HW Slowdown"], "processes": 2,
    }  # fmt: skip


def test_what_a_jetson_does_not_say_is_none():
    [gpu] = parse_gpus_now(
        HEADER + "0, [N/A], [N/A], [N/A], N/A, [Not Supported], [N/A], , [N/A], [N/A], [N/A], [N/A]\n"
    )
    assert gpu.pop("index") == 0
    assert set(gpu.values()) == {None}


@pytest.mark.parametrize("text", ["", "\n", "No devices were found\n", HEADER, HEADER + "0, P0\n", "a, b\n1, 2\n"])
def test_other_text_is_no_gpu(text):
    assert parse_gpus_now(text) == []


def test_words_of_reasons():
    assert words_of(0) == []
    assert words_of(0x1) == ["GPU Idle"]
    assert words_of(0x1E8) == [
        "HW Slowdown", "SW Thermal Slowdown", "HW Thermal Slowdown", "HW Power Brake Slowdown", "Display Clock Setting",
    ]  # fmt: skip
    assert words_of(0x204) == ["SW Power Cap", "reason 0x200"]


def test_an_old_driver_is_asked_by_the_old_name(machine):
    told = HEADER.replace("event", "throttle") + "0, 0:1, P8, 210, 2100, 405, 33, 18.0, 350.0, 0, 5, 0x0000000000000001"
    machine.command(
        "nvidia-smi", f'case "$1" in *clocks_event*) exit 2;; *apps*) echo gpu_bus_id, pid; exit;; esac\necho "{told}"'
    )
    [gpu] = gpus_now()
    assert (gpu["pstate"], gpu["reasons"], gpu["processes"]) == ("P8", ["GPU Idle"], 0)


def test_the_question(machine):
    machine.command("nvidia-smi", f'echo "$*" >> {machine.root}/asked; exit 9')
    assert gpus_now() == []
    asked = (machine.root / "asked").read_text().splitlines()
    assert asked == [f"--query-gpu={','.join((*QUERY, name))} --format=csv,nounits" for name in REASONS]


def test_no_driver_and_one_that_hangs(machine, monkeypatch):
    assert gpus_now() == []
    machine.command("nvidia-smi", "exit 0")

    def hang(*_, timeout, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", timeout)

    monkeypatch.setattr(module.subprocess, "run", hang)
    assert gpus_now() == []
