"""A tiny classifier, exported in fp32 and int8, with its bundles and a data folder, as the host would write them."""

import hashlib
import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from deploy.device import fingerprint
from deploy.target import read_target

SIDE, CLASSES = 16, 4
LABELS = ["circle", "cross", "line", "square"]
MEAN, STD = [0.5, 0.4, 0.3], [0.25, 0.2, 0.3]
RUNTIMES = ("onnxruntime", "openvino")


@dataclass(frozen=True)
class Plant:
    """Everything one target needs."""

    onnx_root: Path
    data: Path


def weights(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "conv": (rng.normal(size=(8, 3, 3, 3)) * 0.3).astype(np.float32),
        "fc": (rng.normal(size=(8 * 8 * 8, CLASSES)) * 0.1).astype(np.float32),
        "bias": rng.normal(size=CLASSES).astype(np.float32),
    }


def save_model(path: Path, nodes: list, initializers: dict[str, np.ndarray]) -> None:
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, SIDE, SIDE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, CLASSES])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in initializers.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=10)
    onnx.checker.check_model(model)
    onnx.save(model, path)


def conv(source: str, kernel: str, target: str) -> onnx.NodeProto:
    return helper.make_node("Conv", [source, kernel], [target], strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3])


def save_fp32(path: Path, *, seed: int) -> None:
    nodes = [
        conv("image", "conv", "c"),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Flatten", ["r"], ["f"]),
        helper.make_node("Gemm", ["f", "fc", "bias"], ["logits"]),
    ]
    save_model(path, nodes, weights(seed))


def fake_quantize(source: str, scale: str, target: str) -> list[onnx.NodeProto]:
    return [
        helper.make_node("QuantizeLinear", [source, scale, "zero"], [f"{target}_q"]),
        helper.make_node("DequantizeLinear", [f"{target}_q", scale, "zero"], [target]),
    ]


def save_int8(path: Path, *, seed: int) -> None:
    arrays = weights(seed)
    initializers: dict[str, np.ndarray] = {"zero": np.int8(0), "s_in": np.float32(0.03), "s_mid": np.float32(0.06)}
    initializers |= {"s_out": np.float32(0.2), "bias": arrays["bias"]}
    nodes = []
    for name in ("conv", "fc"):
        scale = np.float32(np.abs(arrays[name]).max() / 127)
        initializers |= {f"{name}_q": np.round(arrays[name] / scale).astype(np.int8), f"s_{name}": scale}
        nodes.append(helper.make_node("DequantizeLinear", [f"{name}_q", f"s_{name}", "zero"], [name]))
    nodes += [
        *fake_quantize("image", "s_in", "x"),
        conv("x", "conv", "c"),
        helper.make_node("Relu", ["c"], ["r"]),
        *fake_quantize("r", "s_mid", "m"),
        helper.make_node("Flatten", ["m"], ["f"]),
        *fake_quantize("f", "s_mid", "g"),
        helper.make_node("Gemm", ["g", "fc", "bias"], ["l"]),
        *fake_quantize("l", "s_out", "logits"),
    ]
    save_model(path, nodes, initializers)


def reference(model: Path, inputs: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(model), providers=["CPUExecutionProvider"])
    return np.concatenate([session.run(None, {"image": image[None]})[0] for image in inputs])


def listing(folder: Path, *names: str) -> dict[str, dict]:
    return {
        name: {
            "sha256": hashlib.sha256((folder / name).read_bytes()).hexdigest(),
            "bytes": (folder / name).stat().st_size,
        }
        for name in names
    }


def save_bundle(folder: Path, precision: str, *, seed: int = 0) -> None:
    """Writes a bundle; another seed makes another model of the same form."""
    folder.mkdir(parents=True)
    (save_fp32 if precision == "fp32" else save_int8)(folder / "model.onnx", seed=seed)
    inputs = np.random.default_rng(1).normal(size=(8, 3, SIDE, SIDE)).astype(np.float32)
    np.savez(folder / "golden.npz", inputs=inputs, outputs=reference(folder / "model.onnx", inputs))
    content = {
        "schema": 1,
        "name": "shapes-tiny",
        "variant": precision,
        "precision": precision,
        "task": "classification",
        "input": {"name": "image", "shape": [1, 3, SIDE, SIDE], "dtype": "float32", "layout": "NCHW"},
        "output": {"name": "logits", "shape": [1, CLASSES], "dtype": "float32"},
        "preprocess": {
            "resize": SIDE,
            "resize_mode": "squash",
            "crop": [SIDE, SIDE],
            "interpolation": "bilinear",
            "mean": MEAN,
            "std": STD,
            "color": "RGB",
        },
        "labels": LABELS,
        "onnx": "model.onnx",
        "golden": {"file": "golden.npz", "count": 8, "tolerance": {"fp32": 0.001, "bf16": 0.05, "int8": 0.1}},
        "files": listing(folder, "model.onnx", "golden.npz"),
        "lineage": {"git_revision": "0" * 40, "params_sha256": "1", "data_sha256": "2", "parent_sha256": None},
    }
    (folder / "bundle.json").write_text(json.dumps(content))


