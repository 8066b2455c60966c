"""What becomes of a measurement that something happens to; each test starts a process for each engine."""

import hashlib
import json
import os
import shutil
import signal
import threading
import time
from dataclasses import replace

import numpy as np
import pytest

from deploy.data import load_split
from deploy.engine import engine_key, read_manifest, write_manifest
from deploy.errors import ImageError, MeasureError, TargetError
from deploy.files import replaced_folder
from deploy.measure.run import Run
from deploy.measure.step import check_record
from tests.unit.deploy.conftest import listing

pytestmark = pytest.mark.slow


def test_standard_takes_what_its_name_stands_for(measure):
    reasons = measure(profile="standard")["invalid_reasons"]
    assert reasons[0] == "profile 'standard' stands for at least 664 queries and 10 s, asked for 64 and 0.01 s"


def test_busy_device_makes_the_run_invalid_in_words(measure, monkeypatch):
    monkeypatch.setattr(os, "getloadavg", lambda: (999.0, 0, 0))
    assert any("load average 999.0" in reason for reason in measure()["invalid_reasons"])


def test_skipped_variant_is_recorded_as_such(measure, engines, edit):
    shutil.rmtree(engines / "int8")
    edit(engines / "skipped.json", skipped={"int8": "no VNNI"})
    record = measure()
    assert (list(record["variants"]), record["skipped"], record["failed"]) == (["fp32"], {"int8": "no VNNI"}, {})
    check_record(record)


def test_failed_variant_is_recorded_and_the_others_are_measured(measure, engines):
    path = next((engines / "int8").glob("engine.*"))
    path.write_bytes(path.read_bytes()[:-1])
    record = measure()
    assert list(record["variants"]) == ["fp32"]
    assert "bytes" in record["failed"]["int8"]
    assert json.loads((measure.output / "record.json").read_text()) == record
    with pytest.raises(MeasureError, match=r"1 variants were not measured: 'int8': engine .*compile@here"):
        check_record(record)


def test_engine_of_another_model_is_stale(measure, engines, device):
    manifest = replace(read_manifest(engines / "fp32"), onnx_sha256="f" * 64)
    key = engine_key(onnx_sha256="f" * 64, device=device, settings=manifest.settings)
    write_manifest(engines / "fp32", replace(manifest, key=key))
    assert "is stale: built in fp32 from ONNX ffffffffffff" in measure()["failed"]["fp32"]


def test_engine_that_fails_the_golden_check(measure, plant, edit):
    folder = plant.onnx_root / "int8"
    with np.load(folder / "golden.npz") as golden:
        np.savez(folder / "golden.npz", inputs=golden["inputs"], outputs=golden["outputs"] + 10)
    edit(folder / "bundle.json", files=listing(folder, "model.onnx", "golden.npz"))
    assert "on the golden inputs, at most 0.1 allowed" in measure()["failed"]["int8"]


def test_missing_truncated_and_changed_test_image(measure, plant):
    path = load_split(plant.data, "test").items[5].path
    content = path.read_bytes()
    path.write_bytes(content[:60])
    with pytest.raises(ImageError, match=r"0005\.png: cannot be decoded"):
        measure()
    path.unlink()
    with pytest.raises(ImageError, match=r"0005\.png: no such file"):
        measure()
    path.write_bytes(load_split(plant.data, "test").items[6].path.read_bytes())
    with pytest.raises(MeasureError, match=r"0005\.png: sha256 \w{12}, \w{12} in the index"):
        measure()
    assert list(measure.output.iterdir()) == []


@pytest.mark.parametrize("how", ["removed", "replaced"])
def test_engine_that_changes_while_it_is_measured(measure, engines, how):
    path = next((engines / "int8").glob("engine.*"))

    def spoil(line):
        if line.startswith("latency, SingleStream"):
            path.unlink()
            if how == "replaced":
                path.write_bytes(hashlib.sha256(b"other").digest())

    record = measure(on_progress=spoil)
    assert list(record["variants"]) == ["fp32"]
    reason = record["failed"]["int8"]
    assert reason.startswith("it was changed while it was measured: engine ")
    assert ("the file is missing" if how == "removed" else "it has 32 bytes") in reason


def test_process_that_crashes_fails_its_variant_alone(measure, monkeypatch):
    from deploy.measure import crew

    def kill(worker, turns, turn_ns, *, go=crew._turn):
        if worker.name == "int8":
            os.kill(worker.pid, signal.SIGSEGV)
        return go(worker, turns, turn_ns)

    monkeypatch.setattr(crew, "_turn", kill)
    record = measure()
    assert list(record["variants"]) == ["fp32"]
    assert "its process was ended by SIGSEGV" in record["failed"]["int8"]


