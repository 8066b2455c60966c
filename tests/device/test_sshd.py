"""The SSH device that other tests stand on."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.sshd import Sshd, alive

pytestmark = pytest.mark.slow


@pytest.fixture
def device(tmp_path):
    with Sshd(tmp_path / "device", name="shelf", environment={"GREETING": "good day"}) as device:
        yield device


def started(device) -> list[int]:
    """The processes of a session's command, once there are any."""
    for _ in range(1000):
        if found := device.sessions():
            return found
        time.sleep(0.01)
    pytest.fail(f"no session has started anything: {device.log}")


def test_a_command_starts_in_the_home_of_the_device(device):
    done = device.run('echo "$HOME" "$PWD" ~; echo "$GREETING"; echo no >&2; exit 3')
    assert done.stdout.splitlines() == [f"{device.home} {device.home} {device.home}", "good day"]
    assert (done.stderr, done.returncode) == ("no\n", 3)


def test_bytes_pass_unchanged(device):
    content = bytes(range(256)) * 1000
    done = device.run("tee copy", input=content, text=False, stdin=None)
    assert done.stdout == content
    assert (device.home / "copy").read_bytes() == content


def test_a_changed_host_key_is_refused_by_the_client(device):
    device.change_host_key()
    done = device.run("touch reached")
    assert done.returncode == 255
    assert "HOST IDENTIFICATION HAS CHANGED" in done.stderr
    assert not (device.home / "reached").exists()


def test_no_other_key_is_let_in(device, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    config = device.folder / "ssh_config"
    config.write_text(config.read_text().replace(str(device.folder / "user_key"), str(tmp_path / "other")))
    done = device.run("true")
    assert done.returncode == 255
    assert "Permission denied (publickey)" in done.stderr


def test_a_dropped_connection_ends_the_client_and_the_device_answers_again(device):
    client = subprocess.Popen([*device.command, device.name, "sleep 1000"], stderr=subprocess.PIPE)
    left = started(device)
    device.drop()
    client.communicate()
    assert client.returncode == 255
    assert device.sessions() == left  # as on a real device, nobody has told it
    assert device.run("echo here").stdout == "here\n"


def test_a_stopped_device_is_refused_and_comes_back_where_it_was(device):
    device.stop()
    assert "Connection refused" in device.run("true").stderr
    device.start()
    assert device.run("echo here").stdout == "here\n"


def test_nothing_runs_once_the_device_is_stopped(device):
    device.run("setsid sleep 1000 > /dev/null 2>&1 &")
    client = subprocess.Popen([*device.command, device.name, "sleep 1001"], stderr=subprocess.PIPE)
    before = [*started(device), *device.processes()]
    device.stop()
    client.communicate()
    assert len(before) >= 3
    assert not [pid for pid in before if alive(pid)]


def test_an_sshd_ends_with_a_test_that_is_killed(tmp_path):
    code = "import os, sys; from pathlib import Path; from tests.sshd import Sshd; device = Sshd(Path(sys.argv[1])); "
    code += "device.start(); print(*device.processes(), flush=True); os.kill(os.getpid(), 9)"
    command = [sys.executable, "-c", code, tmp_path / "device"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    started = [int(pid) for pid in done.stdout.split()]
    assert started
    while any(alive(pid) for pid in started):  # ended by the kernel, in its own time
        time.sleep(0.01)


def test_an_sshd_that_cannot_start_is_told_with_its_own_words(device):
    device.stop()
    (device.folder / "sshd_config").write_text("Nonsense yes\n")
    with pytest.raises(RuntimeError, match="Bad configuration option: Nonsense"):
        device.start()
