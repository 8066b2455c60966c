import pytest

from pipeline.base.progress import Reporter, track


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


def test_track_yields_everything_in_order():
    assert list(track("abc", title="letters", total=3)) == ["a", "b", "c"]


def test_an_error_passes_through():
    with pytest.raises(ValueError, match="boom"), Reporter("train", 3):
        raise ValueError("boom")
