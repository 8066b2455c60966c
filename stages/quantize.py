"""Stage quantize: writes one FP16 or INT8 variant of the exported network as a bundle."""

import argparse
from pathlib import Path

from deploy.bundle import load_bundle
from deploy.files import replaced_folder
from deploy.preprocess import load_image, load_mask
from pipeline.base.errors import ParamsError
from pipeline.base.params import QuantizeStage, read_params
from pipeline.base.sections import QuantizeVariant
from pipeline.parts.index import Load
from pipeline.steps.quantize.int8 import Int8
from pipeline.steps.quantize.step import Recipe, quantize
from stages.boundary import run


def main() -> None:
    """Reads paths and parameters, and quantises."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--params", type=Path, required=True)
    parser.add_argument("--variant", required=True)
    parser.add_argument("--exported", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()
    params = read_params(args.params, QuantizeStage).quantize
    if args.variant not in params.variants:
        msg = f"--variant {args.variant!r} is not in `quantize.variants`: {', '.join(params.variants)}"
        raise ParamsError(msg)
    preprocess = load_bundle(args.exported).preprocess
    with replaced_folder(args.output) as output:
        quantize(
            output,
            variant=args.variant,
            exported=args.exported,
            data=args.data,
            subset_size=params.subset_size,
            recipe=_recipe(params.variants[args.variant]),
            max_drop=params.max_drop,
            load=Load.by(load_image, load_mask, preprocess=preprocess),
        )


def _recipe(chosen: QuantizeVariant) -> Recipe:
    if chosen.precision == "fp16":
        return Recipe(int8=None)
    how = Int8(layers=chosen.layers, smooth_quant=chosen.smooth_quant, bias_correction=chosen.bias_correction)
    return Recipe(int8=how, search=chosen.search, rest=chosen.rest)


if __name__ == "__main__":
    run(main)
