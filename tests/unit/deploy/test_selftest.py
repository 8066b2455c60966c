import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest

from deploy import selftest as module
from deploy.__main__ import main
from deploy.bundle import load_bundle, load_golden
from deploy.engine import read_manifest
from deploy.errors import EngineError
from deploy.runtime import Placement
from deploy.runtimes import get_runtime
from deploy.selftest import selftest
from deploy.target import Variant
from tests.unit.deploy.conftest import listing


@pytest.fixture
def release(plant, engines, tmp_path):
    """INT8, on each runtime, as it lies on a device."""
    shutil.copytree(plant.onnx_root / "int8", tmp_path / "release/bundle")
    shutil.copytree(engines / "int8", tmp_path / "release/engine")
    return tmp_path / "release"


def test_a_good_engine_is_one_line(release, capsys):
    assert main(["selftest", "--bundle", str(release / "bundle")]) == 0
    shown = capsys.readouterr()
    assert re.fullmatch(r"int8 on here: relative error \S+ \(at most 0\.1\), \d+ nodes on CPU\w*\n", shown.out)
    assert shown.err == ""


def test_an_engine_that_gives_other_answers_is_refused(release, edit, capsys):
    inputs, outputs = load_golden(load_bundle(release / "bundle"))
    np.savez(release / "bundle/golden.npz", inputs=inputs, outputs=outputs + np.abs(outputs).max())
    edit(release / "bundle/bundle.json", files=listing(release / "bundle", "model.onnx", "golden.npz"))
    assert main(["selftest", "--bundle", str(release / "bundle")]) == 7
    shown = capsys.readouterr()
    assert shown.out == ""
    assert re.fullmatch(
        r"error: engine 'int8': relative error \S+ on the golden inputs, at most 0\.1 allowed; build it again with "
        r"`python -m deploy build`\n",
        shown.err,
    )


def built_for(release):
    manifest = read_manifest(release / "engine")
    return replace(manifest.as_target(), variants=(Variant("int8", "int8", "int8"),))


def test_an_engine_that_runs_elsewhere_is_refused_unless_that_is_allowed(release, monkeypatch):
    class Strayed:
        def __init__(self, engine) -> None:
            self.run = engine.run

        def placement(self):
            return Placement(asked="GPU", nodes={"GPU": 3, "CPU": 1}, strays=("softmax",))

    def opened(bundle, engine, **options):
        model, loaded = open_engine(bundle, engine, **options)
        return model, replace(loaded, engine=Strayed(loaded.engine))

    open_engine = module.open_engine
    monkeypatch.setattr(module, "open_engine", opened)
    with pytest.raises(EngineError, match="1 of 4 nodes do not run on GPU"):
        selftest(release / "bundle", None)
    target = replace(built_for(release), allow_fallback=True)
    assert selftest(release / "bundle", None, target=target).endswith(", 3 nodes on GPU, 1 nodes on CPU")


@pytest.mark.parametrize(
    ("asked", "words"),
    [({"threads": 2}, "threads 2 asked for, 1 in the manifest"), ({"precision": "fp32"}, "'int8' is in int8, which")],
)
def test_an_engine_that_is_not_as_the_target_asks_is_refused(release, tmp_path, asked, words, capsys):
    target = built_for(release)
    spec = {"runtime": target.runtime, "threads": asked.get("threads", 1)}
    spec["variants"] = {"int8": {"onnx": "int8", "precision": asked.get("precision", "int8")}}
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    command = ["selftest", "--bundle", str(release / "bundle"), "--target", target.name]
    assert main([*command, "--spec", str(tmp_path / "spec.json")]) == 7
    assert words in capsys.readouterr().err
    assert main(command) == 2


@pytest.mark.parametrize("name", ["bundle/bundle.json", "bundle/model.onnx", "bundle/golden.npz", "engine"])
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_a_corrupt_file_is_one_line_and_nothing_is_loaded(release, runtime, name, how, capsys, monkeypatch):
    monkeypatch.setattr(get_runtime(runtime), "load", lambda *given: pytest.fail("it was loaded"))
    path = release / name if "." in name else next((release / name).glob("engine.*"))
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(content if how == "flipped" else content[: len(content) // 2])
    assert main(["selftest", "--bundle", str(release / "bundle")]) == (7 if name == "engine" else 6)
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)


@pytest.mark.parametrize("value", [5, None, [], {"a": 1}, "GPU.7", 1e300])
def test_options_that_the_engine_was_not_built_with_reach_no_runtime(release, runtime, value, capsys, monkeypatch):
    path = release / "engine/manifest.json"
    content = json.loads(path.read_text())
    content["options"]["provider" if runtime == "onnxruntime" else "device"] = value
    path.write_text(json.dumps(content))
    monkeypatch.setattr(get_runtime(runtime), "probe", lambda options: pytest.fail("it was asked"))
    assert main(["selftest", "--bundle", str(release / "bundle")]) == 7
    assert "the manifest does not fit itself: it was edited; build it again with" in capsys.readouterr().err


def test_another_device_is_named(release, capsys, monkeypatch):
    monkeypatch.setattr("deploy.device._machine_id", lambda: "f" * 16)
    assert main(["selftest", "--bundle", str(release / "bundle")]) == 7
    assert "built for another device or runtime: machine_id" in capsys.readouterr().err
