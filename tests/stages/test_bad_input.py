"""Each fault ends with one line that names cause and remedy, a code, no partial output, and old outputs untouched."""

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import yaml
from safetensors.torch import load_file, save_file

from pipeline.parts.index import read_index
from tests import tiny
from tests.stages.conftest import SCHEDULE


@dataclass(frozen=True)
class Fault:
    """Something wrong, the stage that must notice, its exit code, and what the line must say."""

    name: str
    spoil: Callable
    stage: str
    code: int
    words: tuple[str, ...]


def unknown_key(project, _):
    project.set(distill__rnak=3)


def out_of_range(project, _):
    project.set(distill__rank=0)


def stale_parameters(project, _):
    file = project.root / "configs/config.yaml"
    content = yaml.safe_load(file.read_text())
    content["distill"]["rank"] = 4
    file.write_text(yaml.safe_dump(content))


def missing_folder(project, _):
    shutil.rmtree(project.root / "images")


def broken_image(project, _):
    (project.root / "images/class_1/bad.png").write_bytes(b"\x89PNG but not really")


def one_class(project, _):
    for name in ("class_1", "class_2"):
        shutil.rmtree(project.root / "images" / name)


def wide_student(project, _):
    project.set(student__overrides=tiny.spec(width=32, depth=2, heads=4).overrides)


def other_heads(project, _):
    project.set(student__overrides=tiny.spec(width=16, depth=2, heads=4).overrides)


def unknown_method(project, _):
    project.set(distill__method="slda")


def foreign_key(project, _):
    project.set(distill__hidden=4)


def cnn_student(project, _):
    project.set(student__model="test_resnet", student__overrides={})


def uneven_batch(project, _):
    project.set(distill__micro_batch=4)


def no_such_layer(project, _):
    project.set(distill__targets=["out"])


def other_foundation(project, _):
    project.set(student__weights="artifacts/foundation/tiny/teacher.safetensors")


def renamed_pair(project, _):
    content = yaml.safe_load((project.root / "params.yaml").read_text())
    project.set(foundations={"small": content["foundations"]["tiny"]})


def other_record(project, _):
    for name in ("teacher", "student"):
        file = project.root / f"artifacts/distill/{name}.safetensors"
        state = load_file(file)
        del state["blocks.0.q.b"]
        save_file(state, file, metadata={"scale": "8.0"})


def no_trained_student(project, _):
    (project.root / "artifacts/distill/student.safetensors").unlink()


def random_weights(project, _):
    project.set(student__weights="random")


def other_size(project, _):
    project.set(preprocess__crop=[8, 8])


def diverging(project, _):
    project.set(distill__schedule={**SCHEDULE, "learning_rate": 1e12, "clip_norm": 1e12})


def other_backbone(project, _):
    file = project.root / "artifacts/foundation/tiny/student.safetensors"
    save_file({name: value.flip(0).contiguous() for name, value in load_file(file).items()}, file)


def missing_foundation(project, _):
    (project.root / "artifacts/foundation/tiny/student.safetensors").unlink()


def missing_file(project, _):
    project.set(teacher__weights="/nowhere/teacher.safetensors")


def no_network(project, monkeypatch):
    def offline(*_args, **_kwargs):
        raise OSError("no route to host")

    monkeypatch.setattr("timm.models._builder.load_state_dict_from_hf", offline)
    project.set(teacher__weights="augreg_in21k", teacher__model="vit_tiny_patch16_224")


def tampered_bundle(project, _):
    file = project.root / "artifacts/onnx/int8/model.onnx"
    file.write_bytes(file.read_bytes()[:-1] + b"!")


def escaping_bundle(project, _):
    file = project.root / "artifacts/onnx/int8/bundle.json"
    content = json.loads(file.read_text())
    content["files"]["../fp32/model.onnx"] = content["files"].pop("model.onnx")
    content["onnx"] = "../fp32/model.onnx"
    file.write_text(json.dumps(content))


def foreign_engine(project, _):
    for file in (project.root / "artifacts/compiled/cpu-openvino").rglob("manifest.json"):
        content = json.loads(file.read_text())
        content["device"]["cpu"]["model"] = "Cortex-A78AE"
        file.write_text(json.dumps(content))


def foreign_fingerprint(project, _):
    file = project.root / "artifacts/device/cpu-openvino.json"
    content = json.loads(file.read_text())
    content["machine_id"] = "0123456789abcdef"
    file.write_text(json.dumps(content))


def truncated_engine(project, _):
    for file in (project.root / "artifacts/compiled/cpu-openvino").rglob("engine.blob"):
        file.write_bytes(file.read_bytes()[:100])


def no_runtime(_, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)


def edited_index(project, _):
    file = project.root / "artifacts/data/train.csv"
    file.write_text(file.read_text().replace(',"0",', ',"1",', 1))


def missing_test_image(project, _):
    index = json.loads((project.root / "artifacts/data/index.json").read_text())
    index["root"] = str(project.root / "images")
    (project.root / "artifacts/data/index.json").write_text(json.dumps(index))
    (project.root / "images" / read_index(project.root / "artifacts/data")[0].parts["test"][0].path).unlink()


