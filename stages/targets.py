"""The targets of params.yaml against the runtimes that they name: before anything long runs."""

from collections.abc import Mapping

from deploy.errors import EngineError, RuntimeMissingError, TargetError
from deploy.runtimes import get_runtime
from deploy.target import Target, read_target
from deploy.trial import unfit
from pipeline.base.params import Params
from pipeline.base.sections import TargetParams


def check_targets(params: Params) -> None:
    """Refuses what no device could build.

    Raises:
        TargetError: naming every target with an unknown option, a wrong value, a file in another precision than its
            engine needs, or another host.
    """
    faults = []
    for name, spec in params.targets.items():
        try:
            faults += _faults(read_target(name, spec.model_dump()), params.made, program=params.export.program)
        except TargetError as error:
            faults.append(str(error))
    if faults:
        raise TargetError("; ".join(faults))


def check_devices(targets: Mapping[str, TargetParams]) -> None:
    """Refuses targets that this machine cannot run: what fails after a long training fails before it too.

    Raises:
        RuntimeMissingError: only because runtimes are not installed.
        EngineError: a device or provider is not there, or does not execute.
    """
    found = unfit({name: spec.model_dump() for name, spec in targets.items()})
    if found:
        reasons = "; ".join(f"target {name!r}: {answer['error']}" for name, answer in found.items())
        msg = f"nothing was run: {reasons}; or run without the target, `slad doctor` says more"
        raise (RuntimeMissingError if all(answer["missing"] for answer in found.values()) else EngineError)(msg)


def _faults(target: Target, made: Mapping[str, str], *, program: bool) -> list[str]:
    faults = []
    if get_runtime(target.runtime).MADE_FROM == "program" and not program:
        faults.append(
            f"`targets.{target.name}.runtime` {target.runtime!r} compiles the exported program, but "
            "`export.program` is false; set it to true"
        )
    if target.host is not None:
        faults.append(
            f"`targets.{target.name}.host` is {target.host!r}, but engines are built where the pipeline runs; take the "
            "key out, and run `python -m deploy build` and `measure` on the device"
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
