import subprocess
from types import SimpleNamespace

import pytest

from deploy import nvidia as module
from deploy.nvidia import Gpu, board, describe, gpus, infer_version, l4t, l4t_text, parse_gpus

SMI = "NVIDIA H200, 9.0, 570.133.20, 143771\nNVIDIA RTX A2000, 8.6, 570.133.20, 12282\n"


@pytest.fixture
def jetson(tmp_path, monkeypatch):
    (tmp_path / "release").write_text("# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic\n# KERNEL: oot\n")
    (tmp_path / "model").write_bytes(b"NVIDIA Jetson Orin Nano Developer Kit\0")
    monkeypatch.setattr(module, "TEGRA_RELEASE", tmp_path / "release")
    monkeypatch.setattr(module, "DEVICE_TREE_MODEL", tmp_path / "model")


@pytest.fixture(autouse=True)
def forgotten():
    module._gpus.cache_clear()
    yield
    module._gpus.cache_clear()


def smi(tmp_path, monkeypatch, code):
    path = tmp_path / "nvidia-smi"
    path.write_text(f"#!/bin/sh\n{code}\n")
    path.chmod(0o755)
    monkeypatch.setattr(module.shutil, "which", lambda name: str(path) if name == "nvidia-smi" else None)


def test_cards():
    first, second = parse_gpus(SMI)
    assert first == Gpu("NVIDIA H200", "9.0", "570.133.20", 143771)
    assert second.compute_capability == "8.6"


def test_what_a_jetson_does_not_say_is_none():
    assert parse_gpus("Orin (nvgpu), [N/A], 540.4.0, [N/A]\n") == (Gpu("Orin (nvgpu)", None, "540.4.0", None),)


@pytest.mark.parametrize("text", ["", "No devices were found\n", "a, b\n"])
def test_other_text_is_no_device(text):
    assert parse_gpus(text) == ()


def test_command_is_asked(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, f"printf '{SMI}'; echo \"$@\" > {tmp_path / 'asked'}")
    assert [gpu.name for gpu in gpus()] == ["NVIDIA H200", "NVIDIA RTX A2000"]
    assert (tmp_path / "asked").read_text().split()[0] == "--query-gpu=name,compute_cap,driver_version,memory.total"
    assert describe(1)["gpu"]["name"] == "NVIDIA RTX A2000"
    assert describe(2)["gpu"] is None


@pytest.mark.parametrize(("visible", "index", "name"), [("1,0", 0, "A2000"), ("1", 1, None), ("", 0, None)])
def test_devices_that_cuda_sees(tmp_path, monkeypatch, visible, index, name):
    smi(tmp_path, monkeypatch, f"printf '{SMI}'")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    found = describe(index)["gpu"]
    assert found is None if name is None else found["name"].endswith(name)


@pytest.mark.parametrize(("number", "release"), [(100300, "10.3.0"), (110104, "11.1.4"), (8602, "8.6.2")])
def test_release_of_the_tensorrt_library(monkeypatch, number, release):
    library = SimpleNamespace(getInferLibVersion=lambda: number)

    def load(name):
        if name != "libnvinfer.so.10":
            raise OSError(name)
        return library

    monkeypatch.setattr(module.ctypes, "CDLL", load)
    assert infer_version() == release
    monkeypatch.setattr(module.ctypes, "CDLL", lambda name: SimpleNamespace())
    assert infer_version() is None


def test_driver_that_fails_or_hangs_is_no_device(tmp_path, monkeypatch):
    smi(tmp_path, monkeypatch, "echo broken; exit 9")
    assert gpus() == ()
    module._gpus.cache_clear()

    def hang(*_, **__):
        raise subprocess.TimeoutExpired("nvidia-smi", 20)

    monkeypatch.setattr(module.subprocess, "run", hang)
    assert gpus() == ()
    module._gpus.cache_clear()
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    assert gpus() == ()


def test_jetson(jetson):
    assert l4t() == "36.4.3"
    assert l4t_text() == "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic"
    assert board() == "NVIDIA Jetson Orin Nano Developer Kit"
    assert describe(0) == {"gpu": None, "board": board(), "l4t": l4t_text()}


def test_other_system(tmp_path, monkeypatch):
    for name in ("TEGRA_RELEASE", "DEVICE_TREE_MODEL"):
        monkeypatch.setattr(module, name, tmp_path / name)
    assert (l4t(), l4t_text(), board()) == (None, None, None)