def no_record(project, _):
    shutil.rmtree(project.root / "artifacts/measured")
    (project.root / "artifacts/measured").mkdir()


FAULTS = [
    Fault("unknown key", unknown_key, "guard", 2, ("`distill.rnak` is no known key", "slad sync")),
    Fault("value out of range", out_of_range, "distill", 2, ("`distill.rank` is 0", "greater than or equal to 1")),
    Fault("stale parameters", stale_parameters, "guard", 2, ("`distill.rank` is 2", "4 in configs/", "slad repro")),
    Fault("missing data folder", missing_folder, "prepare", 3, ("`prepare.path`", "no folder", "give the folder")),
    Fault(
        "image that cannot be decoded",
        broken_image,
        "prepare",
        3,
        ("cannot be decoded", "class_1/bad.png"),
    ),
    Fault("one class only", one_class, "prepare", 3, ("holds 1 class(es)", "at least two")),
    Fault(
        "student wider than the teacher",
        wide_student,
        "distill",
        4,
        ("student is 32 wide, the teacher 24", "`student.overrides.embed_dim` to at most 24", "finetune_kd"),
    ),
    Fault(
        "student of another head width",
        other_heads,
        "distill",
        4,
        ("heads are 4 wide", "teacher's 8", "num_heads` to 2"),
    ),
    Fault("unknown method", unknown_method, "distill", 2, ("`distill.method` is 'slda'", "choose among slad, joint")),
    Fault("key of another method", foreign_key, "distill", 2, ("`distill.hidden` is no known key",)),
    Fault("CNN for a LoRA method", cnn_student, "distill", 4, ("a ResNet has none", "finetune_kd, probe_kd, lora_kd")),
    Fault(
        "batch that is not divisible", uneven_batch, "distill", 2, ("`distill.batch_size` 6", "`distill.micro_batch` 4")
    ),
    Fault("target that the model lacks", no_such_layer, "distill", 2, ("`distill.targets.0` is 'out'",)),
    Fault("random weights", random_weights, "distill", 2, ("`student`", "'random'", "choose a timm tag")),
    Fault("images of another size", other_size, "distill", 4, ("`preprocess.crop` is [8, 8]", "image_size` is 16")),
    Fault("diverging training", diverging, "distill", 4, (" is nan in epoch 1, step ", "learning_rate of 1e+12")),
    Fault("another backbone than trained", other_backbone, "merge", 5, ("adapted student differs from torch",)),
    Fault(
        "missing foundation",
        missing_foundation,
        "distill",
        4,
        ("artifacts/foundation/tiny/student.safetensors", "git checkout artifacts/foundation"),
    ),
    Fault(
        "foundation of another pair",
        other_foundation,
        "distill",
        4,
        ("`student.weights`", "does not fit", "choose the arch"),
    ),
    Fault("unknown foundation pair", renamed_pair, "foundation@tiny", 2, ("no foundation pair 'tiny' among small",)),
    Fault("missing weights file", missing_file, "distill", 4, ("/nowhere/teacher.safetensors", "timm tag")),
    Fault("weights that cannot be had", no_network, "distill", 4, ("vit_tiny_patch16_224.augreg_in21k", "network")),
    Fault("tampered bundle", tampered_bundle, "compile@cpu-openvino", 7, ("model.onnx", "rebuild it", "int8")),
    Fault("bundle that leaves its folder", escaping_bundle, "compile@cpu-openvino", 7, ("../fp32/model.onnx", "int8")),
    Fault("engine of another machine", foreign_engine, "measure@cpu-openvino", 9, ("Cortex-A78AE", "compile@")),
    Fault("fingerprint of another machine", foreign_fingerprint, "compile@cpu-openvino", 7, ("machine_id", "probe@")),
    Fault("truncated engine", truncated_engine, "measure@cpu-openvino", 9, ("engine.blob", "compile@")),
    Fault("runtime not installed", no_runtime, "probe@cpu-openvino", 8, ("openvino", "pip install")),
    Fault("record of another student", other_record, "merge", 4, ("run `dvc repro distill` again",)),
    Fault("record is missing", no_trained_student, "merge", 4, ("distill/student.safetensors", "dvc repro distill")),
    Fault("edited index", edited_index, "merge", 3, ("changed after it was written", "dvc repro -f prepare")),
    Fault("missing test image", missing_test_image, "measure@cpu-openvino", 3, (".png",)),
    Fault("no record", no_record, "report", 3, ("dvc repro",)),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_fault(fault, project, capsys, monkeypatch):
    fault.spoil(project, monkeypatch)
    before = project.snapshot()
    result = project.run(fault.stage, capsys, monkeypatch)
    assert result.code == fault.code, result.error
    line = [text for text in result.error.splitlines() if text.startswith("error: ")]
    assert len(line) == 1, result.error
    assert result.error.rstrip().endswith(line[0])
    assert "Traceback" not in result.error
    for words in fault.words:
        assert words in line[0]
    assert project.snapshot() == before
