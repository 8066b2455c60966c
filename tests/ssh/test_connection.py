"""The way to a device: keys, names, ports, connections that break, and what a break leaves to be sent."""

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.ssh.desk import answer, idle, leftovers

pytestmark = pytest.mark.slow
MB = 10**6


@pytest.fixture
def refused(desk, shelf):
    """Says how `deploy` and `status` refuse a device, in one line, while the release there goes on."""
    line = answer(shelf, "shelf")

    def check(*words, ssh=None, says=answer):
        kept, desk.environment["SLAD_SSH"] = desk.environment["SLAD_SSH"], ssh or desk.environment["SLAD_SSH"]
        try:
            for command in (("deploy", "--variant", "fp32"), ("status",)):
                done = desk.slad(*command, "--target", "shelf")
                assert done.code == 10, done.lines
                assert len(done.lines) == 1, done.lines
                assert not [word for word in words if word not in done.error], done.error
        finally:
            desk.environment["SLAD_SSH"] = kept

    yield check
    assert answer(shelf, "shelf") == line


def changed(desk, tmp_path, old: str, new: str) -> str:
    """SLAD_SSH with one line of the device's ssh_config changed."""
    source = Path(desk.ssh_config.read_text().split()[1])
    text = source.read_text()
    assert old in text
    (tmp_path / "config").write_text(text.replace(old, new))
    return f"ssh -F {tmp_path / 'config'}"


def test_a_host_key_that_has_changed_is_refused(refused, shelf):
    known = shelf.folder / "known_hosts"
    kept = known.read_text()
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", shelf.folder / "other"], check=True)
    address = kept.split()[0]
    try:
        known.write_text(f"{address} {(shelf.folder / 'other.pub').read_text()}")
        refused("error: device 'shelf': its host key is not the one that this machine knows", "ssh-keygen -R")
        assert known.read_text().startswith(address)  # nobody has taken the new key
        assert known.read_text().count("\n") == 1
    finally:
        known.write_text(kept)
        for file in ("other", "other.pub"):
            (shelf.folder / file).unlink()


def test_a_host_key_that_is_not_known_is_refused(refused, desk, shelf, tmp_path):
    ssh = changed(desk, tmp_path, str(shelf.folder / "known_hosts"), str(tmp_path / "nothing"))
    refused("its host key is not known to this machine", "compare the key's fingerprint", ssh=ssh)
    assert not (tmp_path / "nothing").exists()


def test_a_key_that_the_device_does_not_know_is_refused(refused, desk, shelf, tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "other"], check=True)
    ssh = changed(desk, tmp_path, str(shelf.folder / "user_key"), str(tmp_path / "other"))
    refused("it refuses the keys that ssh offers (", "Permission denied (publickey)", "ssh-copy-id", ssh=ssh)


def test_a_name_that_nobody_knows_is_told(refused, desk, tmp_path):
    ssh = changed(desk, tmp_path, "HostName 127.0.0.1", "HostName nowhere.invalid")
    refused("its name is not known (", "check `host` of the target, and ~/.ssh/config", ssh=ssh)


def test_a_port_where_nobody_listens_is_told(refused, desk, shelf, tmp_path):
    shelf.stop()
    try:
        refused("it does not answer (", "Connection refused", "is it switched on")
    finally:
        shelf.start()


def test_a_machine_without_ssh_is_told(refused):
    refused(
        "'/nonexistent' cannot be started (No such file or directory); install OpenSSH's client, or set SLAD_SSH",
        ssh="/nonexistent",
    )


def test_a_command_with_an_open_quote_is_told(refused):
    refused("""SLAD_SSH 'ssh -F "config' is no command (No closing quotation)""", ssh='ssh -F "config')


def test_a_program_that_is_no_ssh_is_told(refused):
    refused("error: device 'shelf': ", ssh="false")


def test_noise_of_a_login_shell_disturbs_nobody(desk, shelf):
    config = shelf.folder / "sshd_config"
    kept = config.read_text()
    noisy = kept.replace("ForceCommand ", "ForceCommand echo 'Welcome! {\"done\": 1}'; echo to stderr >&2; ")
    assert noisy != kept
    try:
        config.write_text(noisy)
        shelf.restart()
        desk.model(1)
        desk.deployed("shelf")
        assert desk.releases("shelf")["current"].startswith("000")
    finally:
        config.write_text(kept)
        shelf.restart()


@pytest.fixture
def large(desk):
    """The project with a wheel of 24 MB that is sent to the device; returns its name there."""
    folder = desk.folder / "wheels"
    folder.mkdir()
    wheel = folder / "ballast-1.0-py3-none-any.whl"
    wheel.write_bytes(os.urandom(24 * MB))
    desk.target("shelf", packages=["numpy"], wheels=str(folder))
    yield hashlib.sha256(wheel.read_bytes()).hexdigest()
    shutil.rmtree(folder)


def part_of(shelf, sha256: str):
    return shelf.home / "slad-edge/blobs" / f"{sha256}.part"


def cut(desk, shelf, sha256: str, *, at: int = 4 * MB):
    """Deploys, and drops the connection once so much of the file is there; returns how it ended."""
    process = desk.start("deploy", "--target", "shelf", "--variant", "fp32")
    part = part_of(shelf, sha256)
    while process.poll() is None and not (part.is_file() and part.stat().st_size >= at):
        pass
    shelf.drop()
    lines = process.communicate()[1].splitlines()
    assert process.returncode == 10, lines
    assert not [line for line in lines if "Traceback" in line]
    assert "device 'shelf': the connection was lost" in lines[-1]
    assert "run it again: what has arrived is not sent again" in lines[-1]
    idle(shelf)
    begun = part.stat().st_size
    assert at <= begun < 24 * MB
    return begun


def test_a_dropped_connection_costs_only_what_has_not_arrived(desk, shelf, large):
    line = answer(shelf, "shelf")
    desk.model(1)
    begun = cut(desk, shelf, large)
    assert answer(shelf, "shelf") == line
    done = desk.deployed("shelf")
    assert f"sending {(24 * MB - begun) / 1e6:.2f} MB, 1 of 1 files" in done.lines
    assert answer(shelf, "shelf") != line
    assert not part_of(shelf, large).exists()


def test_what_arrived_and_was_damaged_since_is_sent_anew(desk, shelf, large):
    begun = cut(desk, shelf, large)
    part = part_of(shelf, large)
    content = bytearray(part.read_bytes())
    content[1000] ^= 1
    part.write_bytes(content)
    done = desk.deployed("shelf")
    sending = [line for line in done.lines if line.startswith("sending")]
    assert sending == [
        f"sending {(24 * MB - begun) / 1e6:.2f} MB, 1 of 1 files",
        "sending 24.00 MB, 1 of 1 files",
    ]
    answer(shelf, "shelf")


def test_a_file_that_the_disk_has_damaged_is_noticed_and_sent_again(desk, shelf):
    blob = shelf.home / "slad-edge/blobs" / hashlib.sha256((desk.onnx / "fp32/golden.npz").read_bytes()).hexdigest()
    blob.chmod(0o644)
    content = bytearray(blob.read_bytes())
    content[100] ^= 1
    blob.write_bytes(content)
    done = desk.deployed("shelf")
    assert any(line.startswith("it fails its test") or "it fails its test" in line for line in done.lines), done.lines
    assert "serves now" in done.output
    answer(shelf, "shelf")
    assert leftovers(shelf) == []
    assert "serves already" in desk.deployed("shelf").output