def test_sigterm_leaves_a_partial_record(measure):
    began = threading.Event()

    def stop():
        began.wait(60)
        time.sleep(1.0)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=stop, daemon=True).start()
    record = measure(seconds=60.0, on_progress=lambda line: line.startswith("latency,") and began.set())
    assert record["partial"] == "the measurement was ended by SIGTERM"
    assert (record["valid"], list(record["variants"])) == (False, ["fp32", "int8"])
    reasons = " ".join(record["invalid_reasons"])
    assert "ended by SIGTERM" in reasons
    assert "fp32, SingleStream: it was not run to its end" in reasons
    assert record["variants"]["fp32"]["queries"] > 0
    assert json.loads((measure.output / "record.json").read_text()) == record
    with pytest.raises(MeasureError, match="ended by SIGTERM; measure again"):
        check_record(record)
    assert measure.journal.exists()


def test_a_process_that_dies_while_others_have_their_turn_fails_its_variant_alone(measure, monkeypatch):
    from deploy.measure import crew

    def kill(worker, turns, turn_ns, *, go=crew._turn):
        found = go(worker, turns, turn_ns)
        if worker.name == "int8" and found:
            os.kill(worker.pid, signal.SIGKILL)
            os.waitid(os.P_PID, worker.pid, os.WEXITED | os.WNOWAIT)
        return found

    monkeypatch.setattr(crew, "_turn", kill)
    record = measure(seconds=0.2)
    assert list(record["variants"]) == ["fp32"]
    assert "its process was ended by SIGKILL" in record["failed"]["int8"]


def test_sigterm_while_the_record_is_made_lets_it_be_written(measure, monkeypatch):

    def record(run, *, made=Run.record):
        os.kill(os.getpid(), signal.SIGTERM)
        return made(run)

    monkeypatch.setattr(Run, "record", record)
    assert measure()["partial"] is None
    assert (measure.output / "record.json").exists()


def test_sigterm_in_a_second_attempt_leaves_the_first(measure, monkeypatch):
    monkeypatch.setattr("deploy.measure.run.noise", lambda during: ["steal"])

    def stop(line):
        if "measuring again" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    record = measure(attempts=2, on_progress=stop)
    assert (record["attempts"], list(record["variants"])) == (1, ["fp32", "int8"])
    assert record["partial"] == "the measurement was ended by SIGTERM"
    assert all(each["scenarios"]["SingleStream"]["valid"] for each in record["variants"].values())


def test_a_counter_of_energy_that_fails_costs_the_energy_alone(measure, monkeypatch):
    class Broken:
        counter = "a counter"

        def start(self):
            pass

        def stop(self):
            msg = "the counter went back"
            raise MeasureError(msg)

    monkeypatch.setattr("deploy.measure.run.find_meter", lambda target: Broken())
    monkeypatch.setattr("deploy.measure.run.SETTLE_S", 0)
    for variant in measure()["variants"].values():
        assert (variant["energy"], variant["energy_reason"]) == (None, "the counter went back")


def test_answers_of_another_preprocessing_are_not_taken(measure, plant, edit):
    def stop(line):
        if "/int8: accuracy" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(MeasureError, match="ended by SIGTERM"):
        measure(on_progress=stop)
    edit(plant.onnx_root / "fp32/bundle.json", preprocess__mean=[0.1, 0.1, 0.1])
    assert measure()["variants"]["fp32"]["resumed"] == 0


def test_sigterm_before_anything_was_timed_keeps_the_answers(measure):
    def stop(line):
        if "/int8: accuracy" in line:
            os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(MeasureError, match="ended by SIGTERM"):
        measure(on_progress=stop)
    assert list(measure.output.iterdir()) == []
    record = measure()
    assert record["variants"]["fp32"]["resumed"] == 12
    assert not measure.journal.exists()


def test_a_disk_that_fills_up_keeps_the_answers_and_the_earlier_record(measure, small_disk):
    good = small_disk / "measured"
    good.mkdir()
    (good / "record.json").write_text("{}")
    (small_disk / "filler").write_bytes(bytes(88 * 1024))

    def replace_it():
        with replaced_folder(good) as folder:
            measure(output=folder)

    with pytest.raises(OSError, match="No space left"):
        replace_it()
    assert (good / "record.json").read_text() == "{}"
    assert [path.name for path in small_disk.iterdir() if path.name != "filler"] == ["measured"]
    assert measure.journal.exists()


def test_noisy_run_is_made_again_and_marked(measure, monkeypatch):
    found = iter([["other programs used 1.5 of 2 cores"], []])
    monkeypatch.setattr("deploy.measure.run.noise", lambda during: next(found))
    record = measure(attempts=3)
    assert (record["attempts"], record["noise"]) == (2, [])
    monkeypatch.setattr("deploy.measure.run.noise", lambda during: ["steal"])
    record = measure(attempts=2)
    assert (record["attempts"], record["noise"]) == (2, ["steal"])


def test_cores_that_are_not_there(measure, spec_of, runtime):
    with pytest.raises(MeasureError, match=r"`cpus` \[4096\]: this process may run on cores"):
        measure(spec=spec_of(runtime) | {"cpus": [4096]})
    with pytest.raises(TargetError, match=r"`targets.here.cpus` \[0\] with `targets.here.threads` 0: more threads"):
        measure(spec=spec_of(runtime) | {"cpus": [0], "threads": 0})
