import errno
import hashlib
import io
import os
from pathlib import Path

import pytest

from deploy.errors import DeviceError
from deploy.install import store as module
from deploy.install.store import Store

CONTENT = b"0123456789" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
WANTED = [(SHA256, len(CONTENT))]


@pytest.fixture
def store(tmp_path):
    (tmp_path / "blobs").mkdir()
    return Store(tmp_path / "blobs")


def receive(store, content=CONTENT):
    return store.receive(SHA256, len(CONTENT), io.BytesIO(content))


def test_a_file_is_received_once_and_is_read_only(store, tmp_path):
    assert store.lacking(WANTED) == {SHA256: 0}
    assert receive(store)
    assert (tmp_path / "blobs" / SHA256).read_bytes() == CONTENT
    assert (tmp_path / "blobs" / SHA256).stat().st_mode & 0o777 == 0o444
    assert store.lacking(WANTED) == {}


def test_no_more_is_read_than_belongs_to_the_file(store):
    stream = io.BytesIO(CONTENT + b"next request")
    store.receive(SHA256, len(CONTENT), stream)
    assert stream.read() == b"next request"


def test_a_file_that_was_cut_short_goes_on(store):
    with pytest.raises(EOFError):
        receive(store, CONTENT[:4000])
    assert store.lacking(WANTED) == {SHA256: 4000}
    assert receive(store, CONTENT[4000:])
    assert store.lacking(WANTED) == {}


def test_a_part_that_is_longer_than_the_file_is_begun_anew(store, tmp_path):
    (tmp_path / "blobs" / f"{SHA256}.part").write_bytes(CONTENT + b"x")
    assert store.lacking(WANTED) == {SHA256: 0}
    assert receive(store)


def test_a_damaged_part_is_told_and_begun_anew(store, tmp_path):
    (tmp_path / "blobs" / f"{SHA256}.part").write_bytes(b"x" * 4000)
    assert not receive(store, CONTENT[4000:])
    assert list((tmp_path / "blobs").iterdir()) == []
    assert store.lacking(WANTED) == {SHA256: 0}


def test_a_whole_part_needs_no_byte(store, tmp_path):
    (tmp_path / "blobs" / f"{SHA256}.part").write_bytes(CONTENT)
    assert store.lacking(WANTED) == {SHA256: len(CONTENT)}
    assert receive(store, b"")


@pytest.mark.parametrize("damaged", [b"x" * len(CONTENT), CONTENT[:-1]])
def test_a_file_that_the_disk_has_damaged_is_wanted_again(store, tmp_path, damaged):
    receive(store)
    (tmp_path / "blobs" / SHA256).unlink()
    (tmp_path / "blobs" / SHA256).write_bytes(damaged)
    assert store.lacking(WANTED) == {SHA256: 0}
    assert not (tmp_path / "blobs" / SHA256).exists()


def test_a_full_disk_leaves_nothing(store, tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        receive(store)
    assert list((tmp_path / "blobs").iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_while_it_is_written_leaves_nothing(store, tmp_path):
    part = tmp_path / "blobs" / f"{SHA256}.part"
    part.symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left"):
        receive(store)
    assert not part.is_symlink()


def test_a_folder_is_laid_out_of_links(store, tmp_path):
    receive(store)
    store.check_out(tmp_path / "out", {"a": SHA256, "deep/b": SHA256})
    assert (tmp_path / "out/deep/b").read_bytes() == CONTENT
    assert (tmp_path / "out/a").stat().st_ino == (tmp_path / "blobs" / SHA256).stat().st_ino


def test_a_folder_is_laid_out_of_copies_where_the_file_system_has_no_links(store, tmp_path, monkeypatch):
    def other_device(*_):
        raise OSError(errno.EXDEV, "Invalid cross-device link")

    receive(store)
    monkeypatch.setattr(module.os, "link", other_device)
    store.check_out(tmp_path / "out", {"a": SHA256})
    assert (tmp_path / "out/a").read_bytes() == CONTENT
    assert (tmp_path / "out/a").stat().st_ino != (tmp_path / "blobs" / SHA256).stat().st_ino


@pytest.mark.parametrize("name", ["../a", "/etc/a", "a/../../b"])
def test_a_path_that_leaves_the_folder_is_refused(store, tmp_path, name):
    receive(store)
    with pytest.raises(DeviceError, match="leaves the folder or was not sent"):
        store.check_out(tmp_path / "out", {name: SHA256})
    assert [each.name for each in tmp_path.iterdir()] == ["blobs"]


def test_a_folder_with_a_file_that_was_not_sent_stays_as_it_was(store, tmp_path):
    receive(store)
    store.check_out(tmp_path / "out", {"a": SHA256})
    with pytest.raises(DeviceError, match=r"'b' leaves the folder or was not sent \(000000000000\); deploy again"):
        store.check_out(tmp_path / "out", {"a": SHA256, "b": "0" * 64})
    assert [each.name for each in (tmp_path / "out").iterdir()] == ["a"]


def test_what_a_folder_still_holds_is_not_pruned(store, tmp_path):
    other = b"other"
    receive(store)
    store.receive(hashlib.sha256(other).hexdigest(), len(other), io.BytesIO(other))
    (tmp_path / "blobs" / f"{'0' * 64}.part").write_bytes(b"1234")
    store.check_out(tmp_path / "out", {"a": SHA256})
    assert store.prune() == len(other) + 4
    assert [each.name for each in (tmp_path / "blobs").iterdir()] == [SHA256]
