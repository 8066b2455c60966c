import hashlib
import json
import re

import numpy as np
import pytest

from deploy.bundle import load_bundle, load_golden
from deploy.errors import BundleError


def test_bundle_is_read_whole(bundle):
    loaded = load_bundle(bundle)
    assert (loaded.name, loaded.variant, loaded.precision) == ("shapes-tiny", "fp32", "fp32")
    assert (loaded.input_shape, loaded.output_shape) == ((1, 3, 16, 16), (1, 4))
    assert loaded.preprocess.crop == (16, 16)
    assert loaded.preprocess.mean == (0.5, 0.4, 0.3)
    assert loaded.onnx == bundle / "model.onnx"
    assert loaded.onnx_sha256 == hashlib.sha256((bundle / "model.onnx").read_bytes()).hexdigest()
    assert loaded.golden.tolerance == {"fp32": 0.001, "bf16": 0.05, "int8": 0.1}
    with pytest.raises(AttributeError):
        loaded.name = "other"


def add_program(bundle, edit, *, listed=True) -> None:
    content = b"stands for what torch.export writes"
    (bundle / "program.pt2").write_bytes(content)
    files = json.loads((bundle / "bundle.json").read_text())["files"]
    if listed:
        files["program.pt2"] = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    edit(bundle / "bundle.json", program="program.pt2", files=files)


def test_program_is_a_file_of_the_bundle(bundle, edit):
    assert load_bundle(bundle).program is None
    add_program(bundle, edit)
    assert load_bundle(bundle).program == bundle / "program.pt2"
    edit(bundle / "bundle.json", program=None)
    assert load_bundle(bundle).program is None


def test_program_that_was_tampered_with_is_refused(bundle, edit):
    add_program(bundle, edit)
    (bundle / "program.pt2").write_bytes(b"stands for what torch.export wrote?")
    with pytest.raises(BundleError, match=r"'program\.pt2' has sha256 "):
        load_bundle(bundle)


def test_program_that_is_not_listed_is_refused(bundle, edit):
    add_program(bundle, edit, listed=False)
    with pytest.raises(BundleError, match=r"`program` names 'program\.pt2', which `files` does not list"):
        load_bundle(bundle)


def test_golden_arrays_fit_the_model(bundle, onnx_reference):
    inputs, outputs = load_golden(load_bundle(bundle))
    assert (inputs.shape, inputs.dtype) == ((8, 3, 16, 16), np.float32)
    np.testing.assert_allclose(outputs, onnx_reference(bundle / "model.onnx", inputs), atol=1e-6)


def test_changed_byte_is_refused_with_both_hashes(bundle):
    path = bundle / "model.onnx"
    listed = hashlib.sha256(path.read_bytes()).hexdigest()
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    actual = hashlib.sha256(content).hexdigest()
    with pytest.raises(BundleError) as caught:
        load_bundle(bundle)
    assert "'model.onnx'" in str(caught.value)
    assert actual[:12] in str(caught.value)
    assert listed[:12] in str(caught.value)
    assert actual[:13] not in str(caught.value)
    assert "dvc repro export quantize" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_truncated_file_is_refused_by_its_size(bundle):
    size = (bundle / "golden.npz").stat().st_size
    (bundle / "golden.npz").write_bytes((bundle / "golden.npz").read_bytes()[:-9])
    with pytest.raises(BundleError, match=f"'golden.npz' has {size - 9} bytes, {size} are listed"):
        load_bundle(bundle)


def test_missing_file_and_missing_bundle(bundle, tmp_path):
    (bundle / "golden.npz").unlink()
    with pytest.raises(BundleError, match=r"'golden\.npz' is missing"):
        load_bundle(bundle)
    with pytest.raises(BundleError, match=r"none/bundle\.json: no such file"):
        load_bundle(tmp_path / "none")


@pytest.mark.parametrize("name", ["/etc/passwd", "../secret", "a/../../secret", "..\\secret"])
def test_path_that_leaves_the_bundle_is_refused_unread(bundle, edit, name):
    (bundle.parent / "secret").write_text("x")
    edit(bundle / "bundle.json", files={name: {"sha256": "0" * 64, "bytes": 1}}, onnx=name)
    with pytest.raises(BundleError, match=re.escape(f"file {name!r} leaves the bundle")):
        load_bundle(bundle)


