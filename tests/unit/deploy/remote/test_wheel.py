import csv
import email
import hashlib
import importlib.metadata
import io
import subprocess
import sys
import zipfile
from base64 import urlsafe_b64encode

import pytest

from deploy.errors import DeviceError
from deploy.remote import wheel as module
from deploy.remote.wheel import device_wheel, requirements_of
from deploy.runtimes import RUNTIMES
from tests.unit.deploy.test_imports import CODE


@pytest.fixture(scope="module")
def wheel():
    return device_wheel()


@pytest.fixture
def archive(wheel):
    with zipfile.ZipFile(io.BytesIO(wheel.content)) as opened:
        yield opened


def info(archive, name: str) -> str:
    (found,) = [each for each in archive.namelist() if each.endswith(f".dist-info/{name}")]
    return archive.read(found).decode()


def test_the_same_code_makes_the_same_bytes(wheel):
    again = device_wheel()
    assert (again.content, again.sha256) == (wheel.content, wheel.sha256)
    assert wheel.sha256 == hashlib.sha256(wheel.content).hexdigest()


def test_it_is_small_and_holds_this_package_alone(wheel, archive):
    assert len(wheel.content) < 200_000
    assert wheel.file == f"slad_edge_device-{importlib.metadata.version('slad-edge')}-py3-none-any.whl"
    assert {name.split("/")[0] for name in archive.namelist()} == {"deploy", wheel.file.split("-py3")[0] + ".dist-info"}
    assert not [name for name in archive.namelist() if name.endswith(".pyc")]
    assert {"deploy/__main__.py", "deploy/install/server.py", "deploy/runtimes/tensorrt.py"} <= set(archive.namelist())
    assert not [name for name in archive.namelist() if "remote" in name or "compar" in name]  # the host's alone


def test_it_can_import_all_that_it_holds(wheel, archive, tmp_path):
    archive.extractall(tmp_path)
    modules = [name[:-3].replace("/", ".") for name in archive.namelist() if name.endswith(".py")]
    code = "import sys; sys.path.insert(0, sys.argv[1]); [__import__(name) for name in sys.argv[2:]]"
    modules = [name.removesuffix(".__init__") for name in modules if not name.endswith("__main__")]
    command = [sys.executable, "-I", "-c", code, str(tmp_path), *modules]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_record_has_the_hash_of_every_file(archive):
    rows = list(csv.reader(io.StringIO(info(archive, "RECORD"))))
    assert [row[0] for row in rows] == archive.namelist()
    for name, digest, size in rows[:-1]:
        content = archive.read(name)
        expected = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        assert (digest, size) == (f"sha256={expected}", str(len(content)))
    assert rows[-1][1:] == ["", ""]


def test_the_metadata_name_the_devices_extras_and_nothing_of_the_host(archive):
    metadata = email.message_from_string(info(archive, "METADATA"))
    assert metadata["Name"] == "slad-edge-device"
    assert metadata["Requires-Python"] == ">=3.10"
    assert metadata["Metadata-Version"] == "2.4"  # the first that has License-Expression
    assert metadata.get_all("Provides-Extra") == [*RUNTIMES, "camera", "loadgen"]
    required = metadata.get_all("Requires-Dist")
    assert any(line.startswith("numpy") for line in required)
    assert any("openvino" in line and "extra" in line for line in required)
    assert not [line for line in required if "typer" in line or "dvc" in line]


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_runtimes_requirements_are_judged_by_pip_alone(runtime):
    base, own = requirements_of(), requirements_of(runtime)
    assert [line.split(">")[0] for line in base] == ["numpy", "pillow"]
    assert own[: len(base)] == base
    assert len(own) > len(base)
    assert not [line for line in own if "extra" in line]


def test_markers_of_a_requirement_stay():
    lines = requirements_of("onnxruntime")
    assert any('platform_machine == "x86_64"' in line and 'python_version >= "3"' in line for line in lines)


def test_a_package_that_is_not_installed_is_told(monkeypatch):
    monkeypatch.setattr(module, "DISTRIBUTION", "no-such-thing")
    with pytest.raises(DeviceError, match="no-such-thing is not installed, .*; run `pip install -e .`"):
        device_wheel()


@pytest.fixture
def unpacked(archive, tmp_path):
    archive.extractall(tmp_path / "package")
    return tmp_path / "package"


@pytest.mark.slow
def test_the_unpacked_package_needs_none_of_the_hosts(unpacked, tmp_path):
    code = f"import sys; sys.path.insert(0, {str(unpacked)!r})\n{CODE}\nassert deploy.__file__.startswith(sys.path[0])"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_pip_installs_it(wheel, tmp_path):
    (tmp_path / wheel.file).write_bytes(wheel.content)
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--target", tmp_path / "site"]
    subprocess.run([*pip, tmp_path / wheel.file], capture_output=True, check=True)
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "--help"], cwd=tmp_path / "site", capture_output=True, text=True, check=True
    )
    assert "fingerprint" in done.stdout
