import os
import pickle
import random
from pathlib import Path
from zipfile import ZipFile

import pytest
import torch

from pipeline.parts.checkpoints import NAME, Checkpoints, discard

SETTINGS = {"seed": 0, "distill": {"rank": 8, "targets": ("q", "v"), "micro_batch": None}}
STATE = {"step": 7, "models": {"a": torch.arange(6.0).reshape(2, 3)}, "best": {"parameters": [torch.ones(2)]}}


def store(folder, *, settings=SETTINGS, every_s=0.0, writes=True) -> Checkpoints:
    return Checkpoints(folder, settings=settings, every_s=every_s, writes=writes)


def files(folder):
    return sorted(file.name for file in folder.iterdir()) if folder.is_dir() else []


def test_what_was_saved_comes_back(tmp_path, capsys):
    store(tmp_path / "deep/checkpoints").save(STATE)
    found = store(tmp_path / "deep/checkpoints").load()
    assert found["step"] == 7
    assert torch.equal(found["models"]["a"], STATE["models"]["a"])
    assert torch.equal(found["best"]["parameters"][0], torch.ones(2))
    assert capsys.readouterr().err == ""


def test_without_a_checkpoint_nothing_is_said(tmp_path, capsys):
    assert store(tmp_path / "none").load() is None
    assert capsys.readouterr().err == ""


def test_one_file_is_kept(tmp_path):
    one = store(tmp_path)
    for step in range(3):
        one.save({"step": step})
        assert files(tmp_path) == [NAME]
    assert one.load() == {"step": 2}


@pytest.mark.parametrize("where", ["fsync", "replace"])
def test_a_failure_while_saving_leaves_the_old_file_whole(tmp_path, monkeypatch, where):
    one = store(tmp_path)
    one.save({"step": 1})

    def fail(*_args):
        raise OSError("no space left")

    monkeypatch.setattr(*((os, "fsync", fail) if where == "fsync" else (Path, "replace", fail)))
    with pytest.raises(OSError, match="no space left"):
        one.save({"step": 2})
    monkeypatch.undo()
    assert store(tmp_path).load() == {"step": 1}
    one.save({"step": 3})
    assert files(tmp_path) == [NAME]


def truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def emptied(path):
    path.write_bytes(b"")


def overwritten(path):
    path.write_bytes(b"no checkpoint at all")


def foreign(path):
    torch.save([1, 2, 3], path)


def without_settings(path):
    torch.save({"state": {"step": 7}}, path)


class Evil:
    """What a hostile file would hold: a call that is made when it is unpickled."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


def hostile(path):
    torch.save({"settings": {}, "state": Evil()}, path)


def old_pickle(path):
    path.write_bytes(pickle.dumps({"settings": {}, "state": Evil()}, protocol=2))


@pytest.mark.parametrize(
    "spoil", [truncated, emptied, overwritten, foreign, without_settings, hostile, old_pickle], ids=lambda f: f.__name__
)
def test_a_file_that_cannot_be_read_is_refused_with_a_reason_and_runs_nothing(tmp_path, monkeypatch, capsys, spoil):
    monkeypatch.chdir(tmp_path)
    store(tmp_path).save(STATE)
    spoil(tmp_path / NAME)
    assert store(tmp_path).load() is None
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"note: the checkpoint {str(tmp_path / NAME)!r} cannot be read (")
    assert line.endswith("; training starts from the beginning")
    assert not (tmp_path / "ran").exists()


def test_a_file_with_a_damaged_content_is_refused(tmp_path):
    store(tmp_path).save(STATE)
    path = tmp_path / NAME
    whole = path.read_bytes()
    with ZipFile(path) as archive:
        contents = [archive.read(entry) for entry in archive.infolist() if entry.file_size > 8]
    assert len(contents) > 2
    generator = random.Random(0)
    for content in contents:
        for _ in range(20):
            damaged = bytearray(whole)
            damaged[whole.index(content) + generator.randrange(len(content))] ^= 1 << generator.randrange(8)
            path.write_bytes(bytes(damaged))
            assert store(tmp_path).load() is None
    for _ in range(20):
        path.write_bytes(whole[: generator.randrange(len(whole))])
        assert store(tmp_path).load() is None
    path.write_bytes(whole)
    assert store(tmp_path).load()["step"] == 7


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (SETTINGS | {"seed": 1}, ("(seed was 0, is 1)",)),
        (SETTINGS | {"distill": SETTINGS["distill"] | {"rank": 4}}, ("(distill.rank was 8, is 4)",)),
        (
            SETTINGS | {"distill": SETTINGS["distill"] | {"targets": ("q",)}},
            ("targets was ['q', 'v'], is ['q']",),
        ),
        (SETTINGS | {"torch": "2"}, ("(torch was None, is '2')",)),
        ({"seed": 0}, ("distill.rank was 8, is None",)),
        ({str(i): i for i in range(9)}, (" and ", " more)")),
    ],
    ids=["seed", "nested", "list", "new key", "lost keys", "many"],
)
def test_a_checkpoint_of_other_settings_is_refused_by_name(tmp_path, capsys, settings, words):
    store(tmp_path).save(STATE)
    found = store(tmp_path, settings=settings).load()
    error = capsys.readouterr().err
    assert found is None
    assert error.count("\n") == 1
    assert "belongs to other parameters" in error
    assert all(word in error for word in words), error


def test_tuples_and_lists_are_the_same_settings(tmp_path):
    store(tmp_path).save(STATE)
    listed = SETTINGS | {"distill": SETTINGS["distill"] | {"targets": ["q", "v"]}}
    assert store(tmp_path, settings=listed).load()["step"] == 7


def test_only_one_process_writes_and_tells(tmp_path, capsys):
    store(tmp_path).save(STATE)
    other = store(tmp_path, settings={"seed": 1}, writes=False)
    assert not other.due
    assert other.load() is None
    assert capsys.readouterr().err == ""


def test_discarding_removes_the_checkpoint_and_what_a_killed_run_left(tmp_path):
    discard(tmp_path / "nothing there")
    store(tmp_path).save(STATE)
    (tmp_path / NAME).with_suffix(".tmp").write_bytes(b"half")
    discard(tmp_path)
    assert files(tmp_path) == []


def test_a_checkpoint_is_due_once_it_is_old_enough(tmp_path, monkeypatch):
    now = 100.0
    monkeypatch.setattr("pipeline.parts.checkpoints.time.monotonic", lambda: now)
    one = store(tmp_path, every_s=60.0)
    assert not one.due
    now = 160.0
    assert one.due
    one.save(STATE)
    assert not one.due
    now = 219.9
    assert not one.due
    now = 220.0
    assert one.due


def test_with_no_pause_every_step_is_due(tmp_path):
    assert store(tmp_path, every_s=0.0).due
