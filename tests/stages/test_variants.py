"""Every variant of the exported network, from its configuration to engines on every runtime and the report."""

import json

import pytest
import yaml

from pipeline.base.compose import compose_params
from pipeline.steps.quantize.lint_file import lint_file
from tests.stages.conftest import ROOT


@pytest.fixture(scope="module")
def composed():
    """What `experiment=variants` composes to."""
    return compose_params(ROOT / "configs", ["experiment=variants"])


def adopt(project, composed, *, variants=None):
    """Gives a tiny project the variants, and the targets that try them."""
    params = yaml.safe_load((project.root / "params.yaml").read_text())
    chosen = {name: dict(composed.quantize.variants[name]) for name in variants or composed.quantize.variants}
    params["quantize"]["variants"] = chosen
    for name, target in composed.targets.items():
        engines = {key: dict(engine) for key, engine in target.variants.items() if engine.onnx in {"fp32", *chosen}}
        params["targets"][name]["variants"] = engines
    for file in ("params.yaml", "configs/config.yaml"):
        (project.root / file).write_text(yaml.safe_dump(params, sort_keys=False))


@pytest.mark.slow
def test_every_variant_is_made_measured_and_judged(project, composed, capsys, monkeypatch):
    adopt(project, composed)
    targets = list(composed.targets)
    stages = [f"quantize@{name}" for name in composed.quantize.variants]
    stages += [f"{stage}@{target}" for target in targets for stage in ("compile", "measure")]
    for stage in (*stages, "report"):
        result = project.run(stage, capsys, monkeypatch)
        assert result.code == 0, (stage, result.error)
    summary = json.loads((project.root / "reports/summary.json").read_text())
    page = (project.root / "reports/report.html").read_text()
    files = [(project.root / f"artifacts/onnx/{name}/model.onnx").read_bytes() for name in ("int8", "int8_auto")]
    same = files[0] == files[1]
    for target in targets:
        record = json.loads((project.root / f"reports/{target}.json").read_text())
        assert set(record["variants"]) | set(record["skipped"]) == set(composed.targets[target].variants)
        assert {"fp32", "int8", "int8_full", "int8_mlp", "int8_auto"} <= set(record["variants"])
        for name, chain in summary["targets"][target]["parity"].items():
            hops = [hop["result"] for hop in chain["hops"]]
            onnx = composed.targets[target].variants[name].onnx
            if onnx == "int8_auto" and same:
                onnx = "int8"  # nothing had to be left out: the same file, which goes by its first name
            path = ["ONNX fp32"] if onnx == "fp32" else ["ONNX fp32", f"ONNX {onnx}"]
            assert hops == ["adapted", "merged", *path, f"engine {name}"]
            assert all(
                hop["missing"] is None and hop["low"] <= hop["accuracy_points"] <= hop["high"] for hop in chain["hops"]
            )
            assert len({hop["images"] for hop in chain["hops"][1:]}) == 1
    for name in composed.quantize.variants:
        assert f'<th scope="row">{name}</th>' in page
    assert "SQNR of groups of layers" in page


@pytest.mark.slow
def test_two_runs_of_a_variant_write_the_same_bytes(project, composed, capsys, monkeypatch):
    adopt(project, composed, variants=["int8_auto", "fp16"])
    written = []
    for _ in range(2):
        for name in ("int8_auto", "fp16"):
            assert project.run(f"quantize@{name}", capsys, monkeypatch).code == 0
        snapshot = project.snapshot()
        written.append({path: snapshot[path] for path in snapshot if "int8_auto" in path or "fp16" in path})
    assert len(written[0]) == 10
    assert written[0] == written[1]


@pytest.mark.slow
def test_int8_with_an_fp16_rest_is_made_checked_and_reported(project, capsys, monkeypatch):
    """No CPU target computes in it: it is made here and runs on a GPU, and the report names it among the variants."""
    names = ["int8_fp16", "int8_full_fp16"]
    overrides = [f"+variant@quantize.variants.{name}={name}" for name in names]
    adopt(project, compose_params(ROOT / "configs", overrides), variants=["int8", *names])
    written = []
    for _ in range(2):
        for name in names:
            assert project.run(f"quantize@{name}", capsys, monkeypatch).code == 0
        snapshot = project.snapshot()
        written.append({path: snapshot[path] for path in snapshot if "_fp16/" in path})
    assert len(written[0]) == 10
    assert written[0] == written[1]
    said = []
    for name in names:
        folder = project.root / "artifacts/onnx" / name
        lint_file(folder / "model.onnx", targets=(), precision=None, say=said.append)
        assert json.loads((folder / "parity.json").read_text())["relative_error"] < 0.1
    assert [line.rpartition(", ")[2] for line in said] == ["precision int8_fp16"] * 2
    assert project.run("report", capsys, monkeypatch).code == 0
    page = (project.root / "reports/report.html").read_text()
    assert all(f'<th scope="row">{name}</th><td>int8_fp16</td>' in page for name in names)


def test_a_budget_that_is_not_met_stops_the_stage_and_keeps_what_was_there(project, composed, capsys, monkeypatch):
    adopt(project, composed, variants=["int8_auto"])
    assert project.run("quantize@int8_auto", capsys, monkeypatch).code == 0
    before = project.snapshot()
    told = iter([90.0, 87.0, 87.0])  # FP32, and two tries
    monkeypatch.setattr("pipeline.steps.quantize.step._Judge.percent", lambda *_: next(told))
    result = project.run("quantize@int8_auto", capsys, monkeypatch)
    assert result.code == 5
    lines = result.error.splitlines()
    assert lines[-1].startswith("error: no INT8 network is within `quantize.max_drop` 0.5 points: the best of 2 tries")
    assert "loses 3.00, 2.50 too many, with 0 of 10 groups left" in lines[-1]
    assert "note: try 2: 9 of 10 groups left in high precision, 3.00 points lost; best 3.00, budget 0.5" in lines
    assert any(line.startswith("note: groups by sensitivity, the most sensitive first: ") for line in lines)
    assert project.snapshot() == before
