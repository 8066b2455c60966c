"""A target on an emulated 64-bit Arm device without a network, from doctor to rollback: `make test-arm64`."""

import csv
import json
import shutil

import numpy as np
import pytest

from tests.device import arm64
from tests.device.project import Project

pytestmark = pytest.mark.device

TARGET, HERE = "arm-cpu", "cpu-onnxruntime"
VARIANTS = ("fp32", "int8")
# What another CPU's kernels may change: INT8 is rounded, and a value that lies between two steps falls either way.
CHANGED_AT_MOST = {"fp32": 0, "int8": 4}
OF_ANOTHER_MACHINE = "processor\t: 0\nmodel name\t: another machine\nflags\t\t: avx2\n\n"


@pytest.fixture(scope="module")
def overrides(arm64_wheels):
    return (
        f"+target@targets.{TARGET}={TARGET}",
        f"targets.{TARGET}.host={arm64.NAME}",
        f"+targets.{TARGET}.install.wheels={arm64_wheels}",
        *("measure.profile=quick", "measure.queries=64", "measure.seconds=0.01"),
    )


@pytest.fixture(scope="module")
def project(arm64_device, overrides, tmp_path_factory):
    """A project whose target has its environment on the device; it has no model yet."""
    made = Project(tmp_path_factory.mktemp("project"), arm64_device, *overrides)
    good(made.stage("probe", TARGET))
    return made


@pytest.fixture(scope="module")
def digits(project):
    """The same project with the digits' student, measured on the device and on this machine."""
    project.take_digits()
    for target in (HERE, TARGET):
        for stage in ("probe", "compile", "measure"):
            good(project.stage(stage, target))
    return project


@pytest.fixture(scope="module")
def served(digits, arm64_device):
    """The folder of the target on the device, where an INT8 release serves."""
    said = good(digits.slad("deploy", "--target", TARGET, "--variant", "int8"))
    assert f"{TARGET}: release 0001-" in said.stdout
    assert "(int8) serves now; " in said.stdout
    assert "engine compiled before" in said.stdout
    return arm64_device.home / "slad-edge/targets" / TARGET


@pytest.fixture(scope="module")
def image(digits, arm64_device):
    """The first test image: its path here, and that of its copy on the device."""
    with (digits.folder / "artifacts/data/test.csv").open() as stream:
        path = digits.folder / "artifacts/data/images" / next(csv.DictReader(stream))["path"]
    shutil.copyfile(path, arm64_device.home / "image.png")
    return str(path), "image.png"


def good(done):
    assert done.returncode == 0, done.stderr
    return done


