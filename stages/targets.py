"""The targets of params.yaml against the runtimes that they name: before anything long runs."""

from collections.abc import Mapping

from deploy.errors import TargetError
from deploy.runtimes import get_runtime
from deploy.target import Target, read_target
from pipeline.base.params import Params


def check_targets(params: Params) -> None:
    """Refuses what no device could build.

    Raises:
        TargetError: naming every target with an unknown option, a wrong value, a file in another precision than its
            engine needs.
    """
    faults = []
    for name, spec in params.targets.items():
        try:
            faults += _faults(read_target(name, spec.model_dump()), params.made, program=params.export.program)
        except TargetError as error:
            faults.append(str(error))
    if faults:
        raise TargetError("; ".join(faults))


def _faults(target: Target, made: Mapping[str, str], *, program: bool) -> list[str]:
    faults = []
    if get_runtime(target.runtime).MADE_FROM == "program" and not program:
        faults.append(
            f"`targets.{target.name}.runtime` {target.runtime!r} compiles the exported program, but "
            "`export.program` is false; set it to true"
        )
    for variant in target.variants:
        needed = get_runtime(target.runtime).EXPORTED_AS[variant.precision]
        if made[variant.onnx] != needed:
            faults.append(
                f"`targets.{target.name}.variants.{variant.name}.precision` is {variant.precision!r}, which "
                f"{target.runtime} makes of a file in {needed}, but {variant.onnx!r} is in {made[variant.onnx]}; "
                "name another"
            )
    return faults
