import ast
import json
import os
import platform
import subprocess
import sys
from base64 import b64encode
from pathlib import Path

import pytest

from deploy.remote import boot
from deploy.remote.session import BOOT, HELLO
from deploy.remote.wheel import device_wheel

WHEEL = device_wheel()
NAME = WHEEL.sha256[:16]
STATUS = json.dumps({"do": "status", "target": "t"}).encode() + b"\n"
NOTHING = {"done": {"current": None, "releases": []}}


def start(home: Path, said: bytes, **changes) -> tuple[int, list[str]]:
    """Run the boot program as on a device; return its exit code and what it writes."""
    asked = {"folder": "slad-edge", "sha256": WHEEL.sha256, "bytes": len(WHEEL.content), "python": [3, 10], **changes}
    argument = b64encode(json.dumps(asked).encode()).decode()
    done = subprocess.run(
        [sys.executable, "-I", "-c", BOOT, argument], input=said, env={**os.environ, "HOME": str(home)},
        capture_output=True, check=False,
    )  # fmt: skip
    return done.returncode, done.stdout.decode().splitlines()


def words(line: str) -> dict:
    assert line.startswith(HELLO.decode())
    return json.loads(line[len(HELLO) :])


def test_any_python_3_can_read_it():
    ast.parse(BOOT, feature_version=(3, 5))
    imported = {
        name.name
        for node in ast.walk(ast.parse(BOOT))
        if isinstance(node, ast.Import) and node.col_offset == 0
        for name in node.names
    }
    assert imported <= sys.stdlib_module_names


def test_the_package_is_taken_in_once_and_serves(tmp_path):
    code, lines = start(tmp_path, WHEEL.content + STATUS)
    hello = words(lines[0])
    assert hello == {
        "python": list(sys.version_info[:3]), "machine": platform.machine(), "system": platform.system(),
        "there": False, "root": str(tmp_path / "slad-edge"),
    }  # fmt: skip
    assert (code, words(lines[1]), json.loads(lines[2])) == (0, {"error": None}, NOTHING)
    assert [each.name for each in (tmp_path / "slad-edge/packages").iterdir()] == [NAME]

    code, lines = start(tmp_path, STATUS)
    assert (code, words(lines[0])["there"], json.loads(lines[1])) == (0, True, NOTHING)


def test_an_absolute_folder_is_taken_as_it_is(tmp_path):
    lines = start(tmp_path / "home", b"", folder=str(tmp_path / "other"))[1]
    assert words(lines[0])["root"] == str(tmp_path / "other")


@pytest.mark.parametrize("content", [WHEEL.content[:-1], b"x" * len(WHEEL.content), b""])
def test_a_package_that_arrives_damaged_is_not_unpacked(tmp_path, content):
    assert len(start(tmp_path, content)[1]) == 1
    assert list(tmp_path.iterdir()) == []


def test_a_python_that_is_too_old_says_so_and_takes_nothing(tmp_path):
    code, lines = start(tmp_path, WHEEL.content + STATUS, python=[99, 0])
    assert (code, len(lines)) == (0, 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "slad-edge").touch()
    code, lines = start(tmp_path, WHEEL.content + STATUS)
    assert code == 0
    assert "Not a directory" in words(lines[1])["error"] or "File exists" in words(lines[1])["error"]


def test_a_package_that_another_connection_unpacked_first_is_as_good(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)
    (tmp_path / "there/deploy").mkdir(parents=True)
    boot.unpack(WHEEL.content, tmp_path / "there")
    assert [each.name for each in tmp_path.iterdir()] == ["there"]


def test_a_package_that_cannot_be_put_in_its_place_leaves_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sync", lambda: None)
    (tmp_path / "there").touch()
    with pytest.raises(OSError, match="Not a directory"):
        boot.unpack(WHEEL.content, tmp_path / "there")
    assert [each.name for each in tmp_path.iterdir()] == ["there"]
