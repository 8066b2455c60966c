"""The device package stands alone: the host's frameworks and packages are not even importable here."""

import subprocess
import sys

CODE = """
import importlib, pkgutil, sys

BANNED = {
    "torch", "torchvision", "timm", "onnx", "pipeline", "stages", "dvc", "hydra", "omegaconf", "nncf", "pydantic",
    "rich",
}

class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in BANNED:
            raise ImportError(f"the device package imports {name}")

sys.meta_path.insert(0, Refuse())
import deploy
found = [module.name for module in pkgutil.walk_packages(deploy.__path__, "deploy.")]
assert len(found) > 15, found
for name in found:
    importlib.import_module(name)
lazy = {"openvino", "onnxruntime", "cv2"} & set(sys.modules)
assert not lazy, f"imported before they are used: {lazy}"

from deploy.device import fingerprint
from deploy.target import read_target
for runtime in ("openvino", "onnxruntime"):
    fingerprint(read_target("t", {"runtime": runtime, "variants": {"v": {"onnx": "fp32", "precision": "fp32"}}}))
"""


def test_device_package_loads_without_the_hosts_frameworks():
    done = subprocess.run([sys.executable, "-c", CODE], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_hook_itself_refuses():
    code = CODE.partition("import deploy")[0] + "import torch"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "the device package imports torch" in done.stderr
