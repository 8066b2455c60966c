import base64
import csv
import itertools
import json
import re
import shutil
import subprocess
from xml.etree import ElementTree as ET

import pytest

from pipeline.base.errors import DataError

SECTIONS = [
    "verdict",
    "chart",
    "variants",
    "measurement",
    "parity",
    "quantised",
    "training",
    "data",
    "device",
    "reproduce",
]
CHROMIUM = shutil.which("chromium")


def test_files_and_summary_agree(project):
    summary = project.build()
    names = {path.name for path in project.path("reports").iterdir()}
    assert names == {"report.html", "summary.json", "summary.csv", "accuracy_latency.svg"}
    assert json.loads(project.path("reports/summary.json").read_text(encoding="utf-8")) == summary
    assert summary["schema"] == 1
    openvino = summary["targets"]["cpu-openvino"]
    assert (openvino["chosen"], openvino["valid"]) == ("int8", True)
    assert openvino["variants"]["int8"]["speedup"] == pytest.approx(2.0)
    assert openvino["variants"]["int8"]["accuracy_points"] == pytest.approx(-100 * 2 / 450)
    assert summary["targets"]["cpu-onnxruntime"]["chosen"] == "fp32"
    assert summary["targets"]["cpu-onnxruntime"]["variants"]["bf16"]["latency_p90_ms"] is None
    assert summary["training"]["method"] == "slad"


def test_same_records_give_the_same_bytes(project):
    project.build()
    first = {path.name: path.read_bytes() for path in project.path("reports").iterdir()}
    project.build()
    assert first == {path.name: path.read_bytes() for path in project.path("reports").iterdir()}