def test_link_that_leaves_the_bundle_is_refused(bundle):
    (bundle / "model.onnx").rename(bundle.parent / "outside.onnx")
    (bundle / "model.onnx").symlink_to(bundle.parent / "outside.onnx")
    with pytest.raises(BundleError, match="is a link that leaves the bundle"):
        load_bundle(bundle)


def test_link_within_the_bundle_is_fine(bundle):
    (bundle / "model.onnx").rename(bundle / "real.onnx")
    (bundle / "model.onnx").symlink_to("real.onnx")
    assert load_bundle(bundle).onnx == bundle / "model.onnx"


def test_bundle_reached_through_a_link_is_fine(bundle, tmp_path):
    (tmp_path / "link").symlink_to(bundle)
    assert load_bundle(tmp_path / "link").variant == "fp32"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schema": 2}, "has schema 2, this slad-edge reads schema 1"),
        ({"schema": True}, "has schema True"),
        ({"labels": ...}, "key `labels` is missing"),
        ({"labels": ["a"]}, r"`output.shape` \[1, 4\] does not fit 1 `labels`"),
        ({"input__layout": "NHWC"}, "`input.layout` should be one of NCHW, got 'NHWC'"),
        ({"task": "detection"}, "`task` should be one of classification"),
        ({"preprocess__std": [1, 0, 1]}, "`preprocess.std` should be above 0"),
        ({"preprocess__mean": [0.5, float("nan"), 1]}, "`preprocess.mean` should be 3 numbers"),
        ({"preprocess__crop": [16, 8]}, r"`input.shape` \[1, 3, 16, 16\] does not fit"),
        ({"preprocess__resize": 0}, "`preprocess.resize` should be an integer of 1 or more, got 0"),
        ({"preprocess__resize": 8, "preprocess__resize_mode": "shortest"}, "is larger than `preprocess.resize` 8"),
        ({"preprocess__interpolation": "lanczos"}, "got 'lanczos'"),
        ({"golden__tolerance": {"fp32": 0}}, "`golden.tolerance.fp32` should be between 0 and 1"),
        ({"golden__file": "other.npz"}, "`golden.file` names 'other.npz', which `files` does not list"),
        ({"program": 7}, "`program` should be a string that is not empty, got 7"),
        ({"files": {"model.onnx": None}}, "`files.model.onnx` should hold `sha256` and `bytes`"),
    ],
)
def test_wrong_value_is_named_by_its_key(bundle, edit, changes, message):
    edit(bundle / "bundle.json", **changes)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


@pytest.mark.parametrize(("text", "message"), [("{", "not valid JSON"), ("[]", "should hold a JSON object")])
def test_broken_json(bundle, text, message):
    (bundle / "bundle.json").write_text(text)
    with pytest.raises(BundleError, match=message):
        load_bundle(bundle)


def relist(bundle, edit) -> None:
    content = (bundle / "golden.npz").read_bytes()
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    listed = {"model.onnx": {}, "golden.npz": entry}
    model = (bundle / "model.onnx").read_bytes()
    listed["model.onnx"] = {"sha256": hashlib.sha256(model).hexdigest(), "bytes": len(model)}
    edit(bundle / "bundle.json", files=listed)


def test_golden_archive_with_pickles_is_never_loaded(bundle, edit):
    np.savez(bundle / "golden.npz", inputs=np.array([{"a": 1}], dtype=object), outputs=np.zeros(1))
    relist(bundle, edit)
    with pytest.raises(BundleError, match="golden archive cannot be read"):
        load_golden(load_bundle(bundle))


@pytest.mark.parametrize("content", [b"junk", b"PK\x03\x04junk", b""])
def test_golden_archive_that_is_no_archive(bundle, edit, content):
    (bundle / "golden.npz").write_bytes(content)
    relist(bundle, edit)
    with pytest.raises(BundleError, match="golden archive cannot be read"):
        load_golden(load_bundle(bundle))


def test_golden_arrays_of_another_shape(bundle, edit):
    np.savez(bundle / "golden.npz", inputs=np.zeros((8, 3, 8, 8), np.float32), outputs=np.zeros((8, 4), np.float32))
    relist(bundle, edit)
    with pytest.raises(BundleError, match=r"`inputs` should be finite float32 of shape \(8, 3, 16, 16\)"):
        load_golden(load_bundle(bundle))
