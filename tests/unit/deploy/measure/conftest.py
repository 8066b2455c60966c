"""One measurement of each runtime for all tests, and measurements of a test's own."""

import os
import shutil
import subprocess

import pytest

from deploy.device import fingerprint
from deploy.measure.plan import Plan
from deploy.measure.step import measure_target
from deploy.target import read_target
from tests.unit.deploy.conftest import RUNTIMES, target_spec

ALL = ("SingleStream", "MultiStream", "Offline")
PLAN = {"profile": "quick", "scenarios": ("SingleStream",), "queries": 64, "seconds": 0.01, "attempts": 1, "seed": 0}
BUDGET = {"latency_ms": 0.000001, "percentile": 99, "size_mb": 1000, "memory_mb": 5}


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 100 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root can mount a small file system")
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=100k", "tmpfs", folder], check=False).returncode:
        pytest.skip("this machine does not let a file system be mounted")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.fixture(scope="session", params=RUNTIMES)
def measured(request, pristine, built, tmp_path_factory):
    """One whole measurement of each runtime, and where it was written."""
    output = tmp_path_factory.mktemp("measured")
    lines = []
    record = measure_target(
        output,
        target="here",
        spec=target_spec(request.param) | {"budget": BUDGET, "cpus": [min(os.sched_getaffinity(0))]},
        engines=built[request.param],
        onnx_root=pristine / "onnx",
        data=pristine / "data",
        device=fingerprint(read_target("here", target_spec(request.param))),
        plan=Plan(**PLAN | {"scenarios": ALL}),
        journal=tmp_path_factory.mktemp("journal"),
        on_progress=lines.append,
    )
    return record, output, lines


@pytest.fixture
def measure(plant, device, engines, runtime, spec_of, tmp_path):
    output = tmp_path / "measured"
    output.mkdir()

    def run(**changes):
        options = {
            "target": "here",
            "spec": spec_of(runtime),
            "engines": engines,
            "onnx_root": plant.onnx_root,
            "data": plant.data,
            "device": device,
            "journal": tmp_path / "journal",
            "on_progress": lambda line: None,
        }
        plan = PLAN | {name: changes.pop(name) for name in PLAN.keys() & changes}
        where = changes.pop("output", output)
        return measure_target(where, plan=Plan(**plan), **{**options, **changes})

    run.output, run.journal = output, tmp_path / "journal"
    return run
