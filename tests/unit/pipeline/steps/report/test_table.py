import io

import pytest
from rich.console import Console

from pipeline.steps.report import print_table, summary_rows


def printed(rows, **options):
    console = Console(file=io.StringIO(), **options)
    print_table(rows, console)
    return console.file.getvalue()


@pytest.fixture
def rows(project):
    reason = "no kernel for [bold]Gelu[/bold] on this device, which is a rather long reason to print in one cell"
    project.edit("measured/cpu-onnxruntime/record.json", lambda r: r["failed"].update(int4=reason))
    return summary_rows(project.build())


def test_rows_hold_the_figures(rows):
    assert [(row.target, row.variant) for row in rows] == [
        ("cpu-onnxruntime", "fp32"),
        ("cpu-onnxruntime", "int8"),
        ("cpu-onnxruntime", "int4"),
        ("cpu-onnxruntime", "bf16"),
        ("cpu-openvino", "fp32"),
        ("cpu-openvino", "bf16"),
        ("cpu-openvino", "int8"),
    ]
    assert (rows[-1].accuracy, rows[-1].p50, rows[-1].p90) == ("96.7 % (94.6 to 98.0)", "1.12 ms", "1.31 ms")
    assert (rows[-1].size, rows[-1].verdict) == ("6.10 MB", "chosen")
    assert (rows[2].accuracy, rows[2].p50, rows[2].p90, rows[2].size) == ("-", "-", "-", "-")


@pytest.mark.parametrize(
    "options", [{}, {"force_terminal": True, "width": 100}, {"force_terminal": True, "width": 180}]
)
def test_table_fits_100_columns(rows, options):
    lines = printed(rows, **{"no_color": True, **options}).splitlines()
    assert max(map(len, lines)) <= 100 or options
    text = printed(rows, no_color=True)
    assert max(map(len, text.splitlines())) <= 100
    assert "cpu-onnxruntime" in text
    assert "96.7 % (94.6 to 98.0)" in text


def test_reasons_are_not_taken_for_markup(rows):
    text = "".join(printed(rows).split())
    assert "[bold]Gelu[/bold]" in text.replace("\n", "")


def test_log_has_no_escape_codes(rows):
    assert "\x1b" not in printed(rows)


def test_console_keeps_its_width(rows):
    console = Console(file=io.StringIO(), width=77)
    print_table(rows, console)
    assert console.width == 77


def test_narrow_terminal_does_not_fail(rows):
    assert printed(rows, force_terminal=True, width=40)


def test_invalid_run_is_marked(project):
    project.edit("measured/cpu-openvino/record.json", lambda r: r.update(valid=False, invalid_reasons=["throttled"]))
    assert "invalid" in printed(summary_rows(project.build()))


def test_no_rows():
    assert "variant" in printed([])
