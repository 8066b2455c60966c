import contextlib
import fcntl
import io
import json
from types import SimpleNamespace

import pytest

from deploy.errors import BundleError, DeviceError, EngineError, MeasureError, TargetError
from deploy.install import environment
from deploy.install.server import Server
from deploy.measure.plan import Plan
from deploy.remote import work as module
from deploy.remote.work import at_work
from deploy.target import read_target
from tests.unit.deploy.conftest import target_spec

PLAN = Plan(profile="quick", scenarios=("Offline",), queries=1, seconds=0.0, attempts=1, seed=0)


@pytest.fixture
def working(device):
    """A connection to a device that is held and has an environment."""
    with at_work("t", device.spec, say=device.say) as found:
        yield found


@pytest.fixture
def here(plant, tmp_path):
    """What the stages hand over."""
    (tmp_path / "output").mkdir()
    return {"onnx_root": plant.onnx_root, "device": {"board": "fake"}}


def test_a_fingerprint_and_the_doctors_report_come_back(working, device):
    assert working.fingerprint() == {"board": "fake"}
    assert working.examine() == {"targets": {}}
    asked = "--target t --spec given/spec.json"
    assert device.commands() == [f"fingerprint {asked}", f"doctor {asked} --json"]
    assert json.loads((device.root / "targets/t/work/given/spec.json").read_text()) == device.spec


def test_engines_stay_and_their_manifests_come_back_then_they_are_measured(working, device, here, plant, tmp_path):
    output = tmp_path / "output"
    working.build(output, **here)
    assert sorted(each.relative_to(output).as_posix() for each in output.rglob("*.json")) == [
        "fp32/manifest.json", "skipped.json",
    ]  # fmt: skip
    assert not (output / "fp32/model").exists()
    work = device.root / "targets/t/work"
    assert sorted(each.name for each in (work / "onnx/fp32").iterdir()) == ["bundle.json", "golden.npz", "model.onnx"]
    assert json.loads((work / "given/device.json").read_text()) == {"board": "fake"}

    (tmp_path / "measured").mkdir()
    record = working.measure(tmp_path / "measured", engines=output, data=plant.data, plan=PLAN, **here)
    assert record == {"variants": {}}
    assert [each.name for each in (tmp_path / "measured").iterdir()] == ["record.json"]
    assert (
        "--profile quick --scenarios SingleStream Offline --queries 1 --seconds 0.0 --attempts 1 --seed 0"
        in device.commands()[-1]
    )
    assert (work / "data/index.json").is_file()


def test_engines_that_are_not_those_of_the_manifests_are_not_measured(working, here, plant, tmp_path):
    working.build(tmp_path / "output", **here)
    (tmp_path / "output/fp32/manifest.json").write_text("{}")
    message = (
        r"device 'device': its engines of 't' are not those of .*output \(fp32\); build .* `dvc repro -sf compile@t`"
    )
    with pytest.raises(EngineError, match=message):
        working.measure(tmp_path, engines=tmp_path / "output", data=plant.data, plan=PLAN, **here)


def test_a_measurement_that_comes_to_nothing_says_why(working, device, here, plant, tmp_path):
    working.build(tmp_path / "output", **here)
    (device.bin / "break").write_text("error: no variant could be measured\n")
    with pytest.raises(MeasureError, match="^no variant could be measured$"):
        working.measure(tmp_path, engines=tmp_path / "output", data=plant.data, plan=PLAN, **here)


def test_a_record_whose_variants_are_all_over_the_budget_comes_back(working, device, here, plant, tmp_path):
    working.build(tmp_path / "output", **here)
    (device.bin / "over").write_text("error: target 't': no variant keeps its budget\n")
    (tmp_path / "measured").mkdir()
    record = working.measure(tmp_path / "measured", engines=tmp_path / "output", data=plant.data, plan=PLAN, **here)
    assert record == {"variants": {}}


def test_a_build_that_fails_says_why(working, device, here, tmp_path):
    (device.bin / "break").write_text("building\nerror: out of memory\n")
    with pytest.raises(EngineError, match="^device 'device': out of memory$"):
        working.build(tmp_path / "output", **here)
    assert device.said[-1] == "building"


def test_a_faulty_bundle_is_not_sent(working, here, plant, tmp_path):
    (plant.onnx_root / "fp32/model.onnx").write_bytes(b"x")
    with pytest.raises(BundleError):
        working.build(tmp_path / "output", **here)


def test_an_answer_that_is_no_document_is_told(working, device):
    (device.bin / "python").write_text("#!/bin/sh\necho Welcome\n")
    with pytest.raises(DeviceError, match="its answer makes no sense"):
        working.fingerprint()


def test_what_a_document_says_cannot_command_the_terminal(working, device):
    (device.bin / "python").write_text('#!/bin/sh\nprintf \'{"a": ["\\\\u001b[2J"]}\'\n')
    assert working.fingerprint() == {"a": ["?[2J"]}


