from pathlib import Path

import pytest

from deploy.kernel import first_match, in_their_order, whole_number


@pytest.mark.parametrize(
    ("text", "number"), [("42\n", 42), ("-256000", -256000), ("", None), ("N/A", None), ("1.5", None), ("4 2", None)]
)
def test_whole_numbers(tmp_path, text, number):
    (tmp_path / "file").write_text(text)
    assert whole_number(tmp_path / "file") == number


def test_files_that_cannot_be_read(tmp_path):
    assert whole_number(tmp_path) is None  # a folder, as EAGAIN and a missing permission, is an OSError
    assert whole_number(tmp_path / "gone") is None
    assert first_match(tmp_path / "gone", "(.)") is None


def test_first_match_is_stripped(tmp_path):
    (tmp_path / "file").write_text("a : 1 \nb : 2 \nb : 3\n")
    assert first_match(tmp_path / "file", r"^b :(.*)$") == "2"


def test_order_is_by_numbers():
    names = ["hwmon10", "hwmon2", "hwmon1/in7", "hwmon1/in12"]
    assert [str(path) for path in in_their_order([Path(name) for name in names])] == [
        "hwmon1/in7", "hwmon1/in12", "hwmon2", "hwmon10",
    ]  # fmt: skip
