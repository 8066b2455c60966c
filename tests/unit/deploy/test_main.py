import json
import subprocess
import sys

import pytest

from deploy import __main__ as module
from deploy.__main__ import main
from deploy.errors import BundleError
from deploy.runtimes import RUNTIMES


@pytest.fixture
def files(plant, device, runtime, spec_of, tmp_path):
    (tmp_path / "spec.json").write_text(json.dumps(spec_of(runtime)))
    (tmp_path / "device.json").write_text(json.dumps(device))
    names = {"--spec": tmp_path / "spec.json", "--onnx": plant.onnx_root, "--device": tmp_path / "device.json"}
    return ["--target", "here", *(str(part) for pair in names.items() for part in pair)]


@pytest.fixture
def spec(files, tmp_path):
    return ["--target", "here", "--spec", str(tmp_path / "spec.json")]


def test_help_lists_every_command(capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    assert all(name in text for name in ("fingerprint", "build", "measure", "run", "selftest"))


@pytest.mark.parametrize("arguments", [[], ["run"], ["nonsense"]])
def test_wrong_usage_exits_with_2(arguments, capsys):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage:" in capsys.readouterr().err


def test_the_whole_way(plant, files, spec, tmp_path, capsys):
    assert main(["fingerprint", *spec, "--output", str(tmp_path / "device.json")]) == 0
    assert main(["build", *files, "--output", str(tmp_path / "compiled")]) == 0
    assert "here/int8: built in" in capsys.readouterr().err
    data = ["--data", str(plant.data), "--engines", str(tmp_path / "compiled")]
    quick = ["--queries", "16", "--seconds", "0", "--profile", "quick"]
    assert main(["measure", *files, *data, *quick, "--output", str(tmp_path / "measured")]) == 0
    assert "not valid: profile 'quick'" in capsys.readouterr().err
    assert json.loads((tmp_path / "measured" / "record.json").read_text())["failed"] == {}
    engine = ["--bundle", str(plant.onnx_root / "fp32"), "--engine", str(tmp_path / "compiled" / "fp32")]
    images = sorted(str(path) for path in (plant.data / "images").rglob("*.png"))[:2]
    assert main(["run", *engine, *images]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[0] for line in lines] == images
    assert all(line[1] in ("circle", "cross", "line", "square") and 0.25 <= float(line[2]) <= 1 for line in lines)


def test_fingerprint_prints_json(capsys, spec, device):
    assert main(["fingerprint", *spec]) == 0
    assert json.loads(capsys.readouterr().out) == device


def test_expected_error_is_one_line_with_its_code(capsys, spec, tmp_path):
    (tmp_path / "spec.json").write_text('{"runtime": "tflite", "variants": {}}')
    assert main(["fingerprint", *spec]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err == f"error: `targets.here.runtime` 'tflite' is unknown; known ones: {', '.join(RUNTIMES)}\n"


def test_errors_name_the_commands_of_a_device(plant, engines, device, runtime, spec_of, tmp_path, capsys):
    next((engines / "fp32").glob("engine.*")).write_bytes(b"cut")
    arguments = ["--bundle", str(plant.onnx_root / "fp32"), "--engine", str(engines / "fp32"), "x.png"]
    assert main(["run", *arguments]) == 7
    assert "; build it again with `python -m deploy build`" in capsys.readouterr().err
    words = "run `dvc repro probe@here` on the device, see `slad doctor`"
    assert (
        module._on_a_device(words) == "run `python -m deploy fingerprint` on the device, see `python -m deploy doctor`"
    )
    words = "x.png: no such file; restore it, or run `dvc repro prepare` to index the folder again"
    assert module._on_a_device(words) == "x.png: no such file; restore it"


def test_debug_shows_the_error_itself(tmp_path):
    arguments = ["run", "--debug", "--bundle", str(tmp_path), "--engine", str(tmp_path), "x.png"]
    with pytest.raises(BundleError):
        main(arguments)
    assert main([argument for argument in arguments if argument != "--debug"]) == 6


def test_failed_build_leaves_the_old_folder(files, plant, tmp_path, capsys):
    (tmp_path / "compiled").mkdir()
    (tmp_path / "compiled" / "old").touch()
    (plant.onnx_root / "int8" / "model.onnx").unlink()
    assert main(["build", *files, "--output", str(tmp_path / "compiled")]) == 7
    assert [entry.name for entry in (tmp_path / "compiled").iterdir()] == ["old"]
    assert "error: target 'here': 1 of 2 variants failed" in capsys.readouterr().err


@pytest.mark.slow
def test_failed_variant_leaves_a_record_and_exits_with_9(files, plant, engines, tmp_path, capsys):
    next((engines / "int8").glob("engine.*")).unlink()
    arguments = ["--data", str(plant.data), "--engines", str(engines), "--queries", "1", "--seconds", "0"]
    assert main(["measure", *files, *arguments, "--output", str(tmp_path / "m")]) == 9
    assert list(json.loads((tmp_path / "m" / "record.json").read_text())["variants"]) == ["fp32"]


@pytest.mark.slow
def test_a_budget_that_no_variant_keeps_leaves_a_record_and_exits_with_11(
    files, plant, engines, runtime, spec_of, tmp_path, capsys
):
    (tmp_path / "spec.json").write_text(json.dumps({**spec_of(runtime), "budget": {"size_mb": 0.000001}}))
    arguments = ["--data", str(plant.data), "--engines", str(engines), "--queries", "1", "--seconds", "0"]
    assert main(["measure", *files, *arguments, "--output", str(tmp_path / "m")]) == 11
    assert "error: target 'here': no variant keeps its budget: fp32 (" in capsys.readouterr().err
    variants = json.loads((tmp_path / "m" / "record.json").read_text())["variants"]
    assert all("at most 1e-06 allowed, " in variant["over_budget"][0] for variant in variants.values())


@pytest.mark.parametrize("content", [None, "{"])
def test_spec_that_cannot_be_read(files, tmp_path, capsys, content):
    (tmp_path / "spec.json").unlink()
    if content:
        (tmp_path / "spec.json").write_text(content)
    assert main(["build", *files, "--output", str(tmp_path / "o")]) == 2
    assert "cannot be read as JSON" in capsys.readouterr().err


def test_ctrl_c_and_system_errors(monkeypatch, capsys):
    arguments = ["fingerprint", "--target", "t", "--spec", "spec.json"]
    for error, code in ((KeyboardInterrupt, 130), (OSError(28, "No space left on device"), 1)):
        monkeypatch.setattr(module, "_fingerprint", lambda options, error=error: (_ for _ in ()).throw(error))
        assert main(arguments) == code
    assert "error: [Errno 28] No space left on device; check the path" in capsys.readouterr().err


def test_run_refuses_the_bundle_of_another_model(plant, engines, capsys):
    arguments = ["--bundle", str(plant.onnx_root / "int8"), "--engine", str(engines / "fp32"), "x.png"]
    assert main(["run", *arguments]) == 7
    assert "name the bundle 'fp32'" in capsys.readouterr().err


def test_start_imports_nothing_heavy():
    code = (
        "import sys, deploy.__main__\n"
        "heavy = {'numpy', 'PIL', 'cv2', 'openvino', 'onnxruntime'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_masks_are_asked_of_models_of_masks_alone(plant, engines, tmp_path, capsys):
    arguments = ["--bundle", str(plant.onnx_root / "fp32"), "--engine", str(engines / "fp32"), "x.png"]
    assert main(["run", "--masks", str(tmp_path / "masks"), *arguments]) == 2
    assert "gives images a class; leave it out" in capsys.readouterr().err
    assert not (tmp_path / "masks").exists()
