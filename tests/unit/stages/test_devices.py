import json
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import yaml

from deploy.bundle import load_bundle
from deploy.errors import DeviceError, EngineError, RuntimeMissingError, TargetError
from pipeline.base.errors import ParamsError
from pipeline.base.sections import TargetParams
from stages import devices as module
from stages.devices import (
    Choice,
    check_devices,
    choose,
    deployed_line,
    examine_all,
    raise_failed,
    remote_sections,
    rolled_back_line,
    side_by_side,
    status_text,
)
from tests.fake_device import SPEC, FakeDevice, script
from tests.interrupts import heard
from tests.sshd import alive
from tests.unit.deploy.conftest import save_bundle

HERE, THERE = {**SPEC, "host": None}, {**SPEC, "host": "device"}


@pytest.fixture
def project(tmp_path):
    """Writes params.yaml with some targets; returns what functions take."""

    def write(**targets):
        (tmp_path / "params.yaml").write_text(yaml.safe_dump({"targets": targets}))
        (tmp_path / "configs/target").mkdir(parents=True, exist_ok=True)
        return {"params": tmp_path / "params.yaml", "configs": tmp_path / "configs"}

    return write


@pytest.fixture
def device(tmp_path, monkeypatch):
    (tmp_path / "device").mkdir()
    return FakeDevice(tmp_path / "device", monkeypatch)


def test_all_targets_with_a_host_are_meant_where_none_is_named(project):
    paths = project(a=HERE, b=THERE, c=THERE)
    assert list(remote_sections([], **paths)) == ["b", "c"]
    assert list(remote_sections(["c"], **paths)) == ["c"]


@pytest.mark.parametrize(
    ("names", "targets", "error", "message"),
    [
        (["a"], {"a": HERE, "b": THERE}, TargetError, "target 'a' has no `host`; give it one: `slad sync targets.a"),
        (["b", "a"], {"a": HERE, "b": THERE}, TargetError, "target 'a' has no `host`"),
        ([], {"a": HERE}, TargetError, "no target of '.*params.yaml' has a `host`; name one in its file of '.*target'"),
        (["z"], {"a": HERE}, ParamsError, "'z'"),
        ([], {"b": {**THERE, "host": "-oProxyCommand=x"}}, TargetError, "`targets.b.host` should be a name that ssh"),
    ],
)  # fmt: skip
def test_targets_that_cannot_be_reached_are_refused(project, names, targets, error, message):
    with pytest.raises(error, match=message):
        remote_sections(names, **project(**targets))


def test_machines_work_at_once_and_one_machine_does_one_thing_at_a_time(capsys):
    sections = {name: {"host": host} for name, host in (("a", "one"), ("b", "two"), ("c", "one"))}
    both, busy, order = threading.Barrier(2), {"one": 0, "two": 0}, []

    def work(name, section, say):
        busy[section["host"]] += 1
        assert busy[section["host"]] == 1
        order.append(name)
        if name != "c":
            both.wait(60)  # passes only where both machines are at work
        say("done")
        busy[section["host"]] -= 1
        return name.upper()

    assert side_by_side(sections, work) == ({"a": "A", "b": "B", "c": "C"}, {})
    assert order.index("c") == 2
    assert sorted(capsys.readouterr().err.splitlines()) == ["a: done", "b: done", "c: done"]


def test_what_fails_is_told_and_keeps_no_other_from_its_work(capsys):
    sections = {name: {"host": "one"} for name in "cab"}

    def work(name, section, say):
        if name != "a":
            raise DeviceError(f"no {name}")
        return 1

    done, failed = side_by_side(sections, work)
    assert (done, list(failed)) == ({"a": 1}, ["c", "b"])
    assert capsys.readouterr().err.splitlines() == ["c: failed: no c", "b: failed: no b"]


def test_one_target_speaks_without_its_name_and_its_error_is_told_once(capsys):
    def work(name, section, say):
        say("line")
        raise DeviceError("no")

    failed = side_by_side({"a": {"host": "one"}}, work)[1]
    assert capsys.readouterr().err == "line\n"
    with pytest.raises(DeviceError, match="^no$"):
        raise_failed(failed, total=1)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_error_of_our_own_is_not_hidden():
    def work(name, section, say):
        raise ZeroDivisionError

    with pytest.raises(RuntimeError, match="a: a fault of this program"):
        side_by_side({"a": {"host": "one"}}, work)


@pytest.mark.parametrize(
    ("failed", "kind", "message"),
    [
        ({"b": EngineError("no b")}, EngineError, "^1 of 3 targets failed: b: no b$"),
        ({"b": EngineError("x"), "c": DeviceError("y")}, EngineError, "^2 of 3 targets failed: b, c; what .* above$"),
    ],
)
def test_several_errors_are_one(failed, kind, message):
    raise_failed({}, total=3)
    with pytest.raises(kind, match=message):
        raise_failed(failed, total=3)


