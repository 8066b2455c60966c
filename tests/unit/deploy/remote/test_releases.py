import pytest

from deploy.errors import BundleError, DeviceError, EngineError, TargetError
from deploy.remote.releases import deploy, roll_back, status
from tests.unit.deploy.conftest import edit


@pytest.fixture
def put(device, plant):
    return lambda **options: deploy(
        "t",
        device.spec,
        **{"variant": "fp32", "engine_sha256": None, "onnx_root": plant.onnx_root, "say": device.say, **options},
    )


@pytest.mark.slow
def test_a_variant_is_deployed_upgraded_and_rolled_back(put, device, plant):
    first = put()
    assert first["sent"] == sum(file.stat().st_size for file in (plant.onnx_root / "fp32").iterdir())
    assert (first["engine"], first["new"]) == ("built", True)
    release = device.root / "targets/t/current"
    assert sorted(file.name for file in (release / "bundle").iterdir()) == ["bundle.json", "golden.npz", "model.onnx"]
    again = put()
    assert (again["release"], again["sent"], again["new"]) == (first["release"], 0, False)

    edit(plant.onnx_root / "fp32/bundle.json", name="changed")
    second = put()
    assert second["sent"] == (plant.onnx_root / "fp32/bundle.json").stat().st_size
    found = status("t", device.spec, say=device.say)
    assert found["current"] == second["release"]
    assert [(row["release"], row["model"]) for row in found["releases"]] == [
        (first["release"], "shapes-tiny"), (second["release"], "changed"),
    ]  # fmt: skip

    done = roll_back("t", device.spec, to=None, say=device.say)
    assert (done["release"], done["before"]) == (first["release"], second["release"])
    with pytest.raises(DeviceError, match="^device 'device': target 't': no release '7' is kept; there are "):
        roll_back("t", device.spec, to="7", say=device.say)


@pytest.mark.slow
def test_a_release_that_fails_its_test_leaves_the_earlier_one(put, device, plant):
    first = put()
    edit(plant.onnx_root / "fp32/bundle.json", name="changed")
    (device.bin / "refuse").write_text("built\n")
    with pytest.raises(EngineError, match=r"^device 'device': release 0002-\w{12}: engine 'fp32': other answers$"):
        put()
    assert status("t", device.spec, say=device.say)["current"] == first["release"]


def test_an_unknown_variant_is_refused_before_anything_is_connected(put, monkeypatch):
    monkeypatch.setenv("SLAD_SSH", "/none")
    with pytest.raises(TargetError, match="target 't' has no variant 'int4'; it has fp32"):
        put(variant="int4")


def test_a_faulty_bundle_is_refused_before_anything_is_connected(put, plant, monkeypatch):
    monkeypatch.setenv("SLAD_SSH", "/none")
    (plant.onnx_root / "fp32/model.onnx").unlink()
    with pytest.raises(BundleError):
        put()


def test_a_device_without_releases_has_none(device):
    assert status("t", device.spec, say=device.say) == {"current": None, "releases": []}
