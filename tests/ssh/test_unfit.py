"""Devices that are not fit: refused in one line, before anything is changed there."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ssh.desk import Desk, answer, device_at, idle, leftovers, serving

pytestmark = pytest.mark.slow
FAKE_VENV = """\
import pathlib, subprocess, sys
subprocess.run([sys._base_executable, "-m", "venv", *sys.argv[1:]], check=True)
(site,) = pathlib.Path(sys.argv[-1]).glob("lib/*/site-packages")
(site / "debian.py").write_text('''
def find_spec(name, path=None, target=None):
    if name == "ensurepip":
        raise ModuleNotFoundError("No module named 'ensurepip'", name=name)
''')
(site / "debian.pth").write_text("import sys, debian; sys.meta_path.insert(0, debian)\\n")
"""


@pytest.fixture
def refused(desk, shelf):
    """Says how a deployment of another model is refused, while the release there goes on."""
    line, before = answer(shelf, "shelf"), serving(shelf, "shelf")
    desk.model(1)

    def check(*words, code=10, **install):
        if install:
            desk.target("shelf", **install)
        done = desk.deploy("shelf")
        assert done.code == code, done.lines
        assert not [word for word in words if word not in done.error], done.error
        assert (serving(shelf, "shelf"), answer(shelf, "shelf")) == (before, line)
        return done

    return check


def script(shelf, name: str, *lines: str) -> str:
    path = shelf.home / name
    path.write_text("\n".join(["#!/bin/sh", *lines, ""]))
    path.chmod(0o755)
    return str(path)


def test_a_device_without_python_is_refused(refused):
    done = refused(
        "device 'shelf': Python cannot be started there", "python9", "install Python 3.10 or later", python="python9"
    )
    assert len(done.lines) == 1


def test_a_python_that_is_too_old_is_refused(refused, shelf):
    # The same interpreter that says it is older; the boot program runs in it as in a real one.
    pretend = "import sys; sys.version_info = (3, 8, 10, 'final', 0); code = sys.argv.pop(1); exec(code)"
    python = script(shelf, "python3.8", "shift 2", f'exec {sys.executable} -I -c {shlex.quote(pretend)} "$@"')
    done = refused("its", "is Python 3.8.10, 3.10 is the oldest; name a newer one in `install.python`", python=python)
    assert len(done.lines) == 1


def test_a_python_without_venv_is_refused_with_what_to_install(refused, shelf):
    before = sorted((shelf.home / "slad-edge/environments").iterdir())
    done = refused(
        "cannot make a virtual environment (", "sudo apt install python3.", "-venv`", python=without_venv(shelf)
    )
    assert done.lines[0].startswith("making an environment of Python")
    assert sorted((shelf.home / "slad-edge/environments").iterdir()) == before


def without_venv(shelf) -> str:
    """An interpreter whose environments have no ensurepip, as Debian's and Ubuntu's without python3-venv."""
    folder = shelf.home / "debian"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder], check=True)
    (site,) = folder.glob("lib/*/site-packages")
    (site / "first.pth").write_text(f"import sys; sys.path.insert(0, {str(folder)!r})\n")
    (folder / "venv.py").write_text(FAKE_VENV)
    return str(folder / "bin/python")


def test_another_architecture_is_refused(refused):
    done = refused("it is x86_64, the target says riscv64; is `host` the right one?", architecture="riscv64")
    assert len(done.lines) == 1


@pytest.mark.parametrize("what", ["disk", "memory"])
def test_too_little_room_is_refused_before_anything_is_sent(refused, what):
    done = refused(
        f"MB of {what} are free, `targets.shelf.install.{what}_mb` asks for 900000000", **{f"{what}_mb": 9 * 10**8}
    )
    assert len(done.lines) == 1
    assert re.search(r"\d+ MB of", done.error)


def test_a_requirement_that_pip_does_not_find_is_named(refused, desk, shelf):
    folder = desk.folder / "few"
    folder.mkdir()
    (folder / "ballast-1.0-py3-none-any.whl").write_bytes(b"not needed")
    words = ("pip cannot install ", "no-such-package-xyz", "among the wheels that were sent", "install.packages")
    refused(*words, packages=["no-such-package-xyz"], wheels=str(folder))
    shutil.rmtree(folder)
    desk.target("shelf", packages=None, wheels=None)
    desk.deployed("shelf")
    assert leftovers(shelf) == []


def test_a_folder_without_wheels_is_refused_here(refused, desk):
    refused("`targets.shelf.install.wheels`", "has no wheels; `pip download` fills it", code=2, wheels=str(desk.onnx))


def clock_device(folder: Path, offset: str):
    """A device whose clock is wrong; what runs on it sees only its own."""
    library = next(iter(sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))), None)
    if library is None:
        pytest.skip("libfaketime: not installed; Debian's package is faketime")
    return device_at(folder, "late", LD_PRELOAD=str(library), FAKETIME=offset)


def test_a_clock_that_is_wrong_is_told_and_orders_no_releases(tmp_path, models):
    with clock_device(tmp_path / "late", "+7h") as device:
        desk = Desk(tmp_path / "project", models, device)
        first = desk.deployed("late")
        ahead = [line for line in first.lines if line.startswith("warning: ")]
        assert ahead == ["warning: the clock of device 'late' is 7.0 h ahead of this one's; set it"]
        lines = [answer(device, "late")]
        set_clock(device, "-30h")
        for number in (1, 2):
            desk.model(number)
            done = desk.deployed("late")
            assert "warning: the clock of device 'late' is 30.0 h behind this one's; set it" in done.lines
            lines.append(answer(device, "late"))
        rows = desk.releases("late")["releases"]
        assert [row["release"][:4] for row in rows] == ["0001", "0002", "0003"]
        assert rows[0]["device_clock"] > rows[2]["device_clock"]
        for line in reversed(lines[:2]):
            assert desk.slad("rollback", "--target", "late").code == 0
            assert answer(device, "late") == line
        assert leftovers(device) == []
        idle(device)


def set_clock(device, offset: str) -> None:
    config = device.folder / "sshd_config"
    config.write_text(re.sub(r"FAKETIME=[^\"]*", f"FAKETIME={offset}", config.read_text()))
    device.restart()
