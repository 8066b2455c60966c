"""Does sharing hold? Every method on the same data, from the same pretrained pair, searched equally and run thrice.

Each member is a DVC experiment of the pipeline up to `merge`, with the overrides that its line in the table names. The
search gives each method six trials with the learning rates, ranks, places and layer maps that it has, one seed, judged
on the student's validation accuracy (for idat the large student's), with 20 of each digit. On the other data each
method is searched again, at three learning rates with the rest as found. The splits are the same for all seeds; a seed
draws the few training images, the adapters, the heads and the order. The table gives mean and standard deviation over
3 seeds, and the mean difference to slad, seed by seed.

The test split is read by `merge` alone. But that adapters sit on all linear layers by default was chosen in an earlier
trial on these digits, one seed, which looked at it.

Results are kept in a file of JSON lines: a study that was stopped goes on where it was, and one that fails in a member
goes on with the next.

Commands: `python -m benchmarks.methods search digits20`; then `search` and `run` with `digits5 digits`, and `run
digits20`; for photographs both with `trashnet --trashnet PATH`; then `table`. On one core the digits take about five
hours, TrashNet three.
"""

import argparse
import hashlib
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.base.compose import quoted

OUTPUT = Path("reports/methods.jsonl")
SCRIPTS = Path(sys.executable).parent  # DVC and the stages it starts come from this environment
SEEDS = (0, 1, 2)
ROLES = ("teacher", "student")
IDENTITY = ("data", "method", "settings", "seed")
RATE, TEACHER_RATE = "distill.schedule.learning_rate", "distill.teacher_schedule.learning_rate"
PAPER_PLACES = ["distill.targets=[q,k,v]", "distill.norms=false"]

# data -> overrides that choose it, and epochs: small sets take more of them
DATA = {
    "digits5": (["data=digits", "prepare.per_class=5"], 60),
    "digits20": (["data=digits", "prepare.per_class=20"], 40),
    "digits": (["data=digits"], 15),
    "trashnet": (["data=split_folders", "prepare.copies=drop"], 4),
}
FIRST = "digits20"  # searched for all; the others for the learning rate
# The large and the small model of each foundation pair; idat's student is the large one.
GREY, COLOUR = ("vit_192x6", "vit_96x3"), ("vit_192x12", "vit_128x6")

# method -> overrides that choose it
METHODS = {
    "slad": ["method=slad"],
    "slad, hybrid": ["method=slad", "distill.share=hybrid", "distill.private_rank=8"],
    "slad, random subset": ["method=slad", "distill.subset=random"],
    "slad, longer": ["method=slad"],
    "slad, paper": ["method=slad_paper"],
    "joint_lora": ["method=joint_lora"],
    "lora_kd": ["method=lora_kd"],
    "kd_lora": ["method=kd_lora"],
    "probe_kd": ["method=probe_kd"],
    "finetune_kd": ["method=finetune_kd"],
    "student_only, full": ["method=student_only", "distill.training=full"],
    "student_only, lora": ["method=student_only", "distill.training=lora"],
    "student_only, probe": ["method=student_only", "distill.training=probe"],
    "idat": ["method=idat"],
}
# These take the settings that were found for slad, as nothing else may differ, and run on the data it was searched on.
CONTROLS = ("slad, random subset", "slad, longer")
# What leaves the result as it is, and saves time.
NEUTRAL = ["distill.validate_every=1000"]
LONGER = 1.6  # times the epochs: about the cost of finetune_kd


def trials(name: str, data: str = FIRST) -> Iterator[list[str]]:
    """Yields the overrides of each trial, for every method as many: its rates, and what else it leaves to choose.

    Another data set than the first keeps what was best there, but for the rate.
    """
    low, middle, high = _rates(name)
    if data != FIRST:
        found = best(name, FIRST)
        for rate in (low, middle, high):
            chosen = [f"{RATE}={rate}", *_same_rate(name, rate)]
            keys = [setting.split("=")[0] for setting in chosen]
            yield [*chosen, *(setting for setting in found if setting.split("=")[0] not in keys)]
        return
    if name in {"finetune_kd", "kd_lora", "probe_kd"}:
        theirs = [0.003, 0.01] if name == "probe_kd" else [0.0003, 0.001]
        grid = [[f"{RATE}={rate}", f"{TEACHER_RATE}={their}"] for rate in (low, middle, high) for their in theirs]
    elif name == "idat":
        grid = [[f"{RATE}={rate}", f"distill.loss={loss}"] for rate in (low, middle, high) for loss in ("kl", "mse")]
    elif name in {"student_only, full", "student_only, probe"}:
        decays = [f"distill.schedule.weight_decay={decay}" for decay in (0.01, 0.1)]
        grid = [[f"{RATE}={rate}", decay] for rate in (low, middle, high) for decay in decays]
    elif name == "slad, paper":
        maps = [f"distill.layer_map={which}" for which in ("even", "last")]
        grid = [[f"{RATE}={rate}", which] for rate in (low, middle, high) for which in maps]
    else:
        rates = [[f"{RATE}={rate}", *_same_rate(name, rate)] for rate in (low, middle, high)]
        # What is not shared has no map.
        other = [*_of_rank(16), "distill.layer_map=last"] if name.startswith("slad") else _of_rank(8)
        more = [_of_rank(32), other, [*_of_rank(16), *PAPER_PLACES]]
        grid = [*([*rate, *_of_rank(16)] for rate in rates), *([*rates[1], *extra] for extra in more)]
    yield from grid


