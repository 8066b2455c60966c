import json
from contextlib import contextmanager
from dataclasses import replace

import pytest

from deploy.errors import BundleError, DeployError, DeviceError, EngineError
from deploy.remote import session as module
from deploy.remote.session import connected
from deploy.remote.trees import Blob, text_blob
from deploy.target import read_target
from tests.fake_device import SSH

BLOB = text_blob("content")


@contextmanager
def session(device, **install):
    target = read_target("t", device.spec)
    with connected(replace(target, install=replace(target.install, **install)), say=device.say) as found:
        yield found


def answered(device, *lines):
    """Ask a device that says what it likes."""
    device.answer(*lines)
    with session(device) as found:
        return found.ask("status")


def test_a_device_is_given_the_package_once_and_files_once(device, tmp_path):
    with session(device) as found:
        tree = {"deep/a": BLOB, "b": text_blob("other")}
        assert found.check_out(tree, "data", target="t") == 12
        assert found.check_out(tree, "data2", target="t") == 0
        found.fetch("data", ["**/*"], tmp_path, target="t")
    assert (tmp_path / "deep/a").read_text() == "content"
    assert (tmp_path / "b").read_text() == "other"
    (said,) = device.said
    assert said.startswith("sending the device package, ")
    with session(device) as found:
        assert found.send([BLOB]) == 0
    assert len(device.said) == 1


def test_what_an_account_prints_at_its_start_is_passed_over(device):
    device.speak(SSH.replace("cd ", "echo Welcome; echo 'slad-edge'; cd "))
    with session(device) as found:
        assert found.ask("status", target="t") == {"current": None, "releases": []}


def test_the_rest_of_what_was_cut_short_is_sent(device):
    part = device.root / "blobs" / f"{BLOB.sha256}.part"
    part.parent.mkdir(parents=True)
    part.write_text("con")
    with session(device) as found:
        assert found.send([BLOB]) == 4
        part.with_suffix("").unlink()
        part.write_text("x")
        assert found.send([BLOB]) == 6 + 7  # what was damaged is sent once more


@pytest.mark.parametrize("content", ["changed", "short", ""])
def test_a_file_that_has_changed_is_told(device, tmp_path, content):
    (tmp_path / "a").write_text(content)
    with (
        session(device) as found,
        pytest.raises(DeviceError, match=f"1 files arrived with another content than was listed, first {tmp_path}/a;"),
    ):
        found.send([Blob(BLOB.sha256, BLOB.size, tmp_path / "a")])
    assert list((device.root / "blobs").iterdir()) == []


def test_a_file_that_has_gone_is_told(device, tmp_path):
    with pytest.raises(BundleError, match=f"{tmp_path}/a: cannot be read any more .No such file"), session(device) as s:
        s.send([Blob(BLOB.sha256, BLOB.size, tmp_path / "a")])


def test_what_the_device_has_no_room_for_is_not_sent(device):
    with (
        session(device) as found,
        pytest.raises(DeviceError, match=r"device 'device': 1000000000000 MB are to be sent, and \d+ MB of its disk"),
    ):
        found.send([Blob("0" * 64, 10**18, b"")])


def test_a_device_that_stops_listening_tells_why(device, monkeypatch):
    (device.root / "blobs" / f"{BLOB.sha256}.part").mkdir(parents=True)
    with session(device) as found, pytest.raises(DeviceError, match=r"device 'device': \[Errno 21\].*check the free"):
        found.send([BLOB, *(text_blob("x" * 300_000 + str(number)) for number in range(4))])


@pytest.mark.parametrize(("code", "kind"), [(7, EngineError), (10, DeviceError), (1, DeviceError), (99, DeviceError)])
def test_errors_keep_their_kind(device, code, kind):
    with pytest.raises(DeployError, match="^device 'device': no .?31m good$") as caught:
        answered(device, json.dumps({"code": code, "error": "no \x1b31m good"}))
    assert type(caught.value) is kind


def test_lines_of_the_device_are_passed_on_without_what_a_terminal_would_obey(device):
    assert answered(device, '{"say": "one"}', '{"say": "\\u001b[2J"}', '{"done": 3}') == 3
    assert device.said == ["one", "?[2J"]


@pytest.mark.parametrize(
    "line",
    ["garbage", "3", "[]", "{}", '{"say"', '{"error": "no code"}', '{"error": "x", "code": []}', b"\xff\n", "null"],
)
def test_an_answer_that_makes_no_sense_is_told(device, line):
    with pytest.raises(DeviceError, match=r"device 'device': its answer makes no sense \(\w+Error: .*output of each s"):
        answered(device, line)


