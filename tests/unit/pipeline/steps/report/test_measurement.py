"""What the page says of how each target was measured."""

import re

import pytest

from pipeline.base.errors import DataError
from pipeline.steps.report import confusion, states
from pipeline.steps.report.records import read_targets
from pipeline.steps.report.variants import Accuracy

RECORD = "measured/cpu-openvino/record.json"


def section(project):
    project.build()
    return project.page().text("measurement").replace("\xa0", " ")


def cells(project):
    project.build()
    return [[cell.replace("\xa0", " ") for cell in row] for row in project.page().rows]


def test_placement_of_every_engine_is_shown(project):
    project.build()
    text = re.sub(r"<[^>]+>", " ", project.path("reports/report.html").read_text(encoding="utf-8"))
    text = " ".join(text.split())
    assert "int8 30 on CPU, 1 on GPU.0; 1 not where asked i8 12, f32 19" in text
    assert "fp32 30 on CPU, 1 on GPU.0; 1 not where asked not reported" in text


def test_engine_over_the_targets_budget_is_marked(project):
    def spoil(record):
        for variant in record["variants"].values():
            variant["over_budget"] = ["9 MB, at most 4 allowed"]

    project.edit("measured/cpu-openvino/record.json", spoil)
    project.build()
    text = project.path("reports/report.html").read_text(encoding="utf-8")
    assert text.count("Over budget</span>") == 1
    assert "over budget (9 MB, at most 4 allowed)" in text


def test_how_it_was_measured_stands_first(project):
    words = (
        "openvino 2026.4.1, profile standard, at least 664 queries and 10 s per variant, statistics by loadgen 6.0.17."
    )
    assert words in section(project)
    assert "The run is valid." in section(project)


def test_repeated_and_partial_runs_are_marked(project):
    project.edit(
        RECORD, lambda r: r.update(attempts=3, partial="ended by SIGTERM", valid=False, invalid_reasons=["busy"])
    )
    text = section(project)
    assert "3 attempts, of which the quietest one stands here" in text
    assert "Invalid run: busy. The run is partial: ended by SIGTERM." in text


def test_noise_is_told_where_there_was_some(project):
    assert "noisy" not in section(project)
    project.edit(RECORD, lambda r: r.update(noise=["the hypervisor took 3 % of the cores' time", "it was hot"]))
    assert "It was noisy: the hypervisor took 3 % of the cores' time; it was hot." in section(project)


def test_percentiles_and_scenarios_have_intervals(project):
    found = cells(project)
    assert ["int8", "1.12 (1.11 to 1.13)", "1.31 (1.28 to 1.34)", "1.70 (1.63 to 1.77)"] in found
    assert [
        "int8",
        "SingleStream",
        "p90 1.31 (1.28 to 1.34) ms",
        "p90 1.35 ms, p99 1.83 ms",
        "1,000",
        "10.2 s",
        "valid",
    ] in found
    assert ["int8", "Offline", "916 (907 to 925) samples/s", "-", "1 of 5,000 samples", "10.2 s", "valid"] in found
    few = "not valid: 70 queries, at least 662 are needed"
    assert [
        "int8",
        "MultiStream",
        "p99 11.8 (11.2 to 12.4) ms",
        "p99 too few queries",
        "70 of 8 samples",
        "10.2 s",
        few,
    ] in found


def test_a_rate_of_too_few_samples_has_no_interval(project):
    rate = {"value": 7.25, "low": None, "high": None}
    project.edit(RECORD, lambda r: r["variants"]["int8"]["scenarios"]["Offline"].update(samples_per_second=rate))
    assert ["int8", "Offline", "7.25 samples/s", "-", "1 of 5,000 samples", "10.2 s", "valid"] in cells(project)


@pytest.mark.slow
def test_pairs_are_judged_by_their_intervals(project):
    found = cells(project)
    assert ["int8 against fp32", "-0.44 (-1.04 to +0.16)", "equal", "0.50 (0.49 to 0.51)", "faster"] in found
    assert ["bf16 against fp32", "0.0 (-0.6 to +0.6)", "equal", "0.70 (0.70 to 0.71)", "faster"] in found
    project.edit(
        RECORD, lambda r: r["differences"][1].update(latency_ratio={"value": 0.99, "low": 0.97, "high": 1.002})
    )
    assert ["int8 against fp32", "-0.44 (-1.04 to +0.16)", "equal", "0.9900 (0.9700 to 1.0020)", "equal"] in cells(
        project
    )
    assert "on the same images (Newcombe 1998, paired)" in section(project)


def test_steps_and_resources(project):
    found = cells(project)
    steps = next(tuple(row) for row in found if row[:2] == ["int8", "0.400"] and row[4] == "1.12")
    assert steps[:5] == ("int8", "0.400", "0.200", "-", "1.12")
    assert re.fullmatch(r"[\d.]+ \([\d.]+ to [\d.]+\)", steps[-1])
    assert ["int8", "61.5 MB", "20.0 ms", "1.25 s", "6.10 MB", "7.20 MB", "-"] in found
    reason = "Energy was not measured: the energy counter of the processor cannot be read by this user."
    assert section(project).count(reason) == 2  # once for each target


