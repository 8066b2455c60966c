"""`slad compare`: what it takes for a side, what it prints, and how it ends."""

import json
import subprocess

import pytest
from typer.testing import CliRunner

from stages.__main__ import app
from tests.unit.deploy.measure.records import record, variant

SLOW = {"fp32": variant(p90=2.5)}


@pytest.fixture
def slad(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "reports").mkdir()

    def invoke(*arguments):
        return CliRunner().invoke(app, ["compare", *arguments])

    return invoke


def write(path, content):
    path.write_text(json.dumps(content))
    return str(path)


@pytest.fixture
def repository(slad, tmp_path):
    """Two commits: in the second `board` is slower, and `other` is new."""

    def git(*arguments):
        who = ("-c", "user.name=t", "-c", "user.email=t@example.com", "-c", "commit.gpgsign=false")
        subprocess.run(["git", *who, *arguments], cwd=tmp_path, check=True, capture_output=True)

    git("init", "-q")
    write(tmp_path / "reports/board.json", record())
    (tmp_path / "reports/summary.json").write_text("{}")
    git("add", ".")
    git("commit", "-qm", "one")
    write(tmp_path / "reports/board.json", record(variants=SLOW))
    write(tmp_path / "reports/other.json", record("other"))
    git("add", ".")
    git("commit", "-qm", "two")
    return slad


def test_equal_records_pass(slad, tmp_path):
    path = write(tmp_path / "a.json", record())
    done = slad(path, path)
    assert done.exit_code == 0
    assert done.output.count("no measurable difference") == 7
    assert "\x1b" not in done.output


def test_a_regression_has_its_code_and_says_what(slad, tmp_path):
    paths = write(tmp_path / "a.json", record()), write(tmp_path / "b.json", record(variants=SLOW))
    done = slad(*paths)
    assert done.exit_code == 12
    assert "error: worse than accepted: board/fp32 p50 +25.0 % (" in done.output
    assert "accept more with --accuracy or --latency" in done.output
    assert done.output.count("worse, not accepted") == 2
    assert slad(*paths, "--latency", "26").exit_code == 0
    assert slad(*reversed(paths)).exit_code == 0


@pytest.mark.parametrize("side", ["HEAD", "workspace", "reports/board.json"])
def test_revisions_the_workspace_and_files_are_compared(repository, side):
    done = repository("HEAD~1", side, "--json")
    assert done.exit_code == 12
    found = json.loads(done.stdout)
    assert list(found["targets"]) == ["board"]
    row = next(row for row in found["targets"]["board"]["rows"] if row["quantity"] == "p90")
    assert (row["before"], row["after"], row["verdict"], row["regression"]) == (2.0, 2.5, "worse", True)


def test_every_common_target_is_compared(repository):
    done = repository("HEAD", "workspace", "--json")
    assert (done.exit_code, list(json.loads(done.stdout)["targets"])) == (0, ["board", "other"])


def test_a_revision_counts_from_the_folder_at_hand(repository, tmp_path, monkeypatch):
    below = tmp_path / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    done = repository("HEAD", "HEAD~1")
    assert done.exit_code == 9
    assert "error: 'HEAD' has no measurement record in reports/" in done.output


def test_what_should_not_be_compared_is_loud_and_passes_only_anyway(slad, tmp_path):
    theirs = record(valid=False, invalid_reasons=["throttled [twice]"])
    paths = write(tmp_path / "a.json", record()), write(tmp_path / "b.json", theirs)
    done = slad(*paths)
    assert done.exit_code == 9
    assert "NOT COMPARABLE, board: " in done.output
    assert "throttled [twice]" in done.output
    assert "error: not comparable: board, for the reasons above; compare nevertheless with --anyway" in done.output
    again = slad(*paths, "--anyway")
    assert again.exit_code == 0
    assert "NOT COMPARABLE, board: " in again.output


@pytest.mark.parametrize(
    ("content", "code", "expected"),
    [
        (None, 9, "b.json: no such file; measure it again"),
        ("{", 9, "b.json: is not valid JSON"),
        ("[]", 9, "b.json: should hold a JSON object"),
        (
            '{"schema": 1, "target": "board"}',
            9,
            "b.json: has schema 1, this slad-edge reads schema 2; measure it again",
        ),
        (json.dumps(record("jetson")), 9, "no target in common: board and jetson; name two records of one target"),
    ],
)
def test_bad_records_are_one_line(slad, tmp_path, content, code, expected):
    path = tmp_path / "b.json"
    if content is not None:
        path.write_text(content)
    done = slad(write(tmp_path / "a.json", record()), str(path))
    assert done.exit_code == code
    assert expected in done.output
    assert done.output.count("\n") == 1


@pytest.mark.parametrize("name", ["no-such-branch", "--output=x", "HEAD:reports/board.json"])
def test_what_is_no_revision_is_refused(repository, tmp_path, name):
    done = repository("--", name, "workspace") if name.startswith("-") else repository(name, "workspace")
    assert done.exit_code in (2, 9)
    assert "error: " in done.output
    assert not (tmp_path / "x").exists()


def test_outside_of_a_repository_a_revision_is_refused(slad):
    done = slad("HEAD", "workspace")
    assert done.exit_code == 2
    assert "'HEAD' is no record file and no git revision here" in done.output


def test_an_empty_workspace_is_refused(slad):
    done = slad("workspace", "workspace")
    assert (done.exit_code, done.output.count("\n")) == (9, 1)
    assert "'workspace' has no measurement record in reports/" in done.output


@pytest.mark.parametrize("option", ["--accuracy", "--latency"])
def test_a_negative_tolerance_is_refused(slad, option):
    assert slad("workspace", "workspace", option, "-1").exit_code == 2