def error(done) -> str:
    """Return the one line that a command ended with."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()[-1].removeprefix("error: ")


def run_there(device, *arguments: str):
    return device.run(f"slad-edge/targets/{TARGET}/current/run {' '.join(arguments)}")


def answers(words: str) -> tuple[str, float]:
    (found,) = (json.loads(line) for line in words.splitlines())
    return found["label"], found["probability"]


def test_doctor_says_that_the_target_will_work_on_an_arm_cpu(project):
    report = json.loads(good(project.slad("doctor", "--target", TARGET, "--json")).stdout)["devices"][TARGET]
    assert report["targets"][TARGET]["verdict"] == "will work"
    assert report["targets"][TARGET]["variants"] == dict.fromkeys(VARIANTS)
    assert report["facts"]["system"]["architecture"] == "aarch64"
    assert report["facts"]["cpu"]["model"] == "Arm Cortex-A76"


def test_the_fingerprint_is_of_the_arm_cpu_and_has_none_of_the_host(project):
    found = project.json(f"artifacts/device/{TARGET}.json")
    assert (found["architecture"], found["python"], found["bf16"]) == ("aarch64", arm64.PYTHON, False)
    assert found["cpu"]["model"] == "Arm Cortex-A76"
    assert found["cpu"]["features"] == ["asimd", "asimddp", "asimdhp", "fphp"]


def test_what_the_device_has_is_not_sent_again(project):
    again = good(project.stage("probe", TARGET))
    assert "sending" not in again.stderr
    assert "environment" not in again.stderr


def test_an_architecture_that_the_target_does_not_name_is_refused(arm64_device, overrides, tmp_path):
    wrong = f"targets.{TARGET}.install.architecture=x86_64"
    done = Project(tmp_path, arm64_device, *overrides, wrong).stage("probe", TARGET)
    assert done.returncode == 10
    assert done.stderr.count("\n") == 1
    assert error(done).startswith(f"device '{arm64.NAME}': it is aarch64, the target says x86_64; is `host` the right")


def test_a_runtime_that_crashes_when_it_is_imported_is_told_in_one_line(project, arm64_device):
    cpuinfo = arm64_device.folder / "cpuinfo"
    kept = cpuinfo.read_text()
    cpuinfo.write_text(OF_ANOTHER_MACHINE)  # ONNX Runtime does not survive this
    try:
        probed, examined = project.stage("probe", TARGET), project.slad("doctor", "--target", TARGET)
    finally:
        cpuinfo.write_text(kept)
    assert probed.returncode == 10
    assert error(probed).startswith(f"device '{arm64.NAME}': what ran there was ended by SIGSEGV (")
    assert examined.returncode == 7
    assert error(examined).startswith(f"target '{TARGET}' will not work")
    assert "the process that tried it was ended by SIGSEGV (" in error(examined)


def test_engines_stay_on_the_device_and_their_manifests_come_back(digits, arm64_device):
    compiled = digits.folder / "artifacts/compiled" / TARGET
    found = {file.relative_to(compiled).as_posix() for file in compiled.rglob("*") if file.is_file()}
    assert found == {"skipped.json", *(f"{variant}/manifest.json" for variant in VARIANTS)}
    for variant in VARIANTS:
        engine = digits.json(f"artifacts/compiled/{TARGET}/{variant}/manifest.json")["engine"]["file"]
        assert (arm64_device.home / "slad-edge/targets" / TARGET / "work/engines" / variant / engine).is_file()


@pytest.mark.parametrize("variant", VARIANTS)
def test_an_engine_answers_on_arm_as_on_x86(variant, digits):
    tolerance = digits.json(f"artifacts/onnx/{variant}/bundle.json")["golden"]["tolerance"][variant]
    logits = []
    for target in (TARGET, HERE):
        with np.load(digits.folder / "artifacts/measured" / target / "logits.npz") as archive:
            logits.append(archive[variant])
    there, ours = logits
    assert there.shape == (450, 10)
    assert np.abs(there - ours).max() <= tolerance * np.abs(ours).max()
    changed = int((there.argmax(1) != ours.argmax(1)).sum())
    assert changed <= CHANGED_AT_MOST[variant]
    counts = [digits.json(f"reports/{target}.json")["variants"][variant]["accuracy"] for target in (TARGET, HERE)]
    assert abs(counts[0]["correct"] - counts[1]["correct"]) <= changed


def test_the_record_of_an_emulated_device_does_not_count_as_a_measurement_of_speed(digits):
    record = digits.json(f"reports/{TARGET}.json")
    assert not record["failed"]
    assert (record["valid"], record["device"]["architecture"]) == (False, "aarch64")
    assert "profile 'quick' is for development" in record["invalid_reasons"]


def test_a_fingerprint_of_this_machine_is_refused_there(digits):
    device = digits.folder / f"artifacts/device/{TARGET}.json"
    kept = device.read_text()
    device.write_text((digits.folder / f"artifacts/device/{HERE}.json").read_text())
    try:
        done = digits.stage("compile", TARGET)
    finally:
        device.write_text(kept)
    assert done.returncode == 7
    assert "architecture 'aarch64' here, 'x86_64' in the fingerprint on file" in error(done)


def test_a_release_answers_as_this_machine_does(served, digits, arm64_device, image):
    there = answers(good(run_there(arm64_device, image[1], "--json")).stdout)
    asked = ("--bundle", "artifacts/onnx/int8", "--engine", f"artifacts/compiled/{HERE}/int8", image[0], "--json")
    ours = answers(good(digits.deploy("run", *asked)).stdout)
    assert there[0] == ours[0]
    assert there[1] == pytest.approx(ours[1], abs=0.02)


def test_an_engine_of_another_cpu_is_refused_there(served, digits, arm64_device, image):
    shutil.copytree(digits.folder / "artifacts/compiled" / HERE / "int8", arm64_device.home / "foreign")
    done = run_there(arm64_device, image[1], "--engine", "foreign")
    assert done.returncode == 7
    assert "architecture 'aarch64' here, 'x86_64' in the manifest" in error(done)


def test_another_variant_is_deployed_and_rolled_back(served, digits, arm64_device, image):
    first = (served / "current").readlink().name
    said = good(digits.slad("deploy", "--target", TARGET, "--variant", "fp32"))
    second = (served / "current").readlink().name
    assert f"{TARGET}: release {second} (fp32) serves now; nothing to send, engine compiled before" in said.stdout
    assert second.startswith("0002-")
    status = json.loads(good(digits.slad("status", "--json")).stdout)[TARGET]
    assert (status["current"], [each["variant"] for each in status["releases"]]) == (second, ["int8", "fp32"])
    fp32 = answers(good(run_there(arm64_device, image[1], "--json")).stdout)
    said = good(digits.slad("rollback", "--target", TARGET))
    assert f"{TARGET}: release {first} serves instead of {second}; int8 on {TARGET}: relative error" in said.stdout
    int8 = answers(good(run_there(arm64_device, image[1], "--json")).stdout)
    assert int8[0] == fp32[0]
    text = good(digits.slad("status", "--target", TARGET)).stdout.splitlines()
    assert text[0] == f"{TARGET} on {arm64.NAME}"
    assert [line.split()[:2] for line in text[1:]] == [["kept", second], ["current", first]]