def save_data(folder: Path) -> None:
    rng = np.random.default_rng(2)
    entries = []
    for index in range(12):
        name = f"test/{LABELS[index % CLASSES]}/{index:04}.png"
        path = folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(path)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        entries.append({"path": name, "label": index % CLASSES, "sha256": digest})
    write_split(folder, "test", entries)


def write_split(folder: Path, name: str, entries: list[dict]) -> None:
    """Writes a split and its hash into the index, which is made where there is none."""
    rows = [",".join(str(value) for value in entry.values()) for entry in entries]
    text = "\n".join([",".join(entries[0] if entries else ("path", "label", "sha256")), *rows, ""])
    (folder / f"{name}.csv").write_text(text)
    part = {"count": len(entries), "sha256": hashlib.sha256(text.encode()).hexdigest()}
    content = {"schema": 3, "labels": LABELS, "root": "images", "ignore": None, "parts": {name: part}, "sha256": "3"}
    (folder / "index.json").write_text(json.dumps(content))


@pytest.fixture(scope="session")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("plant")
    save_bundle(root / "onnx" / "fp32", "fp32")
    save_bundle(root / "onnx" / "int8", "int8")
    save_data(root / "data")
    return root


@pytest.fixture
def plant(pristine: Path, tmp_path: Path) -> Plant:
    """A copy that a test may spoil."""
    shutil.copytree(pristine, tmp_path / "plant")
    return Plant(onnx_root=tmp_path / "plant" / "onnx", data=tmp_path / "plant" / "data")


@pytest.fixture
def bundle(plant: Plant) -> Path:
    return plant.onnx_root / "fp32"


def edit(path: Path, **changes: object) -> None:
    """Change dotted keys (`__` between parts) of a JSON file; `...` removes one."""
    content = json.loads(path.read_text())
    for dotted, value in changes.items():
        *parents, last = dotted.split("__")
        place = content
        for part in parents:
            place = place[part]
        if value is ...:
            del place[last]
        else:
            place[last] = value
    path.write_text(json.dumps(content))


@pytest.fixture(name="edit")
def edit_fixture():
    return edit


def target_spec(runtime: str, **variants: tuple[str, str]) -> dict:
    chosen = variants or {"fp32": ("fp32", "fp32"), "int8": ("int8", "int8")}
    named = {name: {"onnx": onnx_name, "precision": precision} for name, (onnx_name, precision) in chosen.items()}
    return {"runtime": runtime, "threads": 1, "variants": named}


@pytest.fixture
def spec_of():
    return target_spec


@pytest.fixture(params=RUNTIMES)
def runtime(request: pytest.FixtureRequest) -> str:
    """One row of the matrix: every behaviour holds for every runtime."""
    return request.param


@pytest.fixture
def device(runtime: str) -> dict:
    return fingerprint(read_target("here", target_spec(runtime)))


@pytest.fixture
def onnx_reference():
    return reference


@pytest.fixture(scope="session")
def built(pristine: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The engines of each runtime, built once."""
    from deploy.build import build_target

    folders = {}
    for name in RUNTIMES:
        folders[name] = tmp_path_factory.mktemp(name)
        build_target(
            folders[name],
            target="here",
            spec=target_spec(name),
            onnx_root=pristine / "onnx",
            device=fingerprint(read_target("here", target_spec(name))),
            on_progress=lambda line: None,
        )
    return folders


@pytest.fixture
def engines(built: dict[str, Path], runtime: str, tmp_path: Path) -> Path:
    """A copy of the runtime's engines that a test may spoil."""
    return Path(shutil.copytree(built[runtime], tmp_path / "engines"))
