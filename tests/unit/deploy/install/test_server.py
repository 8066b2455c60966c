import errno
import hashlib
import io
import json
import shutil

import pytest

from deploy.install import server as module
from deploy.install.environment import READY
from deploy.install.root import Root
from deploy.install.server import Server, main
from tests.unit.deploy.install.conftest import KEY

CONTENT = b"0123456789"
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FILE = [SHA256, len(CONTENT)]


def line(**request) -> bytes:
    return json.dumps(request).encode() + b"\n"


RECEIVE = line(do="receive", files=[FILE])
LACKING = line(do="lacking", files=[FILE])
ROOM = line(do="room")


@pytest.fixture
def serve(root: Root):
    """Answers requests that are all there before; what runs programs needs a host that waits, `ask`."""

    def all_at_once(*requests: bytes) -> bytes:
        answers = io.BytesIO()
        all_at_once.code = main(root.folder, root.package, io.BytesIO(b"".join(requests)), answers)
        return answers.getvalue()

    return all_at_once


@pytest.fixture
def ask(root: Root, host):
    """Asks one thing, of a server whose host keeps its stream open."""
    answers = io.BytesIO()
    server = Server(root.folder, root.package, host[0], answers)

    def one(**request) -> list[dict]:
        answers.seek(0)
        answers.truncate()
        server._answered(request)
        return [json.loads(each) for each in answers.getvalue().splitlines()]

    return one


def test_files_are_sent_checked_out_and_fetched(serve):
    found = serve(
        LACKING, RECEIVE, CONTENT, LACKING,
        line(do="check_out", target="t", folder="data", files={"deep/a": SHA256, "b": SHA256}),
        line(do="fetch", target="t", folder="data", patterns=["*/a", "*", "none*"]),
        line(do="remove", target="t", folder="data"),
        line(do="remove", target="t", folder="data"),
        line(do="fetch", target="t", folder="data", patterns=["*"]),
    )  # fmt: skip
    answers, rest = found.split(CONTENT + CONTENT)
    done = [json.loads(each)["done"] for each in answers.splitlines()]
    assert [done[0]["begun"], done[1], done[2]["begun"], done[3]] == [{SHA256: 0}, [], {}, None]
    assert done[4] == {"deep/a": 10, "b": 10}
    assert [json.loads(each)["done"] for each in rest.splitlines()] == [None, None, {}]


def test_a_damaged_file_is_told_and_the_next_request_answered(serve):
    answers = serve(LACKING, RECEIVE, b"x" * 10, LACKING).splitlines()
    lacking, damaged, again = (json.loads(each)["done"] for each in answers)
    assert (lacking["begun"], damaged, again["begun"]) == ({SHA256: 0}, [SHA256], {SHA256: 0})


def test_a_host_that_goes_while_it_sends_leaves_what_has_come(serve, root):
    serve(LACKING, RECEIVE, CONTENT[:4])
    assert serve.code == 10
    assert root.store.lacking([(SHA256, len(CONTENT))]) == {SHA256: 4}


def test_a_full_disk_is_told_and_what_is_still_sent_is_no_request(serve, root, monkeypatch):
    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device", "blobs")

    monkeypatch.setattr(module.Server, "_prune", lambda *_: pytest.fail("taken for a request"))
    monkeypatch.setattr("os.fsync", full)
    answers = serve(LACKING, RECEIVE, CONTENT, line(do="prune")).splitlines()
    assert json.loads(answers[1]) == {
        "code": 10,
        "error": "[Errno 28] No space left on device: 'blobs'; check the free space, and whether this account may "
        "write there",
    }
    assert len(answers) == 2


def test_a_path_that_leaves_its_folder_is_refused(serve, root):
    answers = serve(LACKING, RECEIVE, CONTENT, line(do="check_out", target="t", folder="d", files={"../a": SHA256}))
    assert "leaves the folder" in json.loads(answers.splitlines()[-1])["error"]


