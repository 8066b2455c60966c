"""What the emulated 64-bit Arm device promises to the tests that stand on it."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.device import arm64
from tests.sshd import alive, descendants

pytestmark = pytest.mark.device


def test_a_dropped_connection_leaves_a_device_that_answers(arm64_device):
    client = subprocess.Popen([*arm64_device.command, arm64.NAME, "echo; sleep 1000"], stdout=subprocess.PIPE)
    with client:
        client.stdout.readline()
        arm64_device.drop()
    assert client.returncode == 255
    assert arm64_device.run("uname -m").stdout == "aarch64\n"


def test_nothing_is_left_of_a_device_whose_owner_was_killed(arm64_device):
    owner = subprocess.Popen(
        [sys.executable, "-m", "tests.device.arm64"], cwd=arm64.ROOT, stdout=subprocess.PIPE, text=True
    )
    with owner:
        while not owner.stdout.readline().startswith(arm64.NAME):
            assert owner.poll() is None
        started = descendants(owner.pid)
        owner.send_signal(signal.SIGKILL)
    assert len(started) >= 3  # the owner, what keeps the namespaces, sshd
    while any(alive(pid) for pid in started):  # ended by the kernel, in its own time
        time.sleep(0.05)
    assert "arm64" not in Path("/proc/self/mountinfo").read_text()


def test_a_machine_without_the_emulator_is_told_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setattr(arm64, "BINFMT", tmp_path / "qemu-aarch64")
    with pytest.raises(arm64.Arm64Error, match="install Debian's qemu-user-static and binfmt-support"):
        arm64.check_machine()


def test_an_ordinary_user_is_told_to_be_root(monkeypatch):
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(arm64.Arm64Error, match="user id 1000: .* needs root"):
        arm64.check_machine()


def test_a_root_whose_making_was_killed_does_not_count_and_is_cleared(monkeypatch, tmp_path):
    monkeypatch.setattr(arm64, "CACHE", tmp_path)
    making = "from tests.device import arm64; from pathlib import Path; import os; arm64.CACHE = Path({!r})\n"
    making += "arm64._make_root = lambda folder: ((folder / 'half').touch(), os.kill(os.getpid(), 9))\narm64.root()"
    ended = subprocess.run([sys.executable, "-c", making.format(str(tmp_path))], cwd=arm64.ROOT, check=False)
    assert ended.returncode == -signal.SIGKILL
    assert [*tmp_path.glob(".root-*/half")]
    monkeypatch.setattr(arm64, "_make_root", lambda folder: (folder / "whole").touch())
    assert [file.name for file in arm64.root().iterdir()] == ["whole"]
    assert not [*tmp_path.glob(".root-*")]
