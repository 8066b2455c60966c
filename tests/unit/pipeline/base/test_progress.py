import pytest

from pipeline.base.progress import Reporter, notice, track


def test_a_log_gets_its_last_line_even_when_quick(capsys):
    with Reporter("train", 3) as reporter:
        for _ in range(3):
            reporter.advance("loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith("train 3/3 loss 0.5 elapsed 0 s")


def test_a_slow_loop_gets_a_line_every_few_seconds(capsys, monkeypatch):
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr("pipeline.base.progress.time.monotonic", lambda: next(now))
    with Reporter("train", 6) as reporter:
        for _ in range(6):
            reporter.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["3/6", "6/6"]
    assert "left 6 s" in lines[0]


def test_steps_of_an_earlier_run_count_as_done_but_not_for_the_time_left(capsys, monkeypatch):
    now = iter(range(0, 1000, 2))
    monkeypatch.setattr("pipeline.base.progress.time.monotonic", lambda: next(now))
    with Reporter("train", 10, done=4) as reporter:
        for _ in range(6):
            reporter.advance()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split()[1] for line in lines] == ["7/10", "10/10"]
    assert "elapsed 6 s, left 6 s" in lines[0]  # 3 steps in 6 s: 3 more


def test_a_quiet_reporter_shows_nothing(capsys):
    with Reporter("train", 1, quiet=True) as reporter:
        reporter.advance("loss 0.5")
    assert capsys.readouterr().err == ""


def test_a_notice_is_one_line_that_is_no_error(capsys):
    notice("the checkpoint is old")
    assert capsys.readouterr().err == "note: the checkpoint is old\n"


def test_track_yields_everything_in_order():
    assert list(track("abc", title="letters", total=3)) == ["a", "b", "c"]


def test_an_error_passes_through():
    with pytest.raises(ValueError, match="boom"), Reporter("train", 3):
        raise ValueError("boom")
