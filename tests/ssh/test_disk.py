"""A disk that is full, or cannot be written to: the release on it serves, and goes back, all the same."""

import contextlib
import os
import shutil
import subprocess

import pytest

from tests.ssh.desk import Desk, answer, device_at, idle, leftovers

pytestmark = pytest.mark.slow
PLACE = "small/slad-edge"
MB, PAGE = 1 << 20, 4096
SPACE = "No space left on device"


class Disk:
    """A small disk of a device, and a file that takes what is to be taken of it."""

    def __init__(self, device) -> None:
        self.device, self.folder = device, device.home / "small"
        self._ballast = self.folder / "ballast"

    def leave(self, free: int) -> None:
        """Leaves so many bytes free."""
        self._ballast.unlink(missing_ok=True)
        while not self._take(free):  # what the device writes meanwhile leaves less
            pass

    def _take(self, free: int) -> bool:
        state = os.statvfs(self.folder)
        with self._ballast.open("wb") as file, contextlib.suppress(OSError):
            os.posix_fallocate(file.fileno(), 0, max(state.f_bavail * state.f_frsize - free, 1))
            return True
        return state.f_bavail * state.f_frsize <= free

    def free(self) -> None:
        """Gives all back."""
        self._ballast.unlink(missing_ok=True)

    def read_only(self, *, yes: bool) -> None:
        """Lets nobody write, root included."""
        subprocess.run(["mount", "-o", f"remount,{'ro' if yes else 'rw'}", self.folder], check=True)


@pytest.fixture(scope="module")
def shared_disk(tmp_path_factory):
    with device_at(tmp_path_factory.mktemp("device") / "shelf", "shelf") as device:
        disk = Disk(device)
        disk.folder.mkdir()
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=96m", "tmpfs", disk.folder], check=False)
        if done.returncode:
            pytest.skip("a small disk cannot be mounted: root's right to mount is needed")
        try:
            yield disk
        finally:
            subprocess.run(["umount", "--lazy", disk.folder], check=True)


@pytest.fixture(scope="module")
def shared_desk(tmp_path_factory, models, shared_disk):
    desk = Desk(tmp_path_factory.mktemp("desk") / "project", models, shared_disk.device)
    desk.target("shelf", folder=PLACE)
    desk.deployed("shelf")
    desk.model(1)
    desk.deployed("shelf")
    return desk


@pytest.fixture
def disk(shared_disk, shared_desk):
    """A disk with releases of two models, the second of which serves."""
    shared_desk.target("shelf", folder=PLACE, packages=None, wheels=None, disk_mb=0)
    shared_desk.model(1)
    shared_desk.deployed("shelf")
    yield shared_disk
    shared_disk.free()
    idle(shared_disk.device)


@pytest.fixture
def desk(shared_desk, disk):
    return shared_desk


def answers(disk) -> str:
    return answer(disk.device, "shelf", folder=PLACE)


def rest(disk) -> list[str]:
    return leftovers(disk.device, folder=PLACE)


def test_a_disk_that_fills_up_at_any_step_is_named(desk, disk):
    line = answers(disk)
    desk.model(2)
    failed = []
    for pages in range(0, 200, 3):
        disk.leave(pages * PAGE)
        done = desk.deploy("shelf")
        if done.code == 0:
            break
        assert done.code in (7, 10), done.lines
        assert SPACE in done.error or "of its disk are free" in done.error, (pages, done.lines)
        assert answers(disk) == line
        failed.append(done.lines[:-1])
    assert done.code == 0
    assert answers(disk) != line
    assert rest(disk) == []
    assert failed[0] == []  # before anything was sent
    assert any("building" in line for line in failed[-1])  # up to the engine and the release
    # Going back takes no room.
    disk.leave(0)
    assert desk.slad("rollback", "--target", "shelf").code == 0
    assert answers(disk) == line
    assert desk.slad("status").code == 0


def test_a_disk_that_fills_up_while_files_arrive_is_named(desk, disk):
    line = answers(disk)
    folder = desk.folder / "wheels"
    folder.mkdir()
    (folder / "ballast-1.0-py3-none-any.whl").write_bytes(os.urandom(30 * MB))
    desk.target("shelf", packages=["numpy"], wheels=str(folder))
    process = desk.start("deploy", "--target", "shelf", "--variant", "fp32")
    blobs = disk.folder / "slad-edge/blobs"
    while process.poll() is None and not list(blobs.glob("*.part")):
        pass
    disk.leave(0)
    said = process.communicate()[1].splitlines()
    shutil.rmtree(folder)
    assert process.returncode == 10, said
    assert SPACE in said[-1]
    assert said[-1].startswith("error: device 'shelf': ")
    assert answers(disk) == line
    assert not list(blobs.glob("*.part"))  # it would keep the disk full
    disk.free()
    desk.target("shelf", packages=None, wheels=None)
    desk.deployed("shelf")
    assert rest(disk) == []


@pytest.mark.parametrize("room", [MB // 4, 3 * MB, 12 * MB], ids=["venv", "pip", "more_of_pip"])
def test_a_disk_that_fills_up_while_an_environment_is_made_is_named(desk, disk, room):
    line = answers(disk)
    desk.target("shelf", packages=["numpy>=1.20"])
    disk.leave(room)
    done = desk.deploy("shelf")
    assert done.code == 10, done.lines
    assert SPACE in done.error
    assert "apt install" not in done.error
    assert answers(disk) == line
    disk.free()
    desk.target("shelf", packages=None)
    desk.deployed("shelf")
    assert rest(disk) == []


def test_less_room_than_the_target_asks_for_is_refused_before_anything_is_sent(desk, disk):
    disk.leave(5 * MB)
    desk.target("shelf", disk_mb=6)
    desk.model(2)
    done = desk.deploy("shelf")
    assert done.code == 10
    assert done.lines == [done.error]
    assert "5 MB of disk are free, `targets.shelf.install.disk_mb` asks for 6; make room" in done.error


def test_a_disk_that_cannot_be_written_to_is_named_and_its_release_answers(desk, disk):
    line = answers(disk)
    disk.read_only(yes=True)
    try:
        desk.model(2)
        for command in (("deploy", "--variant", "fp32"), ("rollback",)):
            done = desk.slad(*command, "--target", "shelf")
            assert done.code == 10
            assert done.lines == [done.error]
            assert "slad-edge is read-only, or closed to this account; mend that" in done.error
        assert answers(disk) == line
        assert desk.slad("status").code == 0
        desk.target("shelf", folder="small/other")
        done = desk.deploy("shelf")
        assert done.code == 10
        assert "Read-only file system" in done.error
        assert "may write there" in done.error
    finally:
        disk.read_only(yes=False)
        desk.target("shelf", folder=PLACE)
    desk.deployed("shelf")
    assert answers(disk) != line
