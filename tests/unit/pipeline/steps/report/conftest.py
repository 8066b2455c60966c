"""A whole synthetic project on disk: records of two targets, logits, parity, training and data."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.steps.report import report
from pipeline.steps.report.records import Difference, Target
from pipeline.steps.report.variants import Accuracy, Interval, Latency, Variant
from tests.unit.pipeline.steps.report.made import (
    CLASSES,
    IMAGES,
    SHA,
    difference_records,
    target_record,
    variant_record,
    wilson,
)
from tests.unit.pipeline.steps.report.reading import Page


def parity_record(
    start: str, end: str, error: float, before: float, after: float, tolerance: float | None
) -> dict[str, Any]:
    return {
        "schema": 1,
        "from": start,
        "to": end,
        "samples": 360,
        "max_abs_error": error,
        "mean_abs_error": error / 5,
        "relative_error": error / 10,
        "cosine": 1 - error / 100,
        "argmax_agreement": 1.0 if error < 0.01 else 0.984375,
        "tolerance": tolerance,
        "passed": True,
        "accuracy_from_percent": before,
        "accuracy_to_percent": after,
        "change_low_points": after - before - 0.5,
        "change_high_points": after - before + 0.5,
        "largest": 10.0,
    }


@dataclass
class Project:
    """Folders of a run; `build` writes the report."""

    root: Path

    def path(self, name: str) -> Path:
        return self.root / name

    def edit(self, name: str, change: Callable[[dict[str, Any]], Any]) -> None:
        content = json.loads(self.path(name).read_text())
        change(content)
        self.write(name, content)

    def write(self, name: str, content: dict[str, Any]) -> None:
        path = self.path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content), encoding="utf-8")

    def arguments(self) -> dict[str, Any]:
        return {
            "measured": self.path("measured"),
            "targets": [folder.name for folder in self.path("measured").glob("*")],
            "data": self.path("data"),
            "distill": self.path("distill"),
            "merged": self.path("merged"),
            "onnx": self.path("onnx"),
            "reference_logits": self.path("reference_logits.npz"),
            "max_drop_points": 1.0,
            "reference": "fp32",
            "git_revision": "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567",
            "params_sha256": "f" * 64,
        }

    def build(self, **overrides: Any) -> dict[str, Any]:
        self.path("reports").mkdir(exist_ok=True)
        return report(self.path("reports"), **{**self.arguments(), **overrides})

    def html(self) -> str:
        return self.path("reports/report.html").read_text(encoding="utf-8")

    def page(self) -> Page:
        page = Page()
        page.feed(self.html())
        page.close()
        return page


def write_measured(project: Project, rng: np.random.Generator) -> None:
    cpu = {
        "fp32": variant_record("fp32", 437, 2.31, 2.62, size=22_431_000, onnx="fp32"),
        "bf16": variant_record("bf16", 437, 1.62, 1.84, size=11_300_000, onnx="fp32"),
        "int8": variant_record("int8", 435, 1.12, 1.31, size=6_102_000, onnx="int8"),
    }
    ort = {
        "fp32": variant_record("fp32", 437, 3.05, 3.32, size=22_105_000, onnx="fp32"),
        "int8": variant_record("int8", 435, 3.21, 3.55, size=5_790_000, onnx="int8"),
    }
    skipped = {"bf16": "this runtime has no bf16 kernels on x86"}
    project.write("measured/cpu-openvino/record.json", target_record("cpu-openvino", "openvino", cpu))
    record = target_record("cpu-onnxruntime", "onnxruntime", ort, skipped=skipped)
    project.write("measured/cpu-onnxruntime/record.json", record)
    for target, variants in (("cpu-openvino", cpu), ("cpu-onnxruntime", ort)):
        samples = {}
        for name, figures in variants.items():
            p50 = figures["latency_ms"]["p50"]
            nanoseconds = 1e6 * p50 * (0.9 + rng.gamma(2.0, 0.06, size=1000))
            samples[f"{name}/SingleStream"] = nanoseconds.astype(np.int64)
            samples[f"{name}/Offline"] = samples[f"{name}/SingleStream"][:10]
        np.savez_compressed(project.path(f"measured/{target}/samples.npz"), **samples)


def write_logits(project: Project, rng: np.random.Generator) -> None:
    labels = rng.integers(CLASSES, size=IMAGES)
    fp32 = rng.normal(size=(IMAGES, CLASSES)).astype(np.float32)
    fp32[np.arange(IMAGES), labels] += 5
    int8 = fp32 + rng.normal(scale=0.05, size=fp32.shape).astype(np.float32)
    int8[:3] = -int8[:3]  # three images that INT8 takes for another class
    project.path("merged").mkdir()
    np.savez(project.path("merged/test_logits.npz"), adapted=fp32 + 2e-6, merged=fp32 + 1e-6)
    np.savez(project.path("reference_logits.npz"), fp32=fp32, int8=int8, targets=labels)
    np.savez(project.path("measured/cpu-openvino/logits.npz"), fp32=fp32 + 1e-6, bf16=fp32 * 1.002, int8=int8 + 1e-4)
    np.savez(project.path("measured/cpu-onnxruntime/logits.npz"), fp32=fp32, int8=int8)


def write_quantised(project: Project) -> None:
    options = {"layers": "linear", "smooth_quant": 0.95, "bias_correction": "fast"}
    tries = [{"left_out": 0, "drop": 1.2}, {"left_out": 9, "drop": 0.0}, {"left_out": 1, "drop": 0.4}]
    search = {"max_drop": 0.5, "left_out": ["blocks.0.fc2"], "tries": tries, "sensitivity": {"blocks.0.fc2": 2.1e-4}}
    made = {"schema": 1, "precision": "int8", "calibration_sha256": ["a", "b", "c"]}
    project.write("onnx/int8/quantization.json", {**made, **options, **search})
    numbers = {"lowest_group": "blocks.0.fc2", "lowest_group_sqnr_db": 27.5, "median_group_sqnr_db": 35.0}
    metric = {"before": {**numbers, "lowest_group_sqnr_db": 31.25}, "after": numbers | {"largest_kurtosis": 20.75}}
    project.write("merged/friendliness.json", {"schema": 1, "images": 64, **metric})
    project.path("merged/friendliness_groups.csv").write_text("group,before_db,after_db\nblocks.0.fc2,31.25,27.5\n")
    project.path("merged/friendliness.csv").write_text(
        "layer,group,outlier_ratio_before,outlier_ratio_after,kurtosis_before,kurtosis_after,sqnr_db_before,"
        "sqnr_db_after,note\n"
        "blocks.0.mlp.fc2,blocks.0.fc2,9.5,12.25,15.5,20.75,31.25,27.5,\n"
        "stem.conv,stem.conv,,,,,,,not observed: its weights change before use\n"
    )


def write_host(project: Project) -> None:
    project.write("merged/saved_parity.json", parity_record("torch", "adapted", 3.1e-3, 97.5, 97.5, 0.02))
    project.write("merged/parity.json", parity_record("adapted", "merged", 3.2e-6, 97.5, 97.5, 1e-5))
    accuracies = {"teacher": {"test_accuracy_percent": 98.61}, "student": {"test_accuracy_percent": 97.22}}
    project.write("merged/accuracy.json", {"schema": 1, **accuracies})
    project.write("onnx/fp32/parity.json", parity_record("merged", "onnx", 1.1e-5, 97.5, 97.5, 1e-4))
    project.write("onnx/int8/parity.json", parity_record("onnx", "int8", 0.31, 97.5, 96.94, None))
    for name, parent in (("fp32", None), ("int8", SHA["fp32"])):
        files = {"model.onnx": {"sha256": SHA[name], "bytes": 10}}
        lineage = {"git_revision": "x", "params_sha256": "x", "data_sha256": "x", "parent_sha256": parent}
        bundle = {"schema": 1, "variant": name, "onnx": "model.onnx", "files": files, "lineage": lineage}
        project.write(f"onnx/{name}/bundle.json", bundle)
    write_quantised(project)
    metrics = {
        "method": "slad",
        "teacher": {"validation_accuracy_percent": 98.33},
        "student": {"validation_accuracy_percent": 97.5},
        "trained_parameters": 312_330,
        "cka": {"before": 0.6123, "after": 0.7234},
    }
    project.write("distill/metrics.json", {"schema": 2, **metrics})
    project.write("distill/cost.json", {"schema": 1, "training_seconds": 184.2, "memory_peak_mb": 612.5})
    heading = (
        "epoch,phase,loss,ce_teacher,ce_student,kl,teacher_accuracy_percent,student_accuracy_percent,learning_rate\n"
    )
    rows = [
        f"{e},joint,{4 * 0.8**e + 0.3:.4f},{1.5 * 0.75**e:.4f},{2 * 0.8**e + 0.1:.4f},{0.9 * 0.85**e:.4f},"
        f"{98.3 - 60 * 0.6**e:.2f},{97.5 - 70 * 0.7**e:.2f},{1e-3 * (1 - e / 20):.6f}\n"
        for e in range(20)
    ]
    project.path("distill/curves.csv").write_text(heading + "".join(rows))
    counts = {
        split: {str(i): size + i % 3 for i in range(CLASSES)}
        for split, size in (("train", 118), ("validation", 35), ("test", 44))
    }
    project.write("data/report.json", {"schema": 2, "source": "digits", "counts": counts, "findings": []})


@pytest.fixture
def project(tmp_path: Path) -> Project:
    project = Project(tmp_path)
    rng = np.random.default_rng(0)
    write_measured(project, rng)
    write_logits(project, rng)
    write_host(project)
    return project


MASK_LABELS = ("soil", "leaf", "rust")
MASKED, PICTURED = 5, (0, 2, 4)  # test images with masks, and those that are shown
RARE = {"fp32": 41.2, "bf16": 41.1, "int8": 40.5}


@pytest.fixture
def masked(project: Project) -> Project:
    """The same project, but its images have masks."""
    rng = np.random.default_rng(1)
    shape = (MASKED, len(MASK_LABELS), 8, 12)
    truth = rng.integers(0, 3, (MASKED, 8, 12))
    truth[:, 0] = 255
    logits = rng.normal(size=shape).astype(np.float32)
    pictures = rng.integers(0, 256, (len(PICTURED), 8, 12, 3), dtype=np.uint8)
    extra = {
        "pictures": pictures,
        "pictured": np.array(PICTURED),
        "names": np.array([f"images/{i}.jpg" for i in PICTURED]),
    }
    np.savez(project.path("reference_logits.npz"), fp32=logits, int8=logits, targets=truth, **extra)
    np.savez(project.path("merged/test_logits.npz"), adapted=logits, merged=logits)
    for target in ("cpu-openvino", "cpu-onnxruntime"):
        record = json.loads(project.path(f"measured/{target}/record.json").read_text())
        for name, variant in record["variants"].items():
            variant["accuracy"] = {
                "metric": "mIoU",
                "percent": 70.0 + RARE[name] / 10,
                "count": MASKED,
                "low_percent": 71.0,
                "high_percent": 76.0,
                "per_class_percent": {"soil": 95.0, "leaf": 88.0, "rust": RARE[name]},
            }
        record["differences"] = difference_records(record["variants"])
        project.write(f"measured/{target}/record.json", record)
        np.savez(project.path(f"measured/{target}/logits.npz"), **dict.fromkeys(record["variants"], logits))
    tested = {"test_accuracy_percent": 74.5, "test_per_class_percent": {"soil": 95.1, "leaf": 88.1, "rust": None}}
    project.write("merged/accuracy.json", {"schema": 1, "metric": "mIoU", "teacher": tested, "student": tested})
    counts = {split: {"soil": 0, "leaf": 3, "rust": 9} for split in ("train", "validation", "test")}
    shares = {"soil": 67.1, "leaf": 31.6, "rust": 1.3}
    report = {"schema": 2, "source": "masks", "counts": counts, "findings": [], "pixels_percent": shares}
    project.write("data/report.json", {**report, "near_similarity": 0.97})
    return project


@pytest.fixture
def variant() -> Callable[..., Variant]:
    def make(
        name: str,
        *,
        correct: int = 970,
        p90: float = 2.0,
        spread: float = 0.01,
        size: int = 10_000_000,
        count: int = 1000,
        precision: str | None = None,
    ) -> Variant:
        low, high = wilson(correct, count)
        bounds = {"p50_low": p90 * 0.8, "p50_high": p90 * 0.9, "p90_low": p90 - spread, "p90_high": p90 + spread}
        bounds |= {"p99_low": p90 * 1.9, "p99_high": p90 * 2.1}
        return Variant(
            name=name,
            precision=precision or name,
            onnx_sha256=SHA.get(name, SHA["fp32"]),
            engine_bytes=size,
            accuracy=Accuracy(
                metric="accuracy", percent=100 * correct / count, low=low, high=high, correct=correct, count=count
            ),
            latency=Latency(p50=p90 * 0.85, p90=p90, p99=p90 * 2, **bounds),
            golden_tolerance=0.1,
        )

    return make


@pytest.fixture
def target(tmp_path: Path) -> Callable[..., Target]:
    def make(*variants: Variant, **changes: Any) -> Target:
        content: dict[str, Any] = {
            "name": "board",
            "folder": tmp_path,
            "runtime": "openvino",
            "runtime_version": "1",
            "valid": True,
            "invalid_reasons": (),
            "skipped": {},
            "failed": {},
            "device": {},
            "state": {},
            "run": {},
        }
        return Target(variants=variants, **{**content, **changes})

    return make


@pytest.fixture
def difference() -> Callable[..., dict[tuple[str, str], Difference]]:
    """What a target has recorded of one pair: (value, low, high) of accuracy in points and of the ratio of p90."""

    def make(
        variant: str, reference: str, *, points: Any = None, ratio: Any = None
    ) -> dict[tuple[str, str], Difference]:
        points, ratio = (each and Interval(value=each[0], low=each[1], high=each[2]) for each in (points, ratio))
        found = Difference(
            variant=variant, reference=reference, accuracy_points=points, accuracy_method=None, latency_ratio=ratio
        )
        return {(variant, reference): found}

    return make