def test_room_is_what_is_left(serve, root, monkeypatch, tmp_path):
    (tmp_path / "meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "meminfo")
    monkeypatch.setattr(module.time, "time", lambda: 7.5)
    found = json.loads(serve(ROOM))["done"]
    assert found == {"disk_mb": found["disk_mb"], "memory_mb": 2, "clock": 7.5}
    assert abs(found["disk_mb"] - shutil.disk_usage(tmp_path).free / 1e6) < 10_000
    monkeypatch.setattr(module, "MEMINFO", tmp_path / "none")
    assert json.loads(serve(ROOM))["done"]["memory_mb"] is None


def test_a_folder_that_cannot_be_made_is_told(root, tmp_path):
    (tmp_path / "file").touch()
    answers = io.BytesIO()
    main(tmp_path / "file/slad-edge", root.package, io.BytesIO(ROOM), answers)
    assert "Not a directory" in json.loads(answers.getvalue())["error"]


def test_a_package_that_another_host_has_pruned_is_told(serve, root):
    assert json.loads(serve(line(do="lock"))) == {"done": None}
    root.package.rmdir()
    assert "another release of slad-edge was at work; run it again" in json.loads(serve(line(do="lock")))["error"]


def test_the_lock_is_held_to_the_end_of_the_connection(serve, root):
    serve(line(do="lock"))
    with root.locked():
        pass


def test_a_command_prints_and_says(ask, root):
    found = ask(do="command", target="t", environment=KEY, arguments=["fingerprint"], good=[])
    assert found == [{"done": {"output": '{"board": "fake"}\n', "reason": None}}]
    assert (root.target("t") / "work/environment").read_text() == KEY


def test_a_command_that_fails_ends_with_its_own_code_unless_that_is_good(ask, root):
    (root.environments / KEY / "bin/break").write_text("loading\nerror: no variant was measured\n")
    request = {"do": "command", "target": "t", "environment": KEY, "arguments": ["measure"]}
    assert ask(**request, good=[]) == [{"say": "loading"}, {"code": 9, "error": "no variant was measured"}]
    found = ask(**request, good=[9])
    assert found[-1] == {"done": {"output": "", "reason": "no variant was measured"}}


def test_releases_are_installed_listed_and_rolled_back(ask, root):
    bundle = b'{"name": "m", "lineage": {}}'
    sha256 = hashlib.sha256(bundle).hexdigest()
    root.store.lacking([])
    root.store.receive(sha256, len(bundle), io.BytesIO(bundle))
    spec = {"variants": {"fp32": {"onnx": "bundle", "precision": "fp32"}}}
    release = {"target": "t", "spec": spec, "files": {"bundle.json": sha256}, "environment": KEY, "keep": 3}
    release["engine_sha256"] = None
    *said, done = ask(do="install", release=release)
    name = done["done"]["release"]
    assert said[-1] == {"say": f"switching to release {name}"}
    assert ask(do="status", target="t")[0]["done"]["current"] == name
    assert ask(do="roll_back", target="t", to=None)[0]["code"] == 10
    assert ask(do="roll_back", target="t", to="1")[-1]["done"]["release"] == name


def test_prune_removes_what_nothing_needs_and_what_killed_runs_left(ask, root):
    (root.target("t") / "work").mkdir(parents=True)
    (root.target("t") / "work/environment").write_text(KEY)
    (root.environments / "old").mkdir()
    (root.environments / "old" / READY).touch()
    (root.environments / ".old2.gone-1").mkdir()
    (root.environments / f".{KEY}.wheels").mkdir()
    packages = root.package.parent
    (packages / "old").mkdir()
    (packages / ".new.new-999999999").mkdir()
    (packages / ".new.new-1").mkdir()  # of another connection, which is still unpacking
    root.store.lacking([])
    root.store.receive(SHA256, len(CONTENT), io.BytesIO(CONTENT))
    assert ask(do="prune") == [{"done": len(CONTENT)}]
    assert [each.name for each in root.environments.iterdir()] == [KEY]
    assert {each.name for each in packages.iterdir()} == {root.package.name, ".new.new-1"}


def test_a_host_that_does_not_listen_any_more_ends_it(root):
    class Gone(io.BytesIO):
        def write(self, _):
            raise BrokenPipeError

    assert main(root.folder, root.package, io.BytesIO(LACKING), Gone()) == 10


def test_what_an_environment_is_made_of_is_handed_on(ask, root, monkeypatch):
    asked = []
    monkeypatch.setattr(module.environment, "make_environment", lambda root, wanted: asked.append(wanted) or KEY)
    wanted = {"system_site_packages": True, "requirements": ["numpy"], "wheels": {}}
    assert ask(do="environment", wanted=wanted) == [{"done": KEY}]
    assert asked == [module.environment.Wanted(**wanted)]
