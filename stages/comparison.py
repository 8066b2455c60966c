"""What `slad compare` compares and shows: records as files, of a git revision, or of the workspace."""

import json
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.document import Document, parse_document, read_document
from deploy.errors import MeasureError, RegressionError, TargetError
from deploy.measure.compare import BETTER, WORSE, Comparison, Row, Tolerance, compare
from deploy.measure.record import SCHEMA

WORKSPACE = "workspace"
SUMMARY = "summary.json"  # lies beside the records and is none
REMEDY = "measure it again with `slad repro`, or name another record"
WIDTH = 110  # columns of a log
LONGEST_PLACE = 30  # longer names of target and variant fold
STYLES = {BETTER: "green", WORSE: "yellow"}
Records = dict[str, Document]


def read_side(name: str, *, reports: Path) -> Records:
    """Reads the records that one argument names, by target.

    Args:
        name: a record file, "workspace", or a git revision.
        reports: the folder of the records in the workspace and in a revision.

    Raises:
        TargetError: it is none of these.
        MeasureError: it has no record, or one that is malformed or of another schema.
    """
    path = Path(name)
    if name == WORKSPACE:
        files = sorted(file for file in reports.glob("*.json") if file.name != SUMMARY)
        found = [read_document(file, error=MeasureError, remedy=REMEDY, schema=SCHEMA) for file in files]
    elif path.is_file() or path.suffix == ".json":
        found = [read_document(path, error=MeasureError, remedy=REMEDY, schema=SCHEMA)]
    else:
        found = _of_revision(name, reports=reports)
    if not found:
        msg = f"{name!r} has no measurement record in {reports}/; {REMEDY}"
        raise MeasureError(msg)
    return {record.text("target"): record for record in found}


def _of_revision(revision: str, *, reports: Path) -> list[Document]:
    if _git("rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}") is None:
        msg = (
            f"{revision!r} is no record file and no git revision here; give reports/<target>.json, a revision such as "
            f"HEAD~1, or `{WORKSPACE}`"
        )
        raise TargetError(msg)
    listed = _git("ls-tree", "-z", "--name-only", revision, f"./{reports}/") or ""
    files = sorted(file for file in listed.split("\0") if file.endswith(".json") and Path(file).name != SUMMARY)
    return [
        parse_document(
            _git("show", f"{revision}:./{file}") or "",
            path=Path(f"{revision}:{file}"),
            error=MeasureError,
            remedy=REMEDY,
            schema=SCHEMA,
        )
        for file in files
    ]


def _git(*arguments: str) -> str | None:
    """What git prints; None where it fails, is not there, or this is no repository."""
    try:
        done = subprocess.run(["git", *arguments], capture_output=True, encoding="utf-8", errors="replace", check=False)
    except FileNotFoundError:
        return None
    return None if done.returncode else done.stdout


def compare_sides(before: Records, after: Records, *, tolerance: Tolerance) -> dict[str, Comparison]:
    """Compares the records of every target that both sides have.

    Raises:
        MeasureError: there is no such target.
    """
    common = [target for target in before if target in after]
    if not common:
        msg = f"no target in common: {', '.join(before)} and {', '.join(after)}; name two records of one target"
        raise MeasureError(msg)
    return {target: compare(before[target], after[target], tolerance=tolerance) for target in common}


def check(found: Mapping[str, Comparison], *, anyway: bool) -> None:
    """Ends as a gate does.

    Args:
        found: the comparisons by target.
        anyway: accept records that should not be compared.

    Raises:
        MeasureError: records should not be compared.
        RegressionError: something is worse by more than is accepted.
    """
    obstacles = [target for target, each in found.items() if each.obstacles]
    if obstacles and not anyway:
        msg = f"not comparable: {', '.join(obstacles)}, for the reasons above; compare nevertheless with --anyway"
        raise MeasureError(msg)
    worse = [row for each in found.values() for row in each.rows if row.regression]
    if worse:
        names = ", ".join(f"{row.target}/{row.variant} {row.quantity} {change(row)}" for row in worse)
        msg = f"worse than accepted: {names}; mend it, or accept more with --accuracy or --latency"
        raise RegressionError(msg)


def to_json(found: Mapping[str, Comparison]) -> str:
    """The comparisons as JSON."""
    content: dict[str, Any] = {target: asdict(each) for target, each in found.items()}
    return json.dumps({"schema": 1, "targets": content}, indent=2)


def change(row: Row) -> str:
    """The difference and its interval: points with their sign, or percent of the value before."""
    if row.difference is None:
        return "-"
    points = row.unit == "%"
    values = [row.difference, *([] if row.low is None or row.high is None else [row.low, row.high])]
    shown = [f"{value if points else 100 * (value - 1):+.{2 if points else 1}f}" for value in values]
    return f"{shown[0]} {'points' if points else '%'}" + (f" ({shown[1]} to {shown[2]})" if len(shown) > 1 else "")


def print_comparison(found: Mapping[str, Comparison], console: Console, *, names: Sequence[str]) -> None:
    """Prints a table of all differences, and below what to know of them.

    Args:
        found: the comparisons by target.
        console: where to.
        names: of both sides.
    """
    before, console.width = console.width, console.width if console.is_terminal else WIDTH
    try:
        for letter, name in zip("AB", names, strict=True):
            console.print(Text(f"{letter}: {name}"))
        console.print(_table(found))
        for method, quantities in _methods(found).items():
            console.print(Text(f"{quantities}: {method}", style="dim"))
        for target, each in found.items():
            for note in each.notes:
                console.print(Text(f"{target}: {note}", style="dim"))
            for obstacle in each.obstacles:
                console.print(Text(f"NOT COMPARABLE, {target}: {obstacle}", style="bold red"))
    finally:
        console.width = before


def _table(found: Mapping[str, Comparison]) -> Table:
    rows = [row for each in found.values() for row in each.rows]
    table = Table(box=box.SIMPLE_HEAD, collapse_padding=True, pad_edge=False, show_edge=False)
    longest = max((len(_place(row)) for row in rows), default=0)
    table.add_column("target/variant", overflow="fold", min_width=min(longest, LONGEST_PLACE))
    for heading in ("A", "B", "difference (95 %)"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("B is", no_wrap=True)
    last = None
    for row in rows:
        if _place(row) != last:
            if last is not None:
                table.add_row()
            last = _place(row)
            table.add_row(Text(last, style="bold"))
        values = (f"{value:.4g}" for value in (row.before, row.after))
        verdict = f"{row.verdict}, not accepted" if row.regression else row.verdict
        style = "bold red" if row.regression else STYLES.get(row.verdict, "")
        cells = (f"  {row.quantity}, {row.unit}", *values, change(row))
        table.add_row(*map(Text, cells), Text(verdict, style=style))
    return table


def _place(row: Row) -> str:
    return f"{row.target}/{row.variant}"


def _methods(found: Mapping[str, Comparison]) -> dict[str, str]:
    """Quantities by how their intervals were made."""
    quantities: dict[str, list[str]] = {}
    for row in (row for each in found.values() for row in each.rows):
        known = quantities.setdefault(row.method, [])
        if row.quantity not in known:
            known.append(row.quantity)
    return {method: ", ".join(names) for method, names in quantities.items()}
