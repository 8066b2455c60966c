"""Whatever is killed, whenever: the earlier release serves, and the next deployment succeeds."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.ssh.desk import Desk, Done, answer, forget_others, idle, kill, leftovers, servers, serving

pytestmark = pytest.mark.slow


def kill_command(process, device):
    kill(process.pid)


def kill_all_of_it(process, device):
    """The command and its ssh, as a terminal that closes or a machine that crashes would."""
    found = Path(f"/proc/{process.pid}/task").glob("*/children")
    children = [int(pid) for file in found for pid in file.read_text().split()]
    for pid in (process.pid, *children):
        kill(pid)


def terminate(process, device):
    os.killpg(process.pid, signal.SIGTERM)


def interrupt(process, device):
    os.killpg(process.pid, signal.SIGINT)


def kill_server(process, device):
    for pid in servers(device):
        kill(pid)


FROM_HERE = (kill_command, interrupt, terminate, kill_all_of_it)
CODES = {kill_command: -9, kill_all_of_it: -9, terminate: -15, interrupt: 130, kill_server: 10}
STEPS = ("sending", "shelf/fp32: building", "shelf/fp32: built", "testing release", "switching to release")


def killed(desk: Desk, device, *, line: str, way, name: str = "shelf") -> Done:
    """Deploys, and kills at the first line that begins so."""
    process = desk.start("deploy", "--target", name, "--variant", "fp32")
    lines, hit = [], False
    for each in process.stderr:
        lines.append(each.rstrip("\n"))
        if not hit and each.startswith(line):
            hit, at = True, len(lines)
            way(process, device)
    assert hit, lines
    output = process.communicate()[0]
    if way is interrupt and process.returncode != 0:
        assert len(lines) <= at + 2, lines  # it does not wait for the device to finish
    return Done(process.returncode, output, lines)


def check_words(done: Done, way) -> None:
    """What the user reads of it: nothing where nobody could say it, else one line; at the very end it may be done."""
    if way is kill_server and done.code != 0:
        assert done.code == 10
        assert "device 'shelf': " in done.error or "device 'bare': " in done.error
        assert "run it again" in done.error
    elif way is interrupt and done.code != 0:
        assert done.code == 130
        assert done.lines[-1].startswith("interrupted; ")
    assert done.code in (0, CODES[way])
    assert "Traceback" not in "\n".join(done.lines)


@pytest.fixture(scope="module")
def answers(shared_desk, shared_device):
    """What each model says of the image."""
    found = []
    for number in (1, 0):
        shared_desk.model(number)
        shared_desk.deployed("shelf")
        found.insert(0, answer(shared_device, "shelf"))
    return found


@pytest.mark.parametrize(
    ("line", "way"),
    [(line, way) for at, line in enumerate(STEPS) for way in (FROM_HERE[at % len(FROM_HERE)], kill_server)],
    ids=lambda each: each.replace(" ", "_").replace("/", "_") if isinstance(each, str) else each.__name__,
)
def test_a_kill_at_any_step_leaves_a_release_that_answers(desk, shelf, answers, line, way):
    before = serving(shelf, "shelf")
    desk.model(1)
    forget_others(shelf, "shelf")
    done = killed(desk, shelf, line=line, way=way)
    check_words(done, way)
    now = serving(shelf, "shelf")
    assert answer(shelf, "shelf") == answers[now != before]
    desk.deployed("shelf")
    assert answer(shelf, "shelf") == answers[1]
    assert leftovers(shelf) == []
    assert desk.slad("rollback", "--target", "shelf").code == 0
    assert answer(shelf, "shelf") == answers[0]


@pytest.mark.parametrize("line", ["making an environment", "pip installs"], ids=["making", "installing"])
def test_a_kill_while_an_environment_is_made_leaves_the_earlier_one(desk, shelf, answers, line):
    for number, way in enumerate((interrupt, kill_server)):
        desk.target("shelf", packages=["onnxruntime-gpu", f"numpy>=1.{number + len(line)}"])
        check_words(killed(desk, shelf, line=line, way=way), way)
        assert answer(shelf, "shelf") == answers[0]
    desk.deployed("shelf")
    assert answer(shelf, "shelf") == answers[0]
    assert leftovers(shelf) == []


def test_a_first_deployment_that_is_killed_is_followed_by_one_that_succeeds(bare_desk, bare):
    for way in (kill_all_of_it, kill_server):
        bare.run("rm -rf slad-edge/packages")
        for line in ("sending the device package", "making an environment"):
            check_words(killed(bare_desk, bare, line=line, way=way, name="bare"), way)
            idle(bare)
        assert not (bare.home / "slad-edge/targets").exists()
    assert bare_desk.releases("bare") == {"current": None, "releases": []}
    bare_desk.deployed("bare")
    answer(bare, "bare")
    assert leftovers(bare) == []


def test_twenty_kills_at_random_moments_leave_a_release_that_answers(desk, shelf, answers):
    draw = random.Random(20)
    desk.model(1)
    began = time.monotonic()
    desk.deployed("shelf")
    whole, model = time.monotonic() - began, 1
    for number in range(20):
        before = serving(shelf, "shelf")
        desk.model(1 - model)
        process = desk.start("deploy", "--target", "shelf", "--variant", "fp32")
        try:
            process.wait(timeout=draw.uniform(0, whole))
        except subprocess.TimeoutExpired:
            (kill_all_of_it, kill_server)[number % 2](process, shelf)
        assert "Traceback" not in process.communicate()[1]
        if number % 2 == 0:
            idle(shelf)  # what the device was about to do, it may still do
        if serving(shelf, "shelf") != before:
            model = 1 - model
        assert answer(shelf, "shelf") == answers[model], f"kill {number}"
    desk.model(1 - model)
    desk.deployed("shelf")
    assert answer(shelf, "shelf") == answers[1 - model]
    assert leftovers(shelf) == []
    assert desk.slad("rollback", "--target", "shelf").code == 0
    assert answer(shelf, "shelf") == answers[model]


def test_what_killed_processes_left_goes_with_the_next_deployment(desk, shelf, answers):
    root = shelf.home / "slad-edge"
    ended = subprocess.Popen(["true"])
    ended.wait()
    left = ["packages/.0123.new-{}", "environments/.0123.wheels", "environments/0123", "targets/shelf/releases/.new-{}"]
    for name in left:
        folder = root / name.format(ended.pid)
        folder.mkdir()
        (folder / "file").write_text("half")
    (root / "blobs/0123.part").write_text("half")
    (root / "targets/shelf/.current.new-1").symlink_to("nowhere")
    assert len(leftovers(shelf)) >= 6
    assert "serves already" in desk.deployed("shelf").output
    assert leftovers(shelf) == []
    assert answer(shelf, "shelf") == answers[0]
