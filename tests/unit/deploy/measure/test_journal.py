import numpy as np
import pytest

from deploy.measure.journal import Journal

ABOUT = {"engine": "a" * 64, "data": "b" * 64}


def journal(folder, about=ABOUT, kept=(0, 2, 4)):
    return Journal(folder, about, row=(2,), logits=(3,), kept=kept)


def add(to, items):
    for item in items:
        to.add(np.array([item, -item]), np.full(3, item, np.float32))


def test_rows_and_kept_logits_come_back(tmp_path):
    with journal(tmp_path / "j") as one:
        assert one.rows() == []
        add(one, range(5))
        np.testing.assert_array_equal(one.logits()[:, 0], [0, 2, 4])
    with journal(tmp_path / "j") as again:
        np.testing.assert_array_equal(np.stack(again.rows()), [[item, -item] for item in range(5)])


def test_a_run_goes_on_where_another_was_ended(tmp_path):
    with journal(tmp_path) as one:
        add(one, range(3))
    with journal(tmp_path) as other:
        assert len(other.rows()) == 3
        add(other, [3, 4])
        np.testing.assert_array_equal(other.logits()[:, 0], [0, 2, 4])
        other.flush()
        assert len(other.rows()) == 5


@pytest.mark.parametrize(
    ("rows", "logits", "left"),
    [(16 * 3 - 1, 36, 2), (16 * 5, 12 * 2 + 5, 4), (16 * 5, 0, 0), (16, 36, 1), (0, 36, 0), (16 * 5, 36, 5)],
)
def test_what_a_kill_cut_short_is_dropped(tmp_path, rows, logits, left):
    with journal(tmp_path) as one:
        add(one, range(5))
    for file, size in ((next(tmp_path.glob("*.rows")), rows), (next(tmp_path.glob("*.logits")), logits)):
        file.write_bytes(file.read_bytes()[:size])
    with journal(tmp_path) as again:
        assert [row[0] for row in again.rows()] == list(range(left))
        add(again, range(left, 5))
        np.testing.assert_array_equal(again.logits()[:, 0], [0, 2, 4])


def test_other_engines_and_data_begin_anew(tmp_path):
    with journal(tmp_path) as one:
        add(one, range(5))
    with journal(tmp_path, ABOUT | {"engine": "c" * 64}) as other:
        assert other.rows() == []
    assert len(list(tmp_path.iterdir())) == 2
    with journal(tmp_path) as again:
        assert again.rows() == []
