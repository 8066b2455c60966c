"""Does sharing hold? Every method on the same data, from the same pretrained pair, searched equally and run thrice.

Each member is a composition of configs/ with overrides, as `slad repro` would compose it; it trains, merges, and the
merged student and teacher are evaluated on the test split, which neither search nor training reads. The search gives
each method the same number of trials, judged on the student's (for idat the large student's) validation accuracy, one
seed. Results are appended to a file of JSON lines as they come: a killed study goes on where it was.

Command: `python -m benchmarks.methods search digits20`, `... run digits5 digits20 digits`, then `... table`. The digits
take about an hour and a half on 2 cores.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from deploy.bundle import Preprocess
from deploy.errors import ImageError
from deploy.preprocess import load_image
from pipeline.base.compose import compose_params
from pipeline.base.params import DistillStage, validate
from pipeline.base.parity import accuracy_percent
from pipeline.parts.data import Augment, LoadImage, Mixing, labels_of, stacked
from pipeline.parts.index import Index, Item, read_index, write_index
from pipeline.parts.models import ModelSpec, load_merged
from pipeline.parts.predict import torch_logits
from pipeline.steps.distill.step import Feed, distill
from pipeline.steps.merge import merge_models
from pipeline.steps.prepare import prepare
from stages.distill import method_of

OUTPUT = Path("reports/methods.jsonl")
TABLE = Path("reports/methods.md")
SEEDS = (0, 1, 2)
RATES = (0.001, 0.003, 0.01)
EVERYWHERE = "distill.targets=[q,k,v,proj,fc1,fc2]"
IDAT = ["teacher=vit_96x3", "student=vit_192x6"]

# data -> overrides that choose it, and epochs: small sets take more passes for the same number of steps
DATA = {
    "digits5": (["data=digits"], 60, 5),
    "digits20": (["data=digits"], 40, 20),
    "digits": (["data=digits"], 30, None),
}

# method -> fixed overrides
METHODS = {
    "slad": ["method=slad"],
    "slad hybrid": ["method=slad", "distill.share=hybrid", "distill.private_rank=8"],
    "slad random subset": ["method=slad", "distill.subset=random"],
    "joint_lora": ["method=joint_lora"],
    "lora_kd": ["method=lora_kd"],
    "kd_lora": ["method=kd_lora"],
    "probe_kd": ["method=probe_kd"],
    "finetune_kd": ["method=finetune_kd"],
    "student_only full": ["method=student_only", "distill.training=full"],
    "student_only lora": ["method=student_only", "distill.training=lora"],
    "student_only probe": ["method=student_only", "distill.training=probe"],
    "idat": ["method=idat", *IDAT],
}
CONTROL = "slad random subset"
PLACES = ([], [EVERYWHERE, "distill.norms=true"])  # the paper's, or all linear layers, norms and biases


def trials(name: str) -> Iterator[list[str]]:
    """Yields the overrides of each trial: six for every method, by rate and by what a method leaves to choose."""
    rates = [f"distill.schedule.learning_rate={rate}" for rate in RATES]
    teachers = [f"distill.teacher_schedule.learning_rate={rate}" for rate in RATES]
    if name == "lora_kd":  # one rate for both stages, as in the joint methods
        free = [[rate, teacher, *place] for rate, teacher in zip(rates, teachers, strict=True) for place in PLACES]
    elif name == "kd_lora":  # its adapters are on q and v by definition
        free = [[rate, teacher] for rate in rates for teacher in teachers[:2]]
    elif name in {"probe_kd", "finetune_kd"}:
        free = [[rate, teacher] for rate in rates for teacher in (teachers[1:] if name == "probe_kd" else teachers[:2])]
    elif name == "idat":
        free = [[rate, f"distill.loss={loss}"] for rate in rates for loss in ("kl", "mse")]
    elif name in {"student_only full", "student_only probe"}:
        free = [[rate, f"distill.schedule.weight_decay={decay}"] for rate in rates for decay in (0.01, 0.1)]
    else:
        free = [[rate, *place] for rate in rates for place in PLACES]
    yield from free


def parameters(overrides: Sequence[str]) -> tuple[dict[str, Any], DistillStage]:
    """Composes as `slad repro` does."""
    content: Any = OmegaConf.to_container(compose_params(Path("configs"), overrides))
    stage = {name: content[name] for name in DistillStage.model_fields}
    return content, validate(stage, DistillStage, source="configs/")


def few(index: Index, each: int | None, seed: int) -> Index:
    """Leaves `each` training images of every class, drawn by `seed`."""
    if each is None:
        return index
    chosen: list[Item] = []
    for label in range(len(index.labels)):
        members = [item for item in index.splits["train"] if item.label == label]
        random.Random(f"{seed} {label}").shuffle(members)
        chosen += sorted(members[:each], key=lambda item: item.path)
    return replace(index, splits=index.splits | {"train": tuple(chosen)}, calibration=tuple(chosen[:10]))


def indexed(content: dict[str, Any], folder: Path, load: LoadImage, *, each: int | None, seed: int) -> Path:
    """Writes the index of the whole data, with fewer training images; splits do not depend on `seed`."""
    whole = folder / "whole"
    whole.mkdir()
    settings = content["prepare"]
    prepare(
        whole,
        source=settings["source"],
        path=settings["path"] and Path(settings["path"]),
        load=load,
        broken=ImageError,
        validation_fraction=settings["validation_fraction"],
        test_fraction=settings["test_fraction"],
        calibration_size=settings["calibration_size"],
        seed=0,
    )
    index, root = read_index(whole)
    part = folder / "part"
    part.mkdir()
    write_index(replace(few(index, each, seed), root=str(root.resolve())), part)
    return part


def member(data: str, name: str, overrides: Sequence[str], seed: int, *, tested: bool) -> dict[str, Any]:
    """Trains one member and returns its record."""
    chosen, epochs, each = DATA[data]
    length = [f"distill.schedule.epochs={epochs}", "distill.checkpoint_seconds=1e9"]
    content, params = parameters([*chosen, *METHODS[name], *length, *overrides])
    preprocess = Preprocess(**params.preprocess.model_dump())
    load = partial(load_image, preprocess=preprocess)
    augment = params.augment.model_dump()
    mixing = {key: augment.pop(key) for key in ("mixup", "cutmix", "label_smoothing")}
    specs = {role: ModelSpec(**getattr(params, role).model_dump()) for role in ("teacher", "student")}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        index = indexed(content, folder, load, each=each, seed=seed)
        trained, merged = folder / "distill", folder / "merged"
        trained.mkdir()
        merged.mkdir()
        feed = Feed(
            load=load,
            augment=Augment(**augment),
            mixing=Mixing(**mixing),
            black=tuple(-m / s for m, s in zip(params.preprocess.mean, params.preprocess.std, strict=True)),
            batch_size=params.distill.batch_size,
        )
        start = time.perf_counter()
        validation = distill(
            trained, data=index, **specs, method=method_of(params), feed=feed, precision="auto", seed=seed
        )
        seconds = time.perf_counter() - start
        record = {
            "data": data,
            "method": name,
            "overrides": list(overrides),
            "seed": seed,
            "validation": validation,
            "seconds": seconds,
            "metrics": json.loads((trained / "metrics.json").read_text()),
            "cost": json.loads((trained / "cost.json").read_text()),
        }
        if tested:
            merge_models(merged, distilled=trained, data=index, **specs, tolerance=1e-5, load=load)
            record["test"] = test_accuracies(merged, specs, index, load)
    return record


def test_accuracies(merged: Path, specs: dict[str, ModelSpec], data: Path, load: LoadImage) -> dict[str, float]:
    """Returns accuracy in percent on the test split, of what was merged."""
    index, root = read_index(data)
    images, labels = stacked(root, index.splits["test"], load=load), labels_of(index.splits["test"])
    roles = [role for role in specs if (merged / f"{role}.safetensors").is_file()]
    return {
        role: accuracy_percent(torch_logits(load_merged(merged, role, specs[role])[0], images), labels)
        for role in roles
    }


def records(kind: str) -> list[dict[str, Any]]:
    """Reads what was done so far."""
    lines = OUTPUT.read_text().splitlines() if OUTPUT.is_file() else []
    return [record for record in map(json.loads, lines) if record["kind"] == kind]


def note(kind: str, record: dict[str, Any]) -> None:
    """Appends a record."""
    with OUTPUT.open("a") as file:
        file.write(json.dumps({"kind": kind, **record}) + "\n")
    shown = " ".join(f"{role} {value:.1f}" for role, value in record.get("test", record["validation"]).items())
    print(f"{kind} {record['data']} {record['method']} {record['overrides']} {record['seed']}: {shown}", flush=True)


def search(data: str, names: Sequence[str]) -> None:
    """Runs every trial that has not been run."""
    done = {(r["data"], r["method"], tuple(r["overrides"])) for r in records("search")}
    for name in names:
        for overrides in [] if name == CONTROL else trials(name):
            if (data, name, tuple(overrides)) not in done:
                note("search", member(data, name, overrides, 0, tested=False))


def best(name: str, data: str) -> list[str]:
    """Returns the overrides that were best on validation: of this data, or of the data that was searched."""
    searched = "slad" if name == CONTROL else name  # nothing else may differ
    found = [r for r in records("search") if r["method"] == searched]
    found = [r for r in found if r["data"] == data] or found
    if not found:
        return []
    return max(found, key=lambda r: r["validation"]["student"])["overrides"]


def run(data: str, names: Sequence[str]) -> None:
    """Runs every method with its best overrides, once per seed."""
    done = {(r["data"], r["method"], tuple(r["overrides"]), r["seed"]) for r in records("run")}
    for seed in SEEDS:
        for name in names:
            overrides = best(name, data)
            if (data, name, tuple(overrides), seed) not in done:
                note("run", member(data, name, overrides, seed, tested=True))


COLUMNS = (
    "method", "student, test %", "teacher, test %", "CKA drop %", "trained parameters", "seconds", "peak MB",
    "found by search",
)  # fmt: skip


def table() -> str:
    """Returns the table as markdown."""
    lines = []
    found = records("run")
    for data in dict.fromkeys(r["data"] for r in found):
        lines += [f"### {data}", "", "| " + " | ".join(COLUMNS) + " |", "|---" * len(COLUMNS) + "|"]
        for name in METHODS:
            rows = [r for r in found if r["data"] == data and r["method"] == name]
            rows = [r for r in rows if r["overrides"] == rows[-1]["overrides"]]
            if rows:
                lines.append(_row(name, rows))
        lines.append("")
    return "\n".join(lines)


def _row(name: str, rows: list[dict[str, Any]]) -> str:
    teachers = [r["test"]["teacher"] for r in rows if "teacher" in r["test"]]
    drops = [r["metrics"]["cka"]["drop_percent"] for r in rows if "drop_percent" in r["metrics"].get("cka", {})]
    cells = [
        f"{name} (large student)" if name == "idat" else name,
        _spread([r["test"]["student"] for r in rows]),
        _spread(teachers) if teachers else "",
        _spread(drops) if drops else "",
        f"{rows[0]['metrics']['trained_parameters']:,}",
        f"{statistics.mean(r['cost']['training_seconds'] for r in rows):.0f}",
        f"{max(r['cost']['memory_peak_mb'] for r in rows):.0f}",
        ", ".join(rows[0]["overrides"]).replace("distill.", ""),
    ]
    return "| " + " | ".join(cells) + " |"


def _spread(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return f"{mean} ± {statistics.stdev(values):.1f}" if len(values) > 1 else mean


def main() -> None:
    """Searches, runs, or writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("search", "run", "table"))
    parser.add_argument("data", nargs="*", choices=[*DATA, []])
    parser.add_argument("--methods", nargs="*", default=list(METHODS))
    args = parser.parse_args()
    if args.what == "table":
        print(table())
        return
    for data in args.data:
        (search if args.what == "search" else run)(data, args.methods)


if __name__ == "__main__":
    main()