def _rates(name: str) -> list[float]:
    trains_all = name in {"finetune_kd", "probe_kd", "student_only, full"}
    return [0.0003, 0.001, 0.003] if trains_all else [0.001, 0.003, 0.01]


def _of_rank(rank: int) -> list[str]:
    return [f"distill.rank={rank}", f"distill.alpha={rank}"]  # the scale of the update, alpha / rank, stays


def _same_rate(name: str, rate: float) -> list[str]:
    return [f"{TEACHER_RATE}={rate}"] if name == "lora_kd" else []


@dataclass(frozen=True, kw_only=True)
class Member:
    """One experiment of the study.

    Attributes:
        data: of `DATA`.
        method: of `METHODS`.
        overrides: on top of those.
        seed: of everything but the splits.
        path: folder of the images, where they are not built in.
    """

    data: str
    method: str
    overrides: list[str]
    seed: int
    path: Path | None

    @property
    def identity(self) -> dict[str, Any]:
        """What tells it from the others."""
        return {key: getattr(self, key) for key in IDENTITY}

    def made(self, record: dict[str, Any]) -> bool:
        """Whether a record is its result."""
        return self.identity == {key: record[key] for key in IDENTITY}

    @property
    def name(self) -> str:
        """Of the DVC experiment: what it is, and a hash to tell it from others."""
        whole = json.dumps(self.identity)
        plain = self.method.replace(", ", "-").replace(" ", "-")
        return f"{self.data}-{plain}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"

    @property
    def settings(self) -> list[str]:
        """All overrides of configs/ that decide about the result."""
        teacher, student = COLOUR if self.data == "trashnet" else GREY
        if self.method == "idat":
            teacher, student = student, teacher
        pair = [f"teacher={teacher}", f"student={student}"]
        data, epochs = DATA[self.data]
        length = [f"distill.schedule.epochs={round(epochs * LONGER) if self.method == 'slad, longer' else epochs}"]
        seeds = [f"seed={self.seed}", "prepare.split_seed=0"]
        return [*data, *pair, *METHODS[self.method], *length, *self.overrides, *seeds]


def members(kind: str, data: str, methods: Sequence[str], *, path: Path | None) -> Iterator[Member]:
    """Yields what there is to do, done or not."""
    for seed in SEEDS if kind == "run" else SEEDS[:1]:
        for method in methods:
            control = method in CONTROLS
            if kind == "run":
                wanted = [] if control and data != FIRST else [best(method, data)]
            else:
                wanted = [] if control else list(trials(method, data))
            for overrides in wanted:
                yield Member(data=data, method=method, overrides=overrides, seed=seed, path=path)


def records() -> list[dict[str, Any]]:
    """Reads what was done so far."""
    return [json.loads(line) for line in OUTPUT.read_text().splitlines()] if OUTPUT.is_file() else []


def best(method: str, data: str) -> list[str]:
    """Returns the overrides that were best on the validation images of `data`."""
    searched = "slad" if method in CONTROLS else method
    wanted = list(members("search", data, [searched], path=None))
    found = {tuple(member.overrides): record for member in wanted for record in records() if member.made(record)}
    if len(found) < len(wanted):
        done = f"{len(found)} of {len(wanted)} trials of {searched} are done"
        sys.exit(f"{done}; run `python -m benchmarks.methods search {data}`")
    scores = {
        key: record["student"]["validation_accuracy_percent"] for key, record in found.items() if "student" in record
    }
    if not scores:
        sys.exit(f"every trial of {searched} failed; {OUTPUT} says why")
    return list(max(scores, key=lambda key: scores[key]))


def result(member: Member) -> dict[str, Any]:
    """Reads the metrics of a finished experiment."""
    import dvc.api  # takes a second

    merged, trained, cost = (
        json.loads(dvc.api.read(f"artifacts/{path}", rev=member.name))
        for path in ("merged/accuracy.json", "distill/metrics.json", "distill/cost.json")
    )
    return {
        "student": trained["student"] | merged["student"],
        "teacher": trained["teacher"] | merged["teacher"] if "teacher" in merged else None,
        "cka": trained.get("cka"),
        "trained_parameters": trained["trained_parameters"],
        "seconds": cost["training_seconds"],
        "memory_peak_mb": cost["memory_peak_mb"],
    }


