import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from deploy import files
from deploy.files import remove_folder, remove_leftovers, replaced_folder, sha256_file, write_json, write_text

ABC = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.fixture
def dead_pid() -> int:
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def names(folder: Path) -> set[str]:
    return {entry.name for entry in folder.iterdir()}


def spoil(folder: Path, error: type[BaseException]) -> None:
    (folder / "half").touch()
    raise error


def test_sha256_is_that_of_the_standard(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    assert sha256_file(tmp_path / "abc") == ABC


def test_json_keeps_order_and_ends_with_newline(tmp_path):
    write_json(tmp_path / "a.json", {"b": 1, "a": "é"})
    assert (tmp_path / "a.json").read_text(encoding="utf-8") == '{\n  "b": 1,\n  "a": "é"\n}\n'
    assert names(tmp_path) == {"a.json"}


def test_json_refuses_nan_and_keeps_the_old_file(tmp_path):
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "a.json", float("nan"))
    assert json.loads((tmp_path / "a.json").read_text()) == 1


def test_failed_write_leaves_the_old_file_and_no_temporary(tmp_path, monkeypatch):
    write_text(tmp_path / "a.txt", "old")
    monkeypatch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        write_text(tmp_path / "a.txt", "new")
    assert (tmp_path / "a.txt").read_text() == "old"
    assert names(tmp_path) == {"a.txt"}


def test_folder_is_replaced_whole_with_normal_mode(tmp_path):
    target = tmp_path / "deep" / "out"
    target.mkdir(parents=True)
    (target / "stale").touch()
    with replaced_folder(target) as folder:
        assert folder.parent == target.parent
        assert folder.name == f".out.new-{os.getpid()}"
        assert names(target) == {"stale"}
        (folder / "fresh").touch()
    assert names(target) == {"fresh"}
    assert names(target.parent) == {"out"}
    mask = os.umask(0)
    os.umask(mask)
    assert target.stat().st_mode & 0o777 == 0o777 & ~mask


def test_folder_need_not_exist(tmp_path):
    with replaced_folder(tmp_path / "a" / "b") as folder:
        (folder / "x").touch()
    assert names(tmp_path / "a" / "b") == {"x"}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_exception_midway_leaves_the_old_folder(tmp_path, error):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    inode = target.stat().st_ino
    with pytest.raises(error), replaced_folder(target) as folder:
        spoil(folder, error)
    assert (names(target), names(tmp_path), target.stat().st_ino) == ({"old"}, {"out"}, inode)


def test_old_folder_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    rename = Path.rename

    def fail(self: Path, other: Path) -> Path:
        if ".new-" in self.name:
            raise OSError(errno.EIO, "no rename")
        return rename(self, other)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="no rename"), replaced_folder(target):
        pass
    assert (names(target), names(tmp_path)) == ({"old"}, {"out"})


def test_leftovers_of_killed_runs_are_cleaned(tmp_path, dead_pid):
    target = tmp_path / "out"
    target.mkdir()
    for kind in ("new", "old"):
        (tmp_path / f".out.{kind}-{dead_pid}").mkdir()
        (tmp_path / f".out.{kind}-{dead_pid}" / "junk").touch()
    (tmp_path / f".other.new-{dead_pid}").mkdir()
    with replaced_folder(target):
        pass
    assert names(tmp_path) == {"out", f".other.new-{dead_pid}"}


def test_old_folder_is_restored_after_a_kill_between_two_renames(tmp_path, dead_pid):
    target = tmp_path / "out"
    aside = tmp_path / f".out.old-{dead_pid}"
    aside.mkdir()
    (aside / "precious").touch()
    with pytest.raises(RuntimeError), replaced_folder(target) as folder:
        spoil(folder, RuntimeError)
    assert names(target) == {"precious"}


def test_folder_of_a_running_process_is_left_alone(tmp_path):
    other = tmp_path / f".out.new-{os.getppid()}"
    other.mkdir()
    with replaced_folder(tmp_path / "out"):
        pass
    assert other.is_dir()


def test_a_kill_midway_leaves_the_old_folder_untouched(tmp_path):
    target = tmp_path / "out"
    target.mkdir()
    (target / "old").touch()
    code = (
        "import os, sys, pathlib; from deploy.files import replaced_folder\n"
        "with replaced_folder(pathlib.Path(sys.argv[1])) as f: (f / 'half').touch(); os.kill(os.getpid(), 9)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(target)], check=False).returncode == -9
    assert names(target) == {"old"}
    with replaced_folder(target) as folder:
        (folder / "new").touch()
    assert (names(target), names(tmp_path)) == ({"new"}, {"out"})


def test_a_folder_goes_by_its_name_first(tmp_path, monkeypatch):
    (tmp_path / "a/b").mkdir(parents=True)

    def cut(path):
        raise OSError(errno.EIO, "cut short")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", cut)
        with pytest.raises(OSError, match="cut short"):
            remove_folder(tmp_path / "a")
    assert [each.name for each in tmp_path.iterdir()] == [f".a.gone-{os.getpid()}"]
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_leftovers_of_processes_that_run_stay_where_others_are_at_work(tmp_path):
    for name in (".a.new-1", ".a.gone-999999999", ".b.wheels", "c"):
        (tmp_path / name).mkdir()
    remove_leftovers(tmp_path, shared=True)
    assert {each.name for each in tmp_path.iterdir()} == {".a.new-1", "c"}
    remove_leftovers(tmp_path)
    assert {each.name for each in tmp_path.iterdir()} == {"c"}
