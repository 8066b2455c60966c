"""The last stage: which records end the chain with an error."""

import json
import shutil
from pathlib import Path

import pytest
import yaml

from stages import boundary, check

ROOT = Path(__file__).parents[3]


@pytest.fixture
def project(tmp_path, monkeypatch, capsys):
    """Runs the stage on records made of (budget, over_budget by variant, failed)."""
    shutil.copyfile(ROOT / "params.yaml", tmp_path / "params.yaml")
    command = yaml.safe_load((ROOT / "dvc.yaml").read_text())["stages"]["check"]["cmd"].split()

    def run(**targets):
        for name, (budget, over, failed) in targets.items():
            folder = tmp_path / "artifacts/measured" / name.replace("_", "-")
            folder.mkdir(parents=True)
            variants = {variant: {"over_budget": phrases} for variant, phrases in over.items()}
            record = {"schema": 2, "target": folder.name, "budget": budget, "variants": variants, "failed": failed}
            (folder / "record.json").write_text(json.dumps(record))
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr("sys.argv", command[2:])
        try:
            boundary.run(check.main)
        except SystemExit as end:
            return int(end.code), capsys.readouterr().err
        return 0, capsys.readouterr().err

    run.output = tmp_path / "reports/check.txt"
    run.output.parent.mkdir()
    return run


LARGE = ["9 MB, at most 4 allowed, 2.25 times that"]
FINE = ({}, {"fp32": [], "int8": []}, {})


def test_targets_that_keep_their_budgets_pass(project):
    within = ({"size_mb": 4}, {"fp32": LARGE, "int8": []}, {})
    code, said = project(cpu_openvino=FINE, cpu_onnxruntime=within)
    assert code == 0
    assert said == project.output.read_text()
    assert "cpu-openvino: no budget; measured: fp32, int8\n" in said
    assert (
        "cpu-onnxruntime: the budget is kept by int8; over it: fp32 (9 MB, at most 4 allowed, 2.25 times that)" in said
    )


def test_a_target_over_its_budget_fails_after_all_are_told(project):
    over = ({"size_mb": 4}, {"fp32": LARGE, "int8": LARGE}, {})
    code, said = project(cpu_openvino=over, cpu_onnxruntime=FINE)
    assert code == 11
    assert "error: target 'cpu-openvino': no variant keeps its budget: fp32 (9 MB, at most 4 allowed" in said
    assert "raise `targets.cpu-openvino.budget`" in said
    assert len(project.output.read_text().splitlines()) == 2


def test_a_variant_that_failed_comes_first(project):
    over = ({"size_mb": 4}, {"fp32": LARGE}, {})
    failed = ({}, {"fp32": []}, {"int8": "the engine is truncated"})
    code, said = project(cpu_openvino=over, cpu_onnxruntime=failed)
    assert code == 9
    assert "error: 1 variants were not measured: cpu-onnxruntime/int8; see reports/check.txt for the reasons" in said
    assert "failed: int8 (the engine is truncated)" in project.output.read_text()


def test_a_target_without_a_record_is_refused(project):
    code, said = project(cpu_openvino=FINE)
    assert code == 9
    assert "record.json: no such file; run `slad repro`" in said
