import os
import shutil
import threading
from dataclasses import replace

import pytest

from deploy.errors import DeviceError
from deploy.install import root as module
from deploy.install.process import HostGoneError
from tests.unit.deploy.install.conftest import KEY


def test_the_second_host_waits_and_says_who_works(root, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.01)
    waits, entered = threading.Event(), threading.Event()
    heard = []

    def say(line):
        heard.append(line)
        waits.set()

    def work():
        with replace(root, say=say).locked():
            entered.set()

    second = threading.Thread(target=work)
    with root.locked():
        second.start()
        assert waits.wait(60)
        assert not entered.is_set()
    second.join(60)
    assert entered.is_set()
    assert heard == [f"waiting: process {os.getpid()} works on the device"]


def test_a_host_that_goes_while_it_waits_waits_no_longer(root, host):
    with root.locked():
        host[1].close()
        with pytest.raises(HostGoneError), root.locked():
            pass


def test_a_full_disk_keeps_nobody_from_the_lock(root, lock):
    lock.parent.mkdir(parents=True)
    lock.symlink_to("/dev/full")
    with root.locked():
        pass


def test_the_folders_are_made_for_the_lock(root, lock):
    shutil.rmtree(root.folder)
    with root.locked():
        assert lock.read_text() == f"{os.getpid()}\n"
    assert root.folder.is_dir()


def test_two_folders_of_one_account_are_not_worked_in_at_once(root, host, said, tmp_path):
    other = replace(root, folder=tmp_path / "other")
    with root.locked():
        host[1].close()
        with pytest.raises(HostGoneError), other.locked():
            pass
    assert said == [f"waiting: process {os.getpid()} works on the device"]


def test_lines_of_a_command_are_passed_on_but_for_its_error(root, said):
    folder = root.folder / "targets/t"
    (folder / "engine").mkdir(parents=True)
    (folder / "engine/model").write_text("bad\n")
    (root.environments / KEY / "bin/refuse").write_text("bad\n")
    done = root.deploy(KEY, "selftest", folder=folder)
    assert (done.code, said) == (7, ["loading"])
    assert done.lines[-1] == "error: engine 'fp32': other answers"


def test_commands_of_a_device_are_told_that_a_host_runs_them(root, tmp_path):
    python = root.environments / KEY / "bin/python"
    python.write_text('#!/bin/sh\necho "$SLAD_FOR_A_HOST"\n')
    assert root.deploy(KEY, "doctor", folder=tmp_path).output == "1\n"


@pytest.mark.parametrize("what", ["environment", "package"])
def test_an_environment_or_package_that_is_gone_is_named(root, tmp_path, what):
    gone = {"environment": root.environments / KEY / "bin/python", "package": root.package}[what]
    shutil.rmtree(gone if gone.is_dir() else gone.parent)
    with pytest.raises(DeviceError, match=f"{gone} is not there any more; deploy again"):
        root.deploy(KEY, "selftest", folder=tmp_path)
