import contextlib
import os
import signal
import sqlite3
import time
from functools import partial

import pytest

from pipeline.base.errors import DataError
from pipeline.parts.checks import survey as module
from pipeline.parts.checks.cache import Cache
from pipeline.parts.checks.look import Seen
from pipeline.parts.checks.survey import Survey


def read(path, *, log=None):
    """A look that only reads; notes that it did."""
    if log is not None:
        with log.open("a") as file:
            file.write(path.name + "\n")
    if path.name == "deadly":
        os.kill(os.getpid(), signal.SIGKILL)
    return Seen(path.read_bytes().hex().ljust(64, "0"), width=len(path.name), pixels=((1, 2),))


@pytest.fixture
def files(tmp_path):
    folder = tmp_path / "files"
    folder.mkdir()
    paths = [folder / f"{number:03d}" for number in range(200)]
    for path in paths:
        path.write_bytes(path.name.encode())
    return paths


@pytest.fixture
def cache(tmp_path):
    with Cache(tmp_path / "cache.sqlite") as cache:
        yield cache


def look(cache, paths, *, workers=1, log=None):
    return list(Survey(cache, workers=workers).look(paths, partial(read, log=log), count=len(paths), title="files"))


@pytest.mark.parametrize("workers", [1, 2])
def test_files_are_seen_in_order(cache, files, workers, monkeypatch):
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    assert look(cache, files, workers=workers) == [read(path) for path in files]


def test_files_that_did_not_change_are_not_read_again(cache, files, tmp_path):
    first = look(cache, files)
    log = tmp_path / "log"
    files[3].write_bytes(b"changed")
    files[5].unlink()
    files[5].write_bytes(b"005")  # the same bytes in a new file
    second = look(cache, files, log=log)
    assert log.read_text().split() == ["003", "005"]
    assert second[3] == read(files[3]) != first[3]
    assert second[:3] + second[4:] == first[:3] + first[4:]


def test_a_change_that_keeps_size_and_date_is_seen(cache, files):
    look(cache, files)
    stat = files[0].stat()
    files[0].write_bytes(b"999")
    os.utime(files[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert look(cache, files[:1]) == [read(files[0])]


@pytest.mark.parametrize("workers", [1, 2])
def test_files_that_cannot_be_read_are_broken(cache, files, workers, monkeypatch):
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    files[1].unlink()
    files[2].unlink()
    files[2].mkdir()
    seen = look(cache, files, workers=workers)
    assert (seen[1].kind, seen[1].reason) == ("broken", "the file cannot be read (No such file or directory)")
    assert (seen[2].kind, seen[2].reason) == ("broken", "the file cannot be read (Is a directory)")
    assert look(cache, files)[1:3] == seen[1:3]  # and this is not kept


def test_a_killed_process_is_an_error_that_names_its_files(cache, files, monkeypatch):
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    deadly = files[0].with_name("deadly")
    deadly.write_bytes(b"x")
    with pytest.raises(DataError, match="a process that read '.*' or one of the .* files after it was killed"):
        look(cache, [*files[:70], deadly], workers=2)


def test_a_cache_that_is_none_is_begun_anew(tmp_path, files, capsys):
    file = tmp_path / "cache.sqlite"
    file.write_bytes(b"no database at all" * 100)
    with Cache(file) as cache:
        look(cache, files[:2])
        log = tmp_path / "log"
        look(cache, files[:2], log=log)
        assert not log.exists()
    assert "is damaged (file is not a database): it is begun anew" in capsys.readouterr().err


def test_a_cache_that_another_process_holds_is_done_without(tmp_path, files, capsys, monkeypatch):
    monkeypatch.setattr("pipeline.parts.checks.cache.PATIENCE", 0.0)
    monkeypatch.setattr("pipeline.parts.checks.cache.VERSION", 2)  # to open it is to write
    file = tmp_path / "cache.sqlite"
    with contextlib.closing(sqlite3.connect(file)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with Cache(file) as cache:
            assert len(look(cache, files[:2])) == 2
    assert "cannot be used (database is locked): files are read again" in capsys.readouterr().err
    assert file.is_file()


def test_a_cache_that_cannot_be_made_is_done_without(tmp_path, files, capsys):
    (tmp_path / "file").write_text("")
    with Cache(tmp_path / "file/cache.sqlite") as cache:
        assert len(look(cache, files[:2])) == 2
    assert "cannot be used" in capsys.readouterr().err


def test_a_cache_of_another_version_is_forgotten(tmp_path, files, monkeypatch):
    with Cache(tmp_path / "cache.sqlite") as cache:
        look(cache, files[:2])
    monkeypatch.setattr("pipeline.parts.checks.cache.VERSION", 2)
    with Cache(tmp_path / "cache.sqlite") as cache:
        log = tmp_path / "log"
        look(cache, files[:2], log=log)
        assert log.read_text().split() == ["000", "001"]


def test_batches_wait_in_a_bounded_number(cache, files, monkeypatch):
    """What is taken from the paths ahead of what was yielded does not grow with their number."""
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    monkeypatch.setattr(module, "BATCH", 2)
    taken = []
    paths = (taken.append(path) or path for path in files)
    seen = Survey(cache, workers=2).look(paths, read, count=len(files), title="files")
    next(seen)
    assert len(taken) <= 2 * (module.AHEAD * 2 + 1)
    assert len(list(seen)) == len(files) - 1


def test_what_one_look_saw_is_nothing_to_another(cache, files):
    survey = Survey(cache, workers=1)
    for title in ("images", "masks"):
        seen = list(survey.look(files[:1], partial(read_as, title), count=1, title=title))
        assert seen[0].reason == title


def read_as(title, path):
    return Seen("00" * 32, reason=title)


def test_a_process_killed_while_files_are_handed_out_is_an_error(cache, files, monkeypatch):
    monkeypatch.setattr(module, "WORTH_PROCESSES", 1)
    deadly = files[0].parent / "deadly"
    deadly.write_bytes(b"x")
    paths = [*files[:70], deadly, *[files[0].parent / f"{number:03d}" for number in range(70, 200)] * 10]
    slowly = (time.sleep(0.002) for _ in Survey(cache, workers=2).look(paths, read, count=len(paths), title="files"))
    with pytest.raises(DataError, match="was killed, perhaps for want of memory; lower `prepare.workers`"):
        list(slowly)


def test_a_cache_that_stops_working_is_done_without(cache, files, capsys):
    look(cache, files[:2])
    cache._base.execute("DROP TABLE seen")
    assert look(cache, files[:3]) == [read(path) for path in files[:3]]
    assert capsys.readouterr().err.count("cannot be used (no such table: seen): files are read again") == 1
