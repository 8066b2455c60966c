import re

import pytest

from deploy.errors import DeviceError
from deploy.remote.ssh import CAUSES, Pipe, plain, ssh_program
from tests.fake_device import script

CHANGED = """\
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
@    WARNING: REMOTE HOST IDENTIFICATION HAS CHANGED!     @
@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@
IT IS POSSIBLE THAT SOMEONE IS DOING SOMETHING NASTY!
Host key for jetson has changed and you have requested strict checking.
Host key verification failed.
"""
# As OpenSSH 8 and 9 write them.
SAID = [
    (0, CHANGED),
    (1, "Host key verification failed."),
    (1, "No RSA host key is known for jetson and you have requested strict checking.\nHost key verification failed."),
    (2, "user@jetson: Permission denied (publickey,password)."),
    (2, 'Load key "/home/user/.ssh/id": bad permissions\nuser@jetson: Permission denied (publickey).'),
    (3, "ssh: Could not resolve hostname jetson: Name or service not known"),
    (3, "ssh: Could not resolve hostname jetson: Temporary failure in name resolution"),
    (4, "ssh: connect to host jetson port 22: Connection refused"),
    (4, "ssh: connect to host jetson port 22: Connection timed out"),
    (4, "Connection timed out during banner exchange\nConnection to 10.0.0.2 port 22 timed out"),
    (4, "ssh: connect to host jetson port 22: No route to host"),
    (4, "ssh: connect to host jetson port 22: Network is unreachable"),
    (4, "ssh: connect to host jetson port 22: Host is down"),
    (4, "kex_exchange_identification: Connection closed by remote host\nConnection closed by 10.0.0.2 port 22"),
    (4, "kex_exchange_identification: read: Connection reset by peer\nConnection reset by 10.0.0.2 port 22"),
    (4, "Connection reset by 10.0.0.2 port 22"),
    (4, "channel 0: open failed: connect failed: No route to host\nConnection closed by UNKNOWN port 65535"),
]


@pytest.fixture
def ssh(tmp_path, monkeypatch):
    """Let `ssh` say something and end; return the file with its arguments."""

    def play(said="", code=255, *, settings=""):
        (tmp_path / "said").write_text(said)
        (tmp_path / "settings").write_text(settings)
        text = f"""#!/bin/sh
        [ "$1" = -G ] && cat {tmp_path}/settings && exit 0
        printf '%s\\n' "$@" > {tmp_path}/arguments
        cat {tmp_path}/said >&2
        exit {code}
        """
        monkeypatch.setenv("SLAD_SSH", str(script(tmp_path / "ssh", text)))
        return tmp_path / "arguments"

    return play


def failure(*, began=False) -> str:
    pipe = Pipe("jetson", "python3")
    assert pipe.answers.readline() == b""
    error = pipe.failure(began=began)
    assert isinstance(error, DeviceError)
    assert "\n" not in str(error)
    return str(error)


@pytest.mark.parametrize(("number", "said"), SAID)
def test_what_ssh_says_is_told_with_what_to_do(ssh, number, said):
    ssh(said)
    cause = CAUSES[number]
    last = said.strip().splitlines()[-1]
    assert failure() == f"device 'jetson': {cause.what} ({last}); {cause.remedy}"


def test_every_cause_has_been_tried():
    assert {number for number, _ in SAID} == set(range(len(CAUSES)))
    for cause in CAUSES:
        for pattern in cause.pattern.split("|"):
            assert any(re.search(pattern, said) for _, said in SAID), pattern


@pytest.mark.parametrize(
    ("said", "code", "message"),
    [
        (
            "Bad owner or permissions on /home/user/.ssh/config",
            255,
            "ssh cannot connect (Bad owner or permissions on /home/user/.ssh/config); try `ssh` by hand with the same",
        ),
        (
            "Permission denied to all but staff\nReceived disconnect: 2: Too many authentication failures",
            255,
            "ssh cannot connect (Received disconnect: 2: Too many authentication failures)",
        ),
        ("", 255, "ssh cannot connect; try"),
        (
            "sh: 1: python3: not found",
            127,
            "Python cannot be started there (sh: 1: python3: not found); install Python 3.10 or later, or name it in ",
        ),
        ("sh: 1: python3: Permission denied", 126, "Python cannot be started there (sh: 1: python3: Perm"),
        ("Traceback\nMemoryError", 1, "what ran there ended with code 1 (MemoryError); run it again"),
        ("\x1b[2Jgone", 1, "ended with code 1 (?[2Jgone)"),
    ],
)
def test_other_failures_show_the_last_words(ssh, said, code, message):
    ssh(said, code)
    assert message in failure()


def test_a_connection_that_ends_later_was_lost(ssh):
    ssh("client_loop: send disconnect: Broken pipe")
    assert failure(began=True) == (
        "device 'jetson': the connection was lost (client_loop: send disconnect: Broken pipe); run it again: what has "
        "arrived is not sent again"
    )
    ssh("Timeout, server jetson not responding.")
    assert "the connection was lost (Timeout, server jetson" in failure(began=True)


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ("serveraliveinterval 0\nconnecttimeout none\n", ["ServerAliveInterval=15", "ConnectTimeout=30"]),
        ("serveraliveinterval 60\nconnecttimeout 5\n", []),
        ("serveraliveinterval 0\nconnecttimeout 5\n", ["ServerAliveInterval=15"]),
        ("", []),
    ],
)
def test_only_what_the_user_left_open_is_set(ssh, settings, options):
    arguments = ssh(settings=settings)
    failure()
    expected = ["-T", "-o", "BatchMode=yes", *(word for option in options for word in ("-o", option))]
    assert arguments.read_text().splitlines() == [*expected, "--", "jetson", "python3"]


@pytest.mark.parametrize("text", ["", "  "])
def test_without_the_variable_it_is_ssh(monkeypatch, text):
    monkeypatch.setenv("SLAD_SSH", text)
    assert ssh_program() == ["ssh"]


def test_the_variable_may_have_options(monkeypatch):
    monkeypatch.setenv("SLAD_SSH", "ssh -F 'a b'")
    assert ssh_program() == ["ssh", "-F", "a b"]
    monkeypatch.setenv("SLAD_SSH", "ssh -F 'a")
    with pytest.raises(DeviceError, match='SLAD_SSH "ssh -F \'a" is no command .No closing quotation.; set it to'):
        ssh_program()


@pytest.mark.parametrize("kind", ["missing", "no program"])
def test_a_program_that_cannot_be_started_is_named(tmp_path, monkeypatch, kind):
    if kind == "no program":
        (tmp_path / "ssh").touch()
    monkeypatch.setenv("SLAD_SSH", f"{tmp_path}/ssh -F x")
    with pytest.raises(DeviceError, match=f"'{tmp_path}/ssh' cannot be started .*; install OpenSSH's client, or set"):
        Pipe("jetson", "python3")


def test_what_a_terminal_would_obey_is_taken_out():
    assert plain("größer \x1b]0;title\x07\r\n\t\x9b1m 中") == "größer ?]0;title?????1m 中"