def test_summary_csv(project):
    project.build()
    with project.path("reports/summary.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["target", "variant", "accuracy_percent", "latency_p50_ms", "latency_p90_ms", "size_mb"]
    assert len(rows) == 5
    assert rows[-1]["target"] == "cpu-openvino"
    assert float(rows[-1]["size_mb"]) == pytest.approx(6.102)


def test_standalone_chart(project):
    project.build()
    text = project.path("reports/accuracy_latency.svg").read_text(encoding="utf-8")
    svg = ET.fromstring(text)
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in text
    assert not re.search(r"(href|url\(|@import)", text)


def test_page_is_well_formed_and_in_order(project):
    project.build()
    page = project.page()
    assert page.unbalanced == []
    assert page.open == []
    assert [found["id"] for found in page.attributes("section")] == SECTIONS
    ids = [found["id"] for _, found in page.tags if found.get("id")]
    assert len(ids) == len(set(ids))
    levels = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_page_asks_nothing_of_a_network(project):
    project.build()
    html = project.html()
    assert "<script" not in html
    assert "http://" not in html
    assert "https://" not in html
    assert "@import" not in html
    assert "url(" not in html
    page = project.page()
    assert {found["href"] for found in page.attributes("link")} == {"data:,"}
    assert all(found["href"].startswith("#") for found in page.attributes("a"))
    assert not page.attributes("img")


def test_page_can_be_heard_and_walked(project):
    project.build()
    page = project.page()
    assert len(page.attributes("caption")) == len(page.attributes("table"))
    assert all(found.get("scope") for found in page.attributes("th"))
    for svg in page.attributes("svg"):
        assert svg["role"] == "img"
        assert all(name in page.by_id for name in svg["aria-labelledby"].split())
    boxes = [found for found in page.attributes("div") if "scroll" in (found.get("class") or "").split()]
    assert boxes
    assert all(box["tabindex"] == "0" and box["aria-label"] and box["role"] == "region" for box in boxes)
    for found in (*page.attributes("section"), *page.attributes("a")):
        name = found.get("aria-labelledby") or found["href"][1:]
        assert name in page.by_id


def test_verdict_stands_in_words(project):
    summary = project.build()
    text = project.page().text("verdict").replace("\xa0", " ")
    for target in summary["targets"].values():
        assert target["words"] in text


@pytest.mark.parametrize(
    ("place", "words"),
    [
        (None, "Intel(R) Xeon(R) Platinum 8481C, 2 cores"),
        ({"device": "GPU", "name": "Intel(R) Arc(TM) Graphics"}, "Intel(R) Arc(TM) Graphics"),
        ({"gpu": {"name": "NVIDIA L4"}, "board": None, "l4t": None}, "NVIDIA L4"),
        ({"gpu": {"name": "Orin"}, "board": "NVIDIA Jetson Orin Nano"}, "NVIDIA Jetson Orin Nano"),
        ({"gpu": None, "board": None}, "Intel(R) Xeon(R) Platinum 8481C, 2 cores"),
    ],
)
def test_a_verdict_says_on_what_hardware_it_was_reached(project, place, words):
    project.edit("measured/cpu-openvino/record.json", lambda record: record["device"].update(place=place))
    project.build()
    assert f"cpu-openvino {words} int8" in project.page().text("verdict")


def test_variants_table(project):
    project.build()
    rows = project.page().rows
    assert ["cpu-openvino", "fp32", "97.1 % (95.1 to 98.3)", "2.31 ms", "2.62 ms", "22.4 MB", "slower"] in rows
    assert ["int8", "96.7 % (94.6 to 98.0)", "1.12 ms", "1.31 ms", "6.10 MB", "chosen"] in rows
    assert ["bf16", "-", "-", "-", "-", "skipped: this runtime has no bf16 kernels on x86"] in rows


def test_parity_table(project):
    project.build()
    page = project.page()
    row = next(row for row in page.rows if row[0] == "ONNX fp32 → ONNX int8")
    assert row[5:] == [
        "99.33 %", "100.0 → 99.3", "-0.67", "-1.53 to 0.2", "450", "no limit",
    ]  # fmt: skip
    assert "int8: ONNX fp32 → ONNX int8 lost the most: 0.67 points" in page.text("parity").replace("\xa0", " ")


def test_how_variants_were_made_and_how_the_student_takes_int8(project):
    project.build()
    page = project.page()
    assert ["int8", "int8", "all with weights", "0.95", "fast", "3"] in page.rows
    text = page.text("quantised").replace("\xa0", " ")
    assert "int8 may lose 0.5 points on the validation split and leaves blocks.0.fc2 in FP32" in text
    assert "with the number of groups left in FP32: 1.20 with 0, 0.00 with 9, 0.40 with 1." in text
    assert "On 64 calibration images" in text
    assert ["Lowest SQNR of a group", "31.25 dB (blocks.0.fc2)", "27.50 dB (blocks.0.fc2)"] in page.rows
    assert ["Largest kurtosis of a layer's input", "not measured", "20.75"] in page.rows
    assert ["blocks.0.fc2", "31.25", "27.50", "0.00021"] in page.rows
    assert ["blocks.0.mlp.fc2", "9.50", "12.25", "15.50", "20.75"] in page.rows
    assert ["stem.conv", "not observed: its weights change before use"] in page.rows


def test_what_an_fp16_rest_leaves_out_is_left_in_fp16(project):
    made = json.loads(project.path("onnx/int8/quantization.json").read_text())
    reach = {"node": "head/Gemm", "largest": 11.256, "norm": "norm/LayerNormalization", "norm_largest": 5.757}
    project.write("onnx/int8/quantization.json", made | {"precision": "int8_fp16", "rest": "fp16", "range": reach})
    project.build()
    page = project.page()
    assert ["int8", "int8_fp16", "all with weights", "0.95", "fast", "3"] in page.rows
    text = page.text("quantised").replace("\xa0", " ")
    assert "leaves blocks.0.fc2 in FP16" in text
    assert "with the number of groups left in FP16: 1.20 with 0" in text
    assert "the largest value is 11.3, given by head/Gemm" in text


def test_variants_of_an_earlier_network_are_not_shown(project):
    bundle = json.loads(project.path("onnx/int8/bundle.json").read_text())
    project.write("onnx/int8/bundle.json", bundle | {"lineage": {"parent_sha256": "0" * 64}})
    project.build()
    assert "No variant was made of the FP32 file" in project.page().text("quantised")


def test_the_reach_of_fp16_is_told(project):
    reach = {"node": "head/Gemm", "largest": 11.256, "norm": "norm/LayerNormalization", "norm_largest": 5.757}
    record = {"schema": 1, "precision": "fp16", "range": reach, "calibration_sha256": ["a"]}
    project.write("onnx/fp16/quantization.json", record)
    bundle = json.loads(project.path("onnx/fp32/bundle.json").read_text())
    lineage = {"parent_sha256": bundle["files"]["model.onnx"]["sha256"]}
    project.write("onnx/fp16/bundle.json", bundle | {"files": {"model.onnx": {"sha256": "0" * 64}}, "lineage": lineage})
    project.build()
    page = project.page()
    assert ["fp16", "fp16", "all but LayerNorm and Softmax", "-", "-", "1"] in page.rows
    assert "fp16: the largest value is 11.3, given by head/Gemm, and the largest that a LayerNorm reads 5.76" in (
        page.text("quantised")
    )


def test_training_data_device_and_provenance(project):
    project.build()
    page = project.page()
    training = page.text("training")
    assert "98.3 %" in training
    assert "Teacher, test accuracy98.6 %" in training
    assert "Student, test accuracy97.2 %" in training
    assert "312,330" in training
    assert "3 min 4 s" in training
    assert "612" in training
    assert "0.61 before, 0.72 after" in training
    assert ["0", "", "118", "35", "44"] in page.rows
    assert ["All 10 classes", "", "1,189", "359", "449"] in page.rows
    assert "The checks of the data found nothing; near copies were not looked for." in page.text("data")
    assert ["cpu.model", "Intel(R) Xeon(R) Platinum 8481C"] in page.rows
    assert ["load_1m", "0.3", "-", "1.1"] in page.rows
    assert ["temperature_c", "not readable", "-", "not readable"] in page.rows
    assert "The run is valid." in page.text("device")
    reproduce = page.text("reproduce")
    assert "make repro" in reproduce
    assert "0a1b2c3d4e5f60718293a4b5c6d7e8f901234567" in reproduce
    assert "f" * 64 in reproduce


def test_invalid_run_is_told_everywhere(project):
    project.edit("measured/cpu-openvino/record.json", lambda r: r.update(valid=False, invalid_reasons=["throttled"]))
    summary = project.build()
    assert summary["targets"]["cpu-openvino"]["words"].startswith("Invalid run: throttled")
    page = project.page()
    for section in ("verdict", "variants", "device"):
        assert "Invalid run" in page.text(section)
    assert "throttled" in page.text("device")


def found(path, **more):
    return {"kind": "broken", "action": "dropped", "paths": [path], "reason": "cut short", **more}


def test_findings_are_listed_up_to_a_limit(project):
    findings = [found(f"x{index}.png") for index in range(60)]
    project.edit("data/report.json", lambda r: r.update(findings=findings, found={"broken dropped": 60}))
    project.build()
    page = project.page()
    assert ["broken file", "x49.png", "cut short", "dropped"] in page.rows
    assert ["broken file", "x50.png", "cut short", "dropped"] not in page.rows
    assert "Found in the data: broken file, dropped: 60. The first 50 of 60;" in page.text("data")


def test_of_copies_it_is_said_which_went(project):
    pair = {"kind": "near_copies", "paths": ["test/a.png", "train/b.png"], "reason": "correlation 0.970"}
    findings = [found("", **pair, dropped=["train/b.png"]), found("", **pair, action="kept")]
    project.edit("data/report.json", lambda r: r.update(findings=findings))
    project.build()
    rows = project.page().rows
    assert ["near copy", "test/a.png, train/b.png", "correlation 0.970", "dropped: train/b.png"] in rows
    assert ["near copy", "test/a.png, train/b.png", "correlation 0.970", "kept"] in rows


def test_samples_stand_beside_their_class(project):
    (project.path("data") / "samples").mkdir()
    for name in ("0-1.jpg", "0-0.jpg", "9-0.jpg", "other.jpg"):
        (project.path("data") / "samples" / name).write_bytes(name.encode())
    project.build()
    page = project.page()
    shown = [base64.b64decode(found["src"].split(",")[1]).decode() for found in page.attributes("img")]
    assert shown == ["0-0.jpg", "0-1.jpg", "9-0.jpg"]


def test_sizes_and_bars(project):
    sides = {"width": {"smallest": 8, "median": 9, "largest": 12}, "height": {"smallest": 6, "median": 6, "largest": 6}}
    counts = {"train": {"a": 6, "b": 3}, "test": {"a": 2, "b": 0}}
    project.edit("data/report.json", lambda r: r.update(**sides, counts=counts, calibration=4))
    project.build()
    page = project.page()
    assert "8 x 6 to 12 x 6" in page.text("data")
    widths = [found["style"] for found in page.attributes("span") if "style" in found]
    assert widths == ["width:75.0%", "width:25.0%", "width:37.5%", "width:0.0%"]


def test_user_data_is_escaped(project):
    evil = "<b>bold</b><script>x</script>"
    project.edit("data/report.json", lambda r: r["findings"].append(found(evil, reason=evil, kind=evil)))
    project.edit("data/report.json", lambda r: [split.update({evil: 1}) for split in r["counts"].values()])
    project.edit(
        "measured/cpu-openvino/record.json",
        lambda r: r.update(target=f"t {evil}", valid=False, invalid_reasons=[evil], failed={evil: evil}),
    )
    project.build()
    html = project.html()
    assert "<b>bold" not in html
    assert "<script" not in html
    page = project.page()
    assert page.unbalanced == []
    assert [evil, "", "1", "1", "1"] in page.rows
    assert f"t {evil}" in page.text("verdict")


@pytest.mark.parametrize(
    ("remove", "section", "expected"),
    [
        ("distill/metrics.json", "training", "No training record"),
        ("distill/curves.csv", "training", "No training curves"),
        ("data/report.json", "data", "No data report"),
        ("merged/saved_parity.json", "parity", "not measured: no saved_parity.json in merged"),
        ("merged/test_logits.npz", "parity", "not measured: no logits of adapted and no logits of merged"),
        ("measured/cpu-openvino/samples.npz", "variants", "No latency samples: samples.npz of cpu-openvino"),
        ("measured/cpu-openvino/logits.npz", "parity", "not measured: no logits of fp32 on cpu-openvino"),
        ("merged/friendliness.json", "quantised", "Not measured: merged/friendliness.json is not there"),
        ("onnx/int8/quantization.json", "quantised", "No variant was made of the FP32 file"),
    ],
)
def test_what_is_missing_is_said(project, remove, section, expected):
    project.path(remove).unlink()
    project.build()
    assert expected in project.page().text(section)


def test_everything_optional_missing(project):
    for name in ("distill", "data", "merged", "onnx"):
        shutil.rmtree(project.path(name))
    project.build(reference_logits=None)
    page = project.page()
    assert page.unbalanced == []
    assert "no bundle has the ONNX file" in page.text("parity")


def test_sparse_records(project):
    """A teacherless method, no state, no fingerprint, no golden outputs."""
    project.write("distill/metrics.json", {"schema": 2, "student": {"validation_accuracy_percent": 90.0}})
    project.path("distill/curves.csv").write_text("epoch,loss\n1,0.5\n")

    def strip(record):
        for key in ("device", "state", "minimum", "profile"):
            del record[key]
        for key in ("attempts", "partial", "statistics_engine", "differences"):
            del record[key]
        for variant in record["variants"].values():
            for key in ("golden", "bundle_bytes", "scenarios", "end_to_end_ms", "energy_reason", "cold_start_seconds"):
                del variant[key]
            for key in ("per_class_percent", "confusion"):
                del variant["accuracy"][key]
            variant["memory_mb"] = None

    project.edit("measured/cpu-openvino/record.json", strip)
    project.build()
    page = project.page()
    assert "Teacher, validation accuracynot measured" in page.text("training")
    assert "No accuracy per epoch was recorded." in page.text("training")
    assert "The state of the device was not recorded." in page.text("device")
    assert "device not recorded" in page.text("verdict")
    assert "no limit" in page.text("parity")


def test_missing_reference_stops_the_report(project):
    with pytest.raises(DataError, match="'fp64'"):
        project.build(reference="fp64")
    assert not list(project.path("reports").iterdir())


PROBE = """<script>addEventListener("load", () => {
  const root = document.documentElement;
  root.dataset.fits = `${root.scrollWidth <= root.clientWidth} ${root.clientWidth}`;
  parent.postMessage(root.dataset.fits, "*");
});</script>"""
FRAME = """<!doctype html><title>frame</title>
<iframe src="probe.html" style="width:390px;height:844px;border:0"></iframe>
<script>addEventListener("message", event => { document.body.dataset.fits = event.data; });</script>"""


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not on PATH")
def test_page_does_not_scroll_sideways_on_a_phone(project):
    # Chromium's windows are at least 500 px wide; a frame is as narrow as it is told to be.
    project.edit("measured/cpu-openvino/record.json", lambda r: r.update(target="a-board-with-a-name-" + "x" * 60))
    project.build()
    project.path("probe.html").write_text(project.html().replace("</body>", PROBE + "</body>"), encoding="utf-8")
    project.path("frame.html").write_text(FRAME, encoding="utf-8")
    quiet = ["--no-first-run", "--disable-background-networking", "--disable-component-update", "--disable-sync"]
    options = [
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        *quiet,
        f"--user-data-dir={project.path('profile')}",
    ]
    command = [CHROMIUM, *options, "--virtual-time-budget=5000", "--dump-dom", project.path("frame.html").as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert 'data-fits="true 390"' in done.stdout
