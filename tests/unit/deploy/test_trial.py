"""Runtimes tried in real processes: a stand-in for a runtime does in them what a bad driver does."""

import json
import sys
from pathlib import Path

import pytest

from deploy import child, trial
from deploy.runtimes import RUNTIMES
from deploy.trial import try_runtime

STAND_IN = """
import os, signal, sys, time
import deploy.trial
from deploy.errors import EngineError, RuntimeMissingError

class Runtime:
    def version(self):
        if HOW == "missing":
            raise RuntimeMissingError("runtime 'x' is not installed; run `pip install x`")
        if HOW == "hangs":
            time.sleep(60)
        if HOW == "broken":
            raise AttributeError("partially initialised")
        return "1.2"

    def places(self):
        return {"CPU": None, "GPU": "no driver"}

    def probe(self, options):
        print("chatter on the standard output")
        os.write(1, b"and from below Python\\n")
        if options["device"] == 1:
            print("driver: out of sorts", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGSEGV)
        if options["device"] == 2:
            raise EngineError("no such device")
        return {"device": options["device"]}

    def supports(self, settings):
        return None if settings.precision == "fp32" else f"no native {settings.precision}"

deploy.trial.get_runtime = lambda name: Runtime()
"""


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """Puts a stand-in into the processes that are started; `how` says what it does when asked for its version."""

    def put(how="well"):
        (tmp_path / "stand_in.py").write_text(f"HOW = {how!r}\n{STAND_IN}")
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.setattr(child, "CODE", child.CODE.replace("; begin(", "; import stand_in; begin("))

    return put


def spec(device=0):
    variants = {"a": {"onnx": "fp32", "precision": "fp32"}, "b": {"onnx": "int8", "precision": "int8"}}
    return {"runtime": "onnxruntime", "options": {"provider": "cuda", "device": device}, "variants": variants}


def test_a_crash_takes_nothing_else_with_it(stand_in):
    stand_in()
    found = try_runtime("onnxruntime", {"first": spec(), "crashes": spec(1), "refuses": spec(2), "last": spec(3)})
    assert found["version"] == {"value": "1.2"}
    assert found["places"] == {"value": {"CPU": None, "GPU": "no driver"}}
    assert found["targets"] == {
        "first": {"value": {"place": {"device": 0}, "variants": {"a": None, "b": "no native int8"}}},
        "crashes": {
            "error": "the process that tried it was ended by SIGSEGV (driver: out of sorts)",
            "missing": False,
        },
        "refuses": {"error": "no such device", "missing": False},
        "last": {"value": {"place": {"device": 3}, "variants": {"a": None, "b": "no native int8"}}},
    }


def test_a_runtime_that_hangs_is_waited_for_once(stand_in):
    stand_in("hangs")
    found = try_runtime("onnxruntime", {"one": spec(), "two": spec()}, limit_s=0.3)
    late = {"error": "the process that tried it gave no answer within 0.3 s", "missing": False}
    assert found == {"version": late, "targets": {"one": late, "two": late}, "places": late}


@pytest.mark.parametrize(
    ("how", "missing", "error"),
    [
        ("missing", True, "runtime 'x' is not installed; run `pip install x`"),
        (
            "broken",
            False,
            "the process that tried it ended with code 1 (AttributeError: partially initialised)",
        ),
    ],
)
def test_a_runtime_that_is_not_there_or_is_broken_is_asked_nothing_else(stand_in, how, missing, error):
    stand_in(how)
    answer = {"error": error, "missing": missing}
    assert try_runtime("onnxruntime", {"one": spec()}) == {
        "version": answer,
        "targets": {"one": answer},
        "places": answer,
    }


def test_the_processes_use_this_package_wherever_they_are_started(tmp_path, monkeypatch):
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy/__init__.py").write_text("raise ImportError('another one')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [each for each in sys.path if each] + [str(Path(trial.__file__).parents[1])])
    assert "value" in try_runtime("onnxruntime", {})["version"]


def test_the_real_runtimes_run_on_the_cpu(runtime):
    section = {"runtime": runtime, "variants": {"fp32": {"onnx": "fp32", "precision": "fp32"}}}
    found = try_runtime(runtime, {"here": section})
    assert runtime in RUNTIMES
    assert found["targets"]["here"]["value"]["variants"] == {"fp32": None}
    assert [name for name, reason in found["places"]["value"].items() if name.startswith("CPU") and reason is None]
    assert json.loads(json.dumps(found)) == found