def test_energy_says_what_counted_it(project):
    energy = {
        "mj_per_inference": 12.5,
        "low": 12.1,
        "high": 12.9,
        "counter": "RAPL package-0",
        "idle_w": 4.25,
        "seconds": 10,
    }
    project.edit(RECORD, lambda r: r["variants"]["int8"].update(energy=energy, energy_reason=None))
    assert "12.5 (12.1 to 12.9) mJ" in section(project)
    assert "Energy of int8 is what RAPL package-0 counted in 10.0 s, less the 4.25 W of the idle device." in section(
        project
    )


def test_the_state_has_a_column_for_each_time(project):
    found = cells(project)
    assert ["What", "Before", "During", "After"] in found
    assert ["clock_mhz", "2700", "2650", "2700"] in found
    assert ["background_cores", "-", "0.04", "-"] in found


def test_the_chosen_variant_has_a_confusion_matrix(project):
    found = cells(project)
    assert ["Class", *map(str, range(10))] in found
    assert ["3", "0", "0", "0", "43", "2", "0", "0", "0", "0", "0"] in found
    assert "Test images of each class (rows) and what int8 takes them for (columns)" in section(project)
    assert "--depth:59%" in project.html()
    assert ["3", "97.8 %", "95.6 %", "97.8 %", "97.8 %", "95.6 %"] in found  # of each engine, in the table of classes


def test_a_variant_without_errors_says_so(project):
    def perfect(record):
        for variant in record["variants"].values():
            rows = variant["accuracy"]["confusion"]
            for truth, row in enumerate(rows):
                rows[truth] = [45 * (truth == answer) for answer in range(len(row))]

    project.edit(RECORD, perfect)
    assert "int8 takes no test image for another class." in section(project)


def many(classes, wrong):
    rows = [[0] * classes for _ in range(classes)]
    for truth in range(classes):
        rows[truth][truth] = 50
    for (truth, answer), count in wrong.items():
        rows[truth][answer] = count
    labels = {f"class {index}": 90.0 for index in range(classes)}
    return Accuracy(
        metric="accuracy", percent=90, low=89, high=91, correct=90, count=100, per_class=labels,
        confusion=tuple(map(tuple, rows)),
    )  # fmt: skip


def test_a_state_is_one_row_for_each_quantity():
    mhz = {"min": 1200, "median": 2500.5, "max": 2600}
    before = {"load": 0.5, "cpu": {"mhz": mhz, "governor": None}, "zones_c": {}, "nvidia": [], "jetson": None}
    during = {"mhz": {"low": 1}, "nvidia": [{"pstate": "P0", "reasons": ["power cap", "heat"]}]}
    assert states.rows({"before": before, "during": during, "after": None}) == [
        ("load", "0.5", "-", "-"),
        ("cpu.mhz", "min 1200, median 2500.5, max 2600", "-", "-"),
        ("cpu.governor", "not readable", "-", "-"),
        ("zones_c", "none", "-", "-"),
        ("nvidia", "none", "-", "-"),
        ("jetson", "not readable", "-", "-"),
        ("mhz", "-", "low 1", "-"),
        ("nvidia.0.pstate", "-", "P0", "-"),
        ("nvidia.0.reasons", "-", "power cap, heat", "-"),
    ]


@pytest.mark.parametrize(("classes", "whole"), [(20, True), (21, False)])
def test_of_many_classes_the_most_frequent_confusions_are_listed(classes, whole):
    wrong = {(0, 1): 2, (1, 0): 10, (2, 5): 2, (3, 4): 50}
    found = confusion.view(many(classes, wrong))
    assert bool(found.rows) is whole
    assert (found.errors, found.kinds) == (64, 4)
    if not whole:
        assert found.pairs[:2] == (("class 3", "class 4", 50, 50.0), ("class 1", "class 0", 10, 100 * 10 / 60))
        assert [pair[0] for pair in found.pairs[2:]] == ["class 0", "class 2"]


@pytest.mark.slow
def test_a_page_of_a_thousand_classes_stays_small(project):
    classes = 1000

    def widen(record):
        for variant in record["variants"].values():
            accuracy = many(classes, {(label, (label + 7) % classes): label % 40 for label in range(classes)})
            variant["accuracy"] |= {"confusion": accuracy.confusion, "per_class_percent": accuracy.per_class}

    for target in ("cpu-openvino", "cpu-onnxruntime"):
        project.edit(f"measured/{target}/record.json", widen)
    text = section(project)
    assert "What int8 confuses most often: 20 of 975 pairs of 1,000 classes; 19,500 test images are taken for" in text
    assert len(project.html()) < 2_000_000


def test_a_record_without_a_confusion_matrix_has_no_table_of_it(project):
    for target in ("cpu-openvino", "cpu-onnxruntime"):
        project.edit(
            f"measured/{target}/record.json",
            lambda r: [variant["accuracy"].pop("confusion") for variant in r["variants"].values()],
        )
    assert "takes them for" not in section(project)


def test_a_record_of_the_earlier_schema_is_refused(project):
    project.edit(RECORD, lambda r: r.update(schema=1))
    with pytest.raises(DataError, match="has schema 1, this version reads 2: run `dvc repro`"):
        read_targets(project.path("measured"), ["cpu-openvino"])
