"""Releases on a device over SSH: made, tested, switched to, kept, taken back; and several devices at once."""

import json
import subprocess

import pytest

from tests.ssh.desk import Desk, answer, device_at, idle, leftovers, serving

pytestmark = pytest.mark.slow


def test_a_first_release_an_upgrade_and_the_way_back(bare_desk, bare):
    desk, lines = bare_desk, []
    first = desk.deployed("bare")
    assert [line.split()[0] for line in first.lines[:2]] == ["sending", "making"]
    assert "release 0001-" in first.output
    assert "engine built" in first.output
    lines.append(answer(bare, "bare"))
    assert leftovers(bare) == []

    again = desk.deployed("bare")
    assert "serves already" in again.output
    assert "relative error" in again.output  # it was tested
    assert not [line for line in again.lines if line.startswith(("sending", "making", "pip installs", "switching"))]
    assert answer(bare, "bare") == lines[0]

    desk.target("bare", keep=2)
    for number in (1, 2):
        desk.model(number)
        done = desk.deployed("bare")
        assert not [line for line in done.lines if line.startswith(("sending the device package", "making"))]
        lines.append(answer(bare, "bare"))
        assert leftovers(bare) == []
    assert len(set(lines)) == 3
    assert "; removed 0001-" in done.output
    state = desk.releases("bare")
    assert [row["release"][:4] for row in state["releases"]] == ["0002", "0003"]

    back = desk.slad("rollback", "--target", "bare")
    assert back.code == 0
    assert f"release {state['releases'][0]['release']} serves instead of {state['current']}" in back.output
    assert answer(bare, "bare") == lines[1]

    beyond = desk.slad("rollback", "--target", "bare")
    assert beyond.code == 10
    assert "target 'bare': no earlier release is kept; there are 0002-" in beyond.error
    assert answer(bare, "bare") == lines[1]

    ahead = desk.slad("rollback", "--target", "bare", "--to", "3")
    assert ahead.code == 0
    assert answer(bare, "bare") == lines[2]
    gone = desk.slad("rollback", "--target", "bare", "--to", "0001")
    assert gone.code == 10
    assert "no release '0001' is kept" in gone.error
    assert answer(bare, "bare") == lines[2]

    desk.slad("rollback")
    text = desk.slad("status").output.splitlines()
    assert text[0] == "bare on bare"
    assert [line.split()[:2] for line in text[1:]] == [
        ["kept", state["releases"][1]["release"]],
        ["current", state["releases"][0]["release"]],
    ]


def test_a_release_that_was_rolled_back_from_is_taken_up_again(desk, shelf):
    desk.model(1)
    desk.deployed("shelf")
    newest, line = serving(shelf, "shelf"), answer(shelf, "shelf")
    assert desk.slad("rollback", "--target", "shelf").code == 0
    assert answer(shelf, "shelf") != line
    done = desk.deployed("shelf")
    assert f"release {newest} (fp32) serves now" in done.output
    assert answer(shelf, "shelf") == line
    assert serving(shelf, "shelf") == newest


def test_the_engine_that_was_measured_is_the_one_that_is_deployed(desk, shelf, data):
    desk.model(2)
    here = ("--params", "params.yaml", "--target", "shelf")
    device, onnx = ("--device", "device.json"), ("--onnx", "artifacts/onnx")
    folders = ("--engines", "compiled", "--data", str(data), "--output", "measured", "--record", "record.json")
    for command in (
        ("stages.probe", *here, "--output", "device.json"),
        ("stages.compile", *here, *onnx, *device, "--output", "compiled"),
        ("stages.measure", *here, *onnx, *device, "--journal", "answers", *folders),
    ):
        done = desk.slad(*command)
        assert done.code == 0, done.lines
    measured = json.loads((desk.folder / "record.json").read_text())["variants"]["fp32"]
    assert not list((desk.folder / "compiled").rglob("engine.*"))  # engines stay where they were built
    done = desk.deployed("shelf")
    assert "engine compiled before" in done.output
    (row,) = [row for row in desk.releases("shelf")["releases"] if row["release"] == serving(shelf, "shelf")]
    assert row["engine_sha256"] == measured["engine_sha256"]
    assert row["onnx_sha256"] == measured["onnx_sha256"]
    answer(shelf, "shelf")
    assert leftovers(shelf) == []