def study(kind: str, data: str, methods: Sequence[str], *, path: Path | None) -> int:
    """Runs what has no result yet, one after another, and notes each result as it comes; returns how many failed."""
    failures = 0
    for member in list(members(kind, data, methods, path=path)):
        if any(member.made(record) for record in records()):
            continue
        # Near copies stay, as they did before they were looked for: the records are of such runs.
        place = [] if path is None else [f"prepare.path={quoted(str(path))}", "prepare.near_copies=keep"]
        settings = [*member.settings, *place, *NEUTRAL]
        parts = [part for setting in settings for part in ("--set-param", setting)]
        # In a folder of its own: the workspace keeps its artifacts.
        run = [str(SCRIPTS / "dvc"), "exp", "run", "--temp", "--name", member.name, *parts, "merge"]
        path_variable = os.pathsep.join([str(SCRIPTS), os.environ.get("PATH", "")])
        done = subprocess.run(
            run, check=False, capture_output=True, text=True, env=os.environ | {"PATH": path_variable}
        )
        record = {**member.identity, "overrides": member.overrides}
        if done.returncode:
            failures += 1
            said = [line for line in (done.stdout + done.stderr).splitlines() if line.startswith(("error:", "ERROR:"))]
            record["failed"] = said[0] if said else f"exit code {done.returncode}"
            words = record["failed"]
        else:
            record |= result(member)
            scores = [record[role]["validation_accuracy_percent"] for role in ROLES if record[role]]
            words = f"validation {', '.join(map(str, scores))}"
        with OUTPUT.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(member.name, *member.overrides, f"seed {member.seed}: {words}", flush=True)
    return failures


COLUMNS = (
    "method", "student, test %", "against slad", "teacher, test %", "CKA drop %", "trained parameters", "seconds",
    "peak MB", "found by search",
)  # fmt: skip


def table(names: Sequence[str]) -> str:
    """Returns the tables of these data sets as markdown: what was run with the settings that the search found."""
    lines = []
    found = [record for record in records() if "student" in record]
    for data in names:
        lines += [f"### {data}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        rows = {}
        for method in METHODS:
            wanted = list(members("run", data, [method], path=None))
            rows[method] = [record for record in found if any(member.made(record) for member in wanted)]
        lines += [_row(method, done, rows["slad"]) for method, done in rows.items() if done]
        lines.append("")
    return "\n".join(lines)


def _row(method: str, rows: list[dict[str, Any]], slad: list[dict[str, Any]]) -> str:
    accuracies = {row["seed"]: row["student"]["test_accuracy_percent"] for row in rows}
    # Seed by seed: the same images are trained and tested on.
    gains = [
        accuracies[row["seed"]] - row["student"]["test_accuracy_percent"] for row in slad if row["seed"] in accuracies
    ]
    drops = [row["cka"]["drop_percent"] for row in rows if row["cka"] and "drop_percent" in row["cka"]]
    few = f" ({len(rows)} of {len(SEEDS)} seeds)" if len(rows) < len(SEEDS) else ""
    cells = [
        method + (" (large student)" if method == "idat" else "") + few,
        _spread(list(accuracies.values())),
        _spread(gains, sign="+") if method != "slad" else "",
        _spread([row["teacher"]["test_accuracy_percent"] for row in rows if row["teacher"]]),
        _spread(drops),
        f"{rows[0]['trained_parameters']:,}",
        f"{statistics.mean(row['seconds'] for row in rows):.0f}",
        f"{max(row['memory_peak_mb'] for row in rows):.0f}",
        ", ".join(rows[0]["overrides"]).replace("distill.", ""),
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(values: list[float], *, sign: str = "") -> str:
    if not values:
        return ""
    mean = f"{statistics.mean(values):{sign}.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main() -> None:
    """Searches, runs, or prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("search", "run", "table"))
    parser.add_argument("data", nargs="*", choices=[*DATA, []])
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=METHODS)
    parser.add_argument("--trashnet", type=Path, help="its folder with train, val and test")
    args = parser.parse_args()
    if args.what == "table":
        print(table(args.data or list(DATA)))
        return
    if not args.data:
        parser.error(f"give data to {args.what}: {', '.join(DATA)}")
    if "trashnet" in args.data and args.trashnet is None:
        parser.error("trashnet needs --trashnet PATH")
    if args.what == "search" and set(args.methods) <= set(CONTROLS):
        parser.error("these take what is found for slad")
    failures = 0
    for data in args.data:
        path = args.trashnet.resolve() if data == "trashnet" else None
        failures += study(args.what, data, args.methods, path=path)
    if failures:
        sys.exit(f"{failures} failed; {OUTPUT} says why. Take their lines out to run them again")


if __name__ == "__main__":
    main()