@pytest.mark.slow
def test_ctrl_c_ends_all_machines_at_once(tmp_path):
    """As a terminal does it: the signal goes to the whole group."""
    text = f'#!/bin/sh\n[ "$1" = -G ] && exit\necho $$ >> {tmp_path}/ids\nexec cat\n'
    code = (
        "from deploy.remote.releases import status; from stages.devices import side_by_side\n"
        "section = {'runtime': 'onnxruntime', 'variants': {'v': {'onnx': 'v', 'precision': 'fp32'}}}\n"
        "side_by_side({n: {**section, 'host': n} for n in 'ab'}, lambda n, s, say: status(n, s, say=say))\n"
    )
    environment = {**os.environ, "SLAD_SSH": str(script(tmp_path / "ssh", text))}
    child = subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        start_new_session=True,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heard,  # noqa: PLW1509 - it calls nothing that another thread could hold
    )
    while not (tmp_path / "ids").exists() or len((tmp_path / "ids").read_text().split()) < 2:
        assert child.poll() is None
        time.sleep(0.02)
    ids = [int(each) for each in (tmp_path / "ids").read_text().split()]
    os.killpg(child.pid, signal.SIGINT)
    try:
        assert "KeyboardInterrupt" in child.communicate(timeout=60)[1]
    finally:
        child.kill()  # with it go the ends of their pipes, and so they
        child.wait()
    while any(map(alive, ids)):
        time.sleep(0.02)


def params(**specs) -> dict[str, TargetParams]:
    return {name: TargetParams(**spec) for name, spec in specs.items()}


def test_devices_of_both_kinds_are_tried_before_a_long_training(device, monkeypatch):
    tried = []
    monkeypatch.setattr(module, "unfit", lambda specs: tried.extend(specs) or {})
    check_devices(params(a=HERE, b={**device.spec}))
    assert (tried, device.commands()) == (["a"], ["fingerprint --target b --spec given/spec.json"])


@pytest.mark.parametrize(
    ("found", "remote", "kind", "message"),
    [
        ({"a": {"error": "no OpenVINO", "missing": True}}, False, RuntimeMissingError,
         "^nothing was run: target 'a': no OpenVINO; or run without the target, `slad doctor` says more$"),
        ({"a": {"error": "no GPU", "missing": False}}, False, EngineError, "target 'a': no GPU; or"),
        ({}, True, DeviceError, "nothing was run: target 'b': device 'device': Python cannot be started there"),
        ({"a": {"error": "no OpenVINO", "missing": True}}, True, EngineError, "target 'a': no .*; target 'b': device"),
    ],
)  # fmt: skip
def test_devices_that_are_not_fit_are_all_told(device, monkeypatch, found, remote, kind, message):
    monkeypatch.setattr(module, "unfit", lambda specs: found)
    if remote:
        device.speak("#!/bin/sh\nexit 127\n")
    with pytest.raises(kind, match=message) as caught:
        check_devices(params(a=HERE, **({"b": device.spec} if remote else {})))
    assert type(caught.value) is kind


def test_the_doctor_examines_this_machine_and_the_others(device, project, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "examine", lambda targets, **_: asked.append(list(targets)) or "report")
    paths = project(a=HERE, b=device.spec)
    assert examine_all([], **paths) == {"here": "report", "devices": {"b": {"targets": {}}}, "failed": {}}
    assert asked == [["a"]]
    assert examine_all(["b"], **paths)["here"] is None
    assert examine_all(["a"], **paths)["devices"] == {}
    device.speak("#!/bin/sh\nexit 127\n")
    assert list(examine_all([], **paths)["failed"]) == ["b"]


@pytest.fixture
def verdict(tmp_path):
    """Reports that chose fp32 of the bundle at hand; changes are of the summary and of the record's variant."""
    save_bundle(tmp_path / "onnx/fp32", "fp32")
    reports = tmp_path / "reports"
    reports.mkdir()

    def write(*, target="t", valid=True, section=SPEC, runtime=SPEC["runtime"], chosen="fp32", wish=None, **changes):
        measured = {
            "onnx_sha256": load_bundle(tmp_path / "onnx/fp32").onnx_sha256, "engine_sha256": "e" * 64,
            "precision": "fp32", "over_budget": [], "latency_ms": {"p50": 1.25, "p90": 1.5}, "engine_bytes": 7,
        }  # fmt: skip
        record = {"schema": 2, "runtime": runtime, "variants": {"fp32": measured | changes}}
        (reports / "t.json").write_text(json.dumps(record))
        shown = {"fp32": {"latency_p50_ms": 1.25, "latency_p90_ms": 1.5, "size_bytes": 7}}
        found = {"valid": valid, "chosen": chosen, "words": "Nothing is decided.", "variants": shown}
        (reports / "summary.json").write_text(json.dumps({"schema": 1, "targets": {target: found}}))
        return choose("t", section, wish=wish, reports=reports, onnx=tmp_path / "onnx")

    write.folder = tmp_path
    return write


