"""Merge, export and quantize as one chain: each works on what the step before it wrote."""

from dataclasses import replace

import numpy as np
import pytest
from safetensors.torch import save_file

from pipeline.parts.adapters.inject import inject, own_factors
from pipeline.parts.adapters.saved import trained_state
from pipeline.parts.index import Loaded, read_index
from pipeline.parts.models import ModelSpec
from pipeline.parts.predict import torch_logits
from pipeline.steps.export import export
from pipeline.steps.merge import merge_models
from pipeline.steps.quantize.int8 import Int8
from pipeline.steps.quantize.step import Recipe, quantize
from tests import tiny
from tests.unit.pipeline.parts.adapters.families import fill


@pytest.fixture(scope="session")
def chain(tmp_path_factory):
    """Folders data, distilled, merged, onnx/fp32, onnx/int8 of one small student with random adapters."""
    root = tmp_path_factory.mktemp("chain")
    tiny.prepared(root / "data", tiny.write_images(root / "images"))
    distilled = root / "distilled"
    distilled.mkdir()
    images = Loaded(root / "images", read_index(root / "data")[0].parts["validation"], load=tiny.LOAD.image)
    trained = {}
    for role, which in (("teacher", tiny.TEACHER), ("student", tiny.STUDENT)):
        model = tiny.model(which)
        save_file(model.state_dict(), root / f"{role}.safetensors")
        inject(model, own_factors(model, ("q", "k", "v"), rank=2), scale=2.0)
        fill(model)
        state, described = trained_state(model, list(model.head.parameters()))
        save_file(state, distilled / f"{role}.safetensors", metadata=described)
        trained[role] = tiny.stacked(torch_logits(model, images))
    np.savez(distilled / "validation_logits.npz", places=np.arange(len(images)), **trained)
    (root / "params.yaml").write_text("seed: 0\n")
    (root / "onnx").mkdir()
    merge_to(root, root / "merged")
    export_to(root, root / "onnx/fp32")
    quantize_to(root, root / "onnx/int8")
    return root


def spec(root, which) -> ModelSpec:
    role = "teacher" if which is tiny.TEACHER else "student"
    return replace(which, weights=str(root / f"{role}.safetensors"))


def merge_to(root, output, *, tolerance=1e-5, distilled=None):
    output.mkdir()
    return merge_models(
        output,
        distilled=distilled or root / "distilled",
        data=root / "data",
        teacher=spec(root, tiny.TEACHER),
        student=spec(root, tiny.STUDENT),
        tolerance=tolerance,
        load=tiny.LOAD,
    )


def export_to(root, output, *, tolerance=1e-4, program=False):
    output.mkdir()
    return export(
        output,
        merged=root / "merged",
        data=root / "data",
        student=tiny.STUDENT,
        preprocess=vars(tiny.PREPROCESS),
        opset=18,
        tolerance=tolerance,
        golden_count=4,
        program=program,
        params=root / "params.yaml",
        load=tiny.LOAD,
    )


INT8 = Int8(layers="linear", smooth_quant=0.95, bias_correction="fast")
RECIPES = {
    "fp16": Recipe(int8=None),
    "int8": Recipe(int8=INT8),
    "int8_full": Recipe(int8=replace(INT8, layers="full")),
    "int8_mlp": Recipe(int8=replace(INT8, layers="mlp")),
    "int8_auto": Recipe(int8=INT8, search=True),
    "int8_fp16": Recipe(int8=INT8, rest="fp16"),
    "int8_auto_fp16": Recipe(int8=INT8, rest="fp16", search=True),
}


def quantize_to(root, output, *, variant=None, data="data", max_drop=100.0):
    output.mkdir(parents=True)
    return quantize(
        output,
        variant=output.name,
        recipe=RECIPES[variant or output.name],
        exported=root / "onnx/fp32",
        data=root / data,
        subset_size=6,
        max_drop=max_drop,
        load=tiny.LOAD,
    )