def test_an_engine_that_is_not_the_measured_one_is_refused_by_measure(desk, shelf, data):
    here = ("--params", "params.yaml", "--target", "shelf")
    device, onnx = ("--device", "device.json"), ("--onnx", "artifacts/onnx")
    assert desk.slad("stages.probe", *here, "--output", "device.json").code == 0
    assert desk.slad("stages.compile", *here, *onnx, *device, "--output", "compiled").code == 0
    desk.model(1)
    assert desk.slad("stages.compile", *here, *onnx, *device, "--output", "others").code == 0
    folders = ("--engines", "compiled", "--data", str(data), "--output", "refused", "--record", "refused.json")
    done = desk.slad("stages.measure", *here, *onnx, *device, "--journal", "answers", *folders)
    assert done.code == 7
    assert "are not those of compiled (fp32); build them again with `dvc repro -sf compile@shelf`" in done.error
    assert not (desk.folder / "refused").exists()


def test_the_doctor_examines_the_device(desk, shelf):
    done = desk.slad("doctor", "--target", "shelf", "--json")
    assert done.code == 0, done.lines
    (report,) = json.loads(done.output)["devices"].values()
    assert "onnxruntime" in json.dumps(report)


@pytest.fixture
def pair(tmp_path, models, shelf):
    """A project with a device that works and one that is switched off."""
    with device_at(tmp_path / "off", "off") as off:
        off.stop()
        yield Desk(tmp_path / "project", models, shelf, off)


def test_a_device_that_fails_keeps_no_other_from_its_release(pair, desk, shelf):
    pair.model(1)
    done = pair.slad("deploy", "--variant", "fp32")
    assert done.code == 10
    assert done.error.startswith("error: 1 of 2 targets failed: off: device 'off': it does not answer (ssh: ")
    assert any(line.startswith("off: failed: device 'off': it does not answer") for line in done.lines)
    assert done.output.startswith("shelf: release ")
    answer(shelf, "shelf")
    asked = pair.slad("status")
    assert asked.code == 10
    assert "shelf on shelf" in asked.output


def test_targets_on_one_device_are_served_one_after_the_other(desk, shelf):
    desk.target("other", host="shelf")
    try:
        done = desk.slad("deploy", "--variant", "fp32")
    finally:
        desk.remove("other")
    assert done.code == 0, done.lines
    assert [line.partition(":")[0] for line in done.lines] == sorted(
        (line.partition(":")[0] for line in done.lines), key=["shelf", "other"].index
    )
    assert not any("waiting" in line for line in done.lines)
    assert answer(shelf, "other") == answer(shelf, "shelf")


def test_a_second_deployment_waits_for_the_first(desk, shelf):
    holder = [*shelf.command, shelf.name, "flock .cache/slad-edge/device.lock sh -c 'echo held; read end'"]
    with subprocess.Popen(holder, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "held\n"
        (shelf.home / ".cache/slad-edge/device.lock").write_text("4711\n")
        seen = []

        def on_line(line):
            if line.startswith("waiting"):
                seen.append(line)
                process.stdin.close()

        done = desk.deployed("shelf", on_line=on_line)
    assert seen == ["waiting: process 4711 works on the device"]
    assert "serves already" in done.output


def test_two_deployments_at_once_both_succeed(desk, shelf):
    desk.model(1)
    both = [desk.start("deploy", "--target", "shelf", "--variant", "fp32") for _ in range(2)]
    said = [process.communicate()[1] for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert leftovers(shelf) == []
    answer(shelf, "shelf")
    idle(shelf)