def test_what_is_not_needed_is_tidied_and_a_failure_is_only_told(working, device):
    unused = device.root / "packages" / "unused"
    unused.mkdir(parents=True)
    working.session.tidy()
    assert not unused.exists()
    (device.root / "environments").rename(device.root / "elsewhere")
    (device.root / "environments").symlink_to("/proc/self/task")  # nobody can remove these
    working.session.tidy()
    assert device.said[-1].startswith("warning: what is not needed any more was not removed: device 'device': ")


def test_the_device_is_held_to_the_end(working, device):
    with (device.home / ".cache/slad-edge/device.lock").open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


ROOM = {"disk_mb": 2000, "memory_mb": 2000, "clock": 1000.0}


@pytest.fixture
def check(device, monkeypatch):
    monkeypatch.setattr(module.time, "time", lambda: 1000.0)
    install = {"disk_mb": 2000, "memory_mb": 2000}
    target = read_target("t", {**device.spec, "install": install})
    return lambda **changes: module._check_room({**ROOM, **changes}, target, say=device.say)


def test_a_device_with_room_is_fit(check, device):
    check()
    check(memory_mb=None)
    check(clock=1290.0)
    assert device.said == []


def test_all_that_is_short_is_told_at_once(check):
    with pytest.raises(DeviceError) as caught:
        check(disk_mb=1999, memory_mb=1)
    assert str(caught.value) == (
        "device 'device': 1999 MB of disk are free, `targets.t.install.disk_mb` asks for 2000; make room; 1 MB of "
        "memory are free, `targets.t.install.memory_mb` asks for 2000; end other programs there"
    )


@pytest.mark.parametrize(("clock", "words"), [(1000.0 + 7200, "2.0 h ahead of"), (1000.0 - 3600, "1.0 h behind")])
def test_a_clock_that_is_wrong_is_a_warning(check, device, clock, words):
    check(clock=clock)
    assert device.said == [f"warning: the clock of device 'device' is {words} this one's; set it"]


def test_a_device_without_room_is_refused(device):
    spec = device.spec
    spec["install"]["disk_mb"] = 10**12
    message = "`targets.t.install.disk_mb` asks for 1000000000000; make room"
    with pytest.raises(DeviceError, match=message), at_work("t", spec, say=device.say):
        pass


def test_room_that_makes_no_sense_is_told(device):
    device.answer('{"done": null}', '{"done": {"disk_mb": "much"}}')
    with pytest.raises(DeviceError, match="its answer makes no sense"), at_work("t", device.spec, say=device.say):
        pass


def test_wheels_of_this_machine_are_named_by_their_content(device, tmp_path):
    spec = device.spec
    spec["install"] |= {"wheels": str(tmp_path / "wheels"), "packages": ["numpy"], "system_site_packages": True}
    target = read_target("t", spec)
    with pytest.raises(TargetError, match=r"`targets.t.install.wheels` '.*wheels' has no wheels; `pip download` fills"):
        module._wheels(target)
    (tmp_path / "wheels").mkdir()
    (tmp_path / "wheels/a-1-py3-none-any.whl").write_bytes(b"a")
    (tmp_path / "wheels/notes.txt").touch()
    wheels = module._wheels(target)
    wanted = module._environment(target, wheels)
    assert list(wanted["wheels"]) == ["a-1-py3-none-any.whl"]
    assert (wanted["system_site_packages"], wanted["requirements"][-1]) == (True, "numpy")
    assert not any("onnxruntime" in line for line in wanted["requirements"])


def test_a_runtimes_own_packages_are_wanted_where_none_are_named(device):
    target = read_target("t", device.spec)
    assert module._wheels(target) == {}
    assert any(line.startswith("onnxruntime") for line in module._environment(target, {})["requirements"])


def test_a_target_is_checked_before_anything_is_connected(device, monkeypatch):
    monkeypatch.setattr(module, "connected", lambda *_, **__: pytest.fail("connected"))
    with pytest.raises(TargetError), at_work("t", {**device.spec, "runtime": "none"}, say=device.say):
        pass


@pytest.mark.parametrize("ready", [True, False])
def test_wheels_are_sent_only_where_the_environment_must_be_made(ready, monkeypatch, tmp_path):
    (tmp_path / "package").mkdir()
    (tmp_path / "numpy.whl").write_bytes(b"numpy")
    sent = []

    def ask(do, **request):
        answers = io.BytesIO()
        words = json.dumps({"do": do, **request}).encode() + b"\n"
        Server(tmp_path, tmp_path / "package", io.BytesIO(words), answers).serve()
        return json.loads(answers.getvalue())["done"]

    monkeypatch.setattr(environment, "is_ready", lambda *_: ready)
    monkeypatch.setattr(environment, "make_environment", lambda *_: "key")
    session = SimpleNamespace(ask=ask, send=sent.extend)
    monkeypatch.setattr(module, "connected", lambda *_, **__: contextlib.nullcontext(session))
    room = {"disk_mb": 0, "memory_mb": 0}
    spec = target_spec("onnxruntime") | {"host": "shelf", "install": {"wheels": str(tmp_path), **room}}
    with at_work("board", spec, say=lambda _: None) as found:
        assert found.environment == "key"
    assert [blob.source.name for blob in sent] == ([] if ready else ["numpy.whl"])