def test_the_variant_that_the_report_chose_is_taken_as_it_was_measured(verdict):
    assert verdict() == Choice("fp32", "e" * 64)
    assert verdict(wish="int8") == Choice("int8", None)


def test_a_target_without_a_verdict_is_refused(verdict):
    words = "target 't' has no verdict .*; run `slad repro`, or name a variant with --variant"
    with pytest.raises(TargetError, match=words):
        verdict(target="other")
    verdict()
    for name in ("reports/t.json", "reports/summary.json"):
        (verdict.folder / name).unlink()
        with pytest.raises(TargetError, match=words):
            choose("t", SPEC, wish=None, reports=verdict.folder / "reports", onnx=verdict.folder / "onnx")


@pytest.mark.parametrize("how", [{"valid": False}, {"over_budget": ["p90 2 ms, at most 1"]}], ids=["invalid", "budget"])
def test_a_verdict_that_decides_nothing_is_refused(verdict, how):
    with pytest.raises(TargetError, match="the report decides for no variant: Nothing is decided. Name one with --var"):
        verdict(**how)


@pytest.mark.parametrize(
    "how",
    [
        {"onnx_sha256": "0"},
        {"latency_ms": {"p50": 1.25, "p90": 1.6}},
        {"precision": "bf16"},
        {"runtime": "tensorrt"},
        {"chosen": "int8"},
        {"section": {**SPEC, "variants": {}}},
    ],
    ids=["model", "newer record", "precision", "runtime", "record", "section"],
)
def test_what_has_changed_since_it_was_chosen_is_refused(verdict, how):
    with pytest.raises(
        TargetError, match="it, its model or its record has changed since '(fp32|int8)' was chosen; run"
    ):
        verdict(**how)


def test_what_became_of_a_deployment_is_one_line():
    result = {
        "release": "0002-a",
        "new": True,
        "sent": 1_234_567,
        "engine": "built",
        "line": "ok",
        "removed": ["0001-b"],
    }
    assert deployed_line("int8", result) == (
        "release 0002-a (int8) serves now; 1.23 MB sent, engine built, ok; removed 0001-b"
    )
    assert deployed_line("int8", {**result, "removed": []}).endswith("engine built, ok")
    assert deployed_line("int8", {**result, "new": False, "line": "ok\x1b[2J"}) == (
        "release 0002-a (int8) serves already; ok?[2J"
    )
    assert (
        rolled_back_line({"release": "0001", "before": None, "line": "ok"}) == "release 0001 serves instead of none; ok"
    )


ROW = {
    "release": "0001-aaaaaaaaaaaa", "variant": "int8", "model": "m", "engine_sha256": "e" * 64, "runtime": "openvino 1",
    "device_clock": "2026-11-22T10:11:12+00:00",
}  # fmt: skip
SECTIONS = {"a": {"host": "one"}, "b": {"host": "two"}}


def test_releases_are_shown_newest_first_and_broken_ones_too():
    broken = {"release": "0002-bbbbbbbbbbbb", "error": "release.json: no such file; remove the folder"}
    found = {
        "a": {"current": ROW["release"], "releases": [ROW, broken, {**ROW, "release": "0010-c", "variant": "fp32_x"}]},
        "b": {"current": None, "releases": []},
    }
    assert status_text(found, SECTIONS) == (
        "a on one\n"
        "  kept     0010-c             fp32_x  m  engine eeeeeeeeeeee  openvino 1  "
        "2026-11-22 10:11 UTC by the device's clock\n"
        "  kept     0002-bbbbbbbbbbbb  broken: release.json: no such file; remove the folder\n"
        "  current  0001-aaaaaaaaaaaa  int8    m  engine eeeeeeeeeeee  openvino 1  "
        "2026-11-22 10:11 UTC by the device's clock\n"
        "\n"
        "b on two\n"
        "  no release yet\n"
    )
    assert status_text({"b": {"current": broken["release"], "releases": [broken]}}, SECTIONS) == (
        f"b on two\n  current  {broken['release']}  broken: {broken['error']}\n"
    )
    assert status_text({}, SECTIONS) == ""


def test_a_status_that_makes_no_sense_is_told():
    with pytest.raises(DeviceError, match="device 'one': its answer makes no sense"):
        status_text({"a": {"current": None, "releases": [{"release": "x"}]}}, SECTIONS)