@pytest.mark.parametrize("rest", [b"", b'{"done": 3}', b'{"sa'])
def test_a_connection_that_is_lost_in_the_middle_is_told(device, rest):
    with pytest.raises(DeviceError, match="device 'device': what ran there ended with code 0; run it again"):
        answered(device, '{"say": "one"}', rest)


@pytest.mark.parametrize(
    "name", ["../a", "/tmp/slad-edge-a", "a/../../b", ".", "", "x/.."], ids=["up", "absolute", "far", "dot", "no", "in"]
)
def test_a_file_that_leaves_its_folder_is_refused(device, tmp_path, name):
    (tmp_path / "into").mkdir()
    device.answer(json.dumps({"done": {name: 1}}), b"x")
    with (
        session(device) as found,
        pytest.raises(DeviceError, match=r"names a file '.*', which leaves its folder; is it"),
    ):
        found.fetch("engines", ["*"], tmp_path / "into", target="t")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["device", "into"]
    assert list((tmp_path / "into").iterdir()) == []


@pytest.mark.parametrize("answer", [{"a": "x"}, {"a": None}, {"a\0": 1}, [], "a", None])
def test_a_list_of_files_that_makes_no_sense_is_told(device, tmp_path, answer):
    device.answer(json.dumps({"done": answer}))
    with session(device) as found, pytest.raises(DeviceError, match="its answer makes no sense"):
        found.fetch("engines", ["*"], tmp_path, target="t")


def test_a_file_that_ends_early_is_a_lost_connection(device, tmp_path):
    device.answer('{"done": {"a": 5}}', b"1234")
    with session(device) as found, pytest.raises(DeviceError, match="what ran there ended with code 0"):
        found.fetch("engines", ["*"], tmp_path, target="t")


@pytest.mark.parametrize(
    "begun", [{"0" * 64: 0}, {BLOB.sha256: -1000}, {BLOB.sha256: 8}, {BLOB.sha256: "1"}, [BLOB.sha256], None]
)
def test_a_device_that_wants_what_it_was_not_offered_is_told(device, begun):
    device.answer(json.dumps({"done": {"begun": begun, "free": 10**9}}))
    with session(device) as found, pytest.raises(DeviceError, match="its answer makes no sense"):
        found.send([BLOB])


@pytest.mark.parametrize(
    ("changes", "install", "message"),
    [
        ({"python": [3, 9, 2]}, {}, "device 'device': its /.* is Python 3.9.2, 3.10 is the oldest; name a newer one"),
        ({"system": "Darwin"}, {}, "it runs Darwin; only Linux can be deployed to"),
        ({"machine": "x86_64"}, {"architecture": "aarch64"}, "it is x86_64, the target says aarch64; is `host` the r"),
        ({"system": "Darwin", "python": [3, 9, 2]}, {}, "is Python 3.9.2.*; it runs Darwin"),
        ({"python": None}, {}, "its answer makes no sense"),
        ({"python": [3, "x"]}, {}, "its answer makes no sense"),
    ],
)
def test_a_device_that_is_not_fit_is_refused(device, changes, install, message):
    device.answer()
    hello = json.loads((device.home / "answers").read_text().partition(": ")[2])
    (device.home / "answers").write_text(f"slad-edge device: {json.dumps({**hello, **changes})}\n")
    with pytest.raises(DeviceError, match=message), session(device, **install):
        pass


def test_a_package_that_cannot_be_unpacked_is_told(device):
    (device.root / "packages").touch()
    message = rf"the package cannot be unpacked in {device.root} \(.*\); check the free space"
    with pytest.raises(DeviceError, match=message), session(device):
        pass


def test_a_python_that_is_not_there_is_told(device):
    message = r"Python cannot be started there \(.*no-python.*\); install Python 3\.10"
    with pytest.raises(DeviceError, match=message), session(device, python="no-python"):
        pass


@pytest.mark.slow
def test_progress_is_said_of_what_takes_long(device, monkeypatch):
    monkeypatch.setattr(module, "SAY_EVERY_S", 0.0)
    with session(device) as found:
        device.said.clear()
        assert found.send([text_blob("x" * 2_000_000)]) == 2_000_000
    assert device.said == ["sending 2.00 MB, 1 of 1 files", "sent 2.0 of 2.0 MB"]


def test_an_error_while_it_is_used_ends_the_connection(device):
    with pytest.raises(ZeroDivisionError), session(device) as found:
        raise ZeroDivisionError
    assert found._pipe._process.returncode == 0
