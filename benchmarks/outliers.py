"""What one loud channel costs in INT8, and what leaving groups of layers in FP32 brings back.

Large pretrained transformers have channels that dwarf all others; the built-in students have none. This script plants
one before fc1 of some blocks of the exported student, which changes no FP32 answer: the channel of the
LayerNormalization is multiplied, and its row of fc1's weights divided, by the same factor. Then it makes `int8` and
`int8_auto` of it and compares both with FP32 on the validation split. Command: `python -m benchmarks.outliers`, from
the project's folder, after `slad repro`. A minute on 2 cores.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from deploy.bundle import load_bundle
from deploy.preprocess import load_image, load_mask
from pipeline.parts.bundle import MODEL
from pipeline.parts.index import Load
from pipeline.steps.quantize.int8 import Int8
from pipeline.steps.quantize.step import Recipe, quantize

EXPORTED, DATA = Path("artifacts/onnx/fp32"), Path("artifacts/data")
HOW = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")
RECIPES = {"int8": Recipe(int8=HOW), "int8_auto": Recipe(int8=HOW, search=True)}


def plant(folder: Path, *, blocks: Sequence[int], factor: float) -> None:
    """Plants a loud channel into the exported network in `folder`: of those before fc1, the one that says least."""
    model = onnx.load(folder / MODEL)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    nodes = {node.name: node for node in model.graph.node}

    def change(name: str, values: NDArray[np.float32]) -> None:
        tensors[name].CopyFrom(numpy_helper.from_array(values, name))

    for block in blocks:
        norm, fc1 = nodes[f"blocks.{block}.norm2/LayerNormalization"], nodes[f"blocks.{block}.mlp.fc1/MatMul"]
        weights = numpy_helper.to_array(tensors[fc1.input[1]]).copy()
        channel = int(np.abs(weights).sum(axis=1).argmin())
        weights[channel] /= factor
        change(fc1.input[1], weights)
        for name in norm.input[1:]:
            values = numpy_helper.to_array(tensors[name]).copy()
            values[channel] *= factor
            change(name, values)
    (folder / MODEL).write_bytes(model.SerializeToString(deterministic=True))


def main() -> None:
    """Prints one line per variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--blocks", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--factor", type=float, default=30000)
    parser.add_argument("--max-drop", type=float, default=0.5, help="points that int8_auto may lose")
    args = parser.parse_args()
    load = Load.by(load_image, load_mask, preprocess=load_bundle(EXPORTED).preprocess)
    with tempfile.TemporaryDirectory() as scratch:
        loud = shutil.copytree(EXPORTED, Path(scratch, "fp32"))
        plant(loud, blocks=args.blocks, factor=args.factor)
        for exported in (EXPORTED, loud):
            for name, recipe in RECIPES.items():
                output = Path(scratch, f"{exported.parent.name}_{name}")
                output.mkdir()
                parity = quantize(
                    output, variant=name, recipe=recipe, exported=exported, data=DATA,
                    subset_size=128, max_drop=args.max_drop, load=load,
                )  # fmt: skip
                record = json.loads((output / "quantization.json").read_text())
                print(
                    f"{'as exported' if exported is EXPORTED else 'loud channels'}, {name}: "
                    f"{parity.accuracy_from_percent:.1f} % in FP32, {parity.accuracy_to_percent:.1f} % in INT8 "
                    f"(change {parity.points:+.2f} points, {parity.change_low_points:+.2f} to "
                    f"{parity.change_high_points:+.2f}), left in FP32: {', '.join(record['left_out']) or 'none'}, "
                    f"{len(record.get('tries', [1]))} evaluations",
                    flush=True,
                )


if __name__ == "__main__":
    main()
