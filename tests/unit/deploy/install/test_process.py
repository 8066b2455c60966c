import os
import sys
import time
from pathlib import Path

import pytest

from deploy.install.process import Done, HostGoneError, device_command, reason_of, run
from tests.sshd import alive

DOCTOR = "`slad doctor` tries each runtime by itself"


@pytest.fixture
def sh(tmp_path, host):
    lines: list[str] = []

    def run_sh(command, *, on_line=lines.append, **options):
        return run(["sh", "-c", command], folder=tmp_path, on_line=on_line, host=host[0], **options)

    run_sh.lines = lines
    return run_sh


def test_both_streams_are_read_and_the_last_line_needs_no_end(sh):
    done = sh("echo out; echo one >&2; printf 'two\\r\\nthree' >&2; exit 5")
    assert done == Done(5, "out\n", ("one", "two", "three"))
    assert sh.lines == ["one", "two", "three"]


def test_lines_come_while_the_program_runs(sh, tmp_path):
    def on_line(line):
        (tmp_path / "seen").touch()

    done = sh("echo go >&2; until [ -e seen ]; do sleep 0.01; done; exit 3", on_line=on_line)
    assert done.code == 3


def test_it_is_run_in_its_folder_with_its_variables_and_no_input(sh, tmp_path):
    done = sh('pwd -P; echo "$A"; cat', environment={"A": "b"})
    assert done.output == f"{tmp_path.resolve()}\nb\n"


def test_a_program_that_a_signal_ended(sh):
    done = sh("kill -TERM $$")
    assert done.code == -15
    assert reason_of(done) == f"what ran there was ended by SIGTERM; {DOCTOR}"


def test_bytes_that_are_no_text_are_shown(sh):
    assert sh("printf '\\377\\n' >&2; printf '\\377'") == Done(0, "\ufffd", ("\ufffd",))


def test_a_host_that_goes_ends_the_program_and_all_that_it_has_started(sh, host, tmp_path):
    def on_line(line):
        host[1].close()

    with pytest.raises(HostGoneError):
        sh("sleep 600 & echo $! > grandchild; echo $$ > child; echo go >&2; wait", on_line=on_line)
    ids = [int((tmp_path / name).read_text()) for name in ("child", "grandchild")]
    for _ in range(500):  # the kernel may take a moment for the one that is not our child
        if not any(map(alive, ids)):
            break
        time.sleep(0.01)
    assert not any(map(alive, ids))


def test_a_host_that_speaks_out_of_turn_counts_as_gone(sh, host):
    host[1].write(b"x")
    host[1].flush()
    with pytest.raises(HostGoneError):
        sh("sleep 600")


def test_an_error_while_a_line_is_passed_on_ends_the_program(sh, tmp_path):
    def on_line(line):
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        sh("echo $$ > child; echo go >&2; sleep 600", on_line=on_line)
    assert not alive(int((tmp_path / "child").read_text()))


def test_a_program_that_is_not_there_cannot_be_started(tmp_path, host):
    with pytest.raises(FileNotFoundError):
        run([str(tmp_path / "none")], folder=tmp_path, on_line=print, host=host[0])


def test_a_program_whose_parent_has_ended_meanwhile_does_not_run():
    from deploy.install import process

    child = os.fork()
    if child == 0:
        process._die_with(parent=-1)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 1


def test_much_output_on_both_streams_does_not_block(sh):
    done = sh("head -c 200000 /dev/zero >&2; head -c 200000 /dev/zero")
    assert [len(line) for line in done.lines] == [200000]
    assert len(done.output) == 200000


@pytest.mark.parametrize(
    ("done", "reason"),
    [
        (Done(7, "", ("warning: x", "error: first", "error: second")), "first"),
        (
            Done(1, "", ("Traceback", "KeyError: 'x'", "")),
            f"what ran there ended with code 1 (KeyError: 'x'); {DOCTOR}",
        ),
        (Done(-9, "", ()), f"what ran there was ended by SIGKILL; {DOCTOR}"),
        (Done(-11, "", ("core dumped",)), f"what ran there was ended by SIGSEGV (core dumped); {DOCTOR}"),
        (Done(3, "", ()), f"what ran there ended with code 3; {DOCTOR}"),
    ],
)
def test_the_reason_is_what_was_said_last_or_how_it_ended(done, reason):
    assert reason_of(done) == reason


def test_the_folder_it_is_started_in_is_not_searched_for_modules(tmp_path, host):
    (tmp_path / "json.py").write_text("raise SystemExit('taken from here')")
    (tmp_path / "package/deploy").mkdir(parents=True)
    (tmp_path / "package/deploy/__init__.py").touch()
    (tmp_path / "package/deploy/__main__.py").write_text("import json\ndef main(words): print(json.dumps(words))\n")
    command = device_command(Path(sys.executable), tmp_path / "package", "a", "b")
    assert run(command, folder=tmp_path, on_line=print, host=host[0]).output == '["a", "b"]\n'
