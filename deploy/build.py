"""Build every engine of a target on the device it will run on."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.bundle import Bundle, load_bundle
from deploy.conditions.state import power_mode
from deploy.device import check_device
from deploy.document import SCHEMA
from deploy.engine import Manifest, check_placement, engine_key, write_manifest
from deploy.errors import DeployError, EngineError, TargetError
from deploy.files import sha256_file, write_json
from deploy.isolated import build_isolated
from deploy.runtimes import get_runtime
from deploy.target import Target, Variant, read_target

SKIPPED = "skipped.json"


def build_target(
    output: Path,
    *,
    target: str,
    spec: Mapping[str, Any],
    onnx_root: Path,
    device: Mapping[str, Any],
    on_progress: Callable[[str], None],
) -> None:
    """Build every variant into `output/<variant>/`, test it, and say in `skipped.json` what cannot run here.

    A variant that fails does not keep the others from being built; all failures are named at the end.

    Args:
        output: folder to fill, made if missing; give the one of `replaced_folder` to replace an old set whole.
        target: the target's name.
        spec: the section `targets.<target>` of params.yaml.
        onnx_root: holds one bundle per variant of the model.
        device: the fingerprint on file; must be this device's own.
        on_progress: called with one line when a variant starts and ends.

    Raises:
        TargetError: the section is faulty.
        EngineError: this is another device, or at least one variant failed.
        RuntimeMissingError: the runtime is not installed.
    """
    wanted = read_target(target, spec)
    check_device(device, target=wanted)
    output.mkdir(parents=True, exist_ok=True)
    runtime = get_runtime(wanted.runtime)
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for variant in wanted.variants:
        reason = runtime.supports(wanted.settings(variant.precision))
        if reason is not None:
            skipped[variant.name] = reason
            on_progress(f"{target}/{variant.name}: skipped, {reason}")
            continue
        on_progress(f"{target}/{variant.name}: building for {wanted.runtime} in {variant.precision}")
        try:
            done = _build_variant(
                output / variant.name,
                variant,
                wanted=wanted,
                onnx_root=onnx_root,
                device=device,
                on_wait=functools.partial(_say_waiting, on_progress, f"{target}/{variant.name}"),
            )
        except DeployError as error:
            failed[variant.name] = str(error)
            done = f"failed, {error}"
        on_progress(f"{target}/{variant.name}: {done}")
    write_json(output / SKIPPED, {"schema": SCHEMA, "skipped": skipped})
    if failed:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in failed.items())
        msg = f"target {target!r}: {len(failed)} of {len(wanted.variants)} variants failed: {reasons}"
        raise EngineError(msg)


def bundle_of(variant: Variant, *, target: Target, onnx_root: Path) -> Bundle:
    """Load the bundle that a variant is built from.

    Raises:
        BundleError: the bundle is missing or faulty.
        TargetError: it was exported in a precision the variant cannot be built from.
    """
    bundle = load_bundle(onnx_root / variant.onnx)
    needed = get_runtime(target.runtime).EXPORTED_AS[variant.precision]
    if bundle.precision != needed:
        msg = (
            f"`targets.{target.name}.variants.{variant.name}` asks for precision {variant.precision!r} of the bundle "
            f"{variant.onnx!r}, which is {bundle.precision}; name a bundle in {needed}"
        )
        raise TargetError(msg)
    return bundle


def _say_waiting(on_progress: Callable[[str], None], place: str, seconds: float) -> None:
    on_progress(f"{place}: building, {seconds:.0f} s")


def _build_variant(
    folder: Path,
    variant: Variant,
    *,
    wanted: Target,
    onnx_root: Path,
    device: Mapping[str, Any],
    on_wait: Callable[[float], None],
) -> str:
    """Build and test one engine, and write its manifest; return a line that says how it went."""
    bundle = bundle_of(variant, target=wanted, onnx_root=onnx_root)
    folder.mkdir(parents=True, exist_ok=True)
    runtime, settings = get_runtime(wanted.runtime), wanted.settings(variant.precision)
    path = folder / runtime.ENGINE_FILE
    mode = power_mode()
    built = build_isolated(wanted.runtime, bundle.folder, path, settings, limit_s=wanted.build_limit_s, on_wait=on_wait)
    built.golden.require(f"engine {path}", remedy="compare the exported model's parity record")
    check_placement(
        built.placement, settings, target=wanted.name, allow_fallback=wanted.allow_fallback, name=variant.name
    )
    manifest = Manifest(
        target=wanted.name,
        variant=variant.name,
        precision=variant.precision,
        runtime=wanted.runtime,
        runtime_version=runtime.version(),
        onnx_sha256=bundle.onnx_sha256,
        bundle_variant=bundle.variant,
        key=engine_key(onnx_sha256=bundle.onnx_sha256, device=device, settings=settings),
        engine_file=path.name,
        engine_sha256=sha256_file(path),
        engine_bytes=path.stat().st_size,
        threads=wanted.threads,
        options=wanted.options,
        told=built.told,
        device=device,
        power_mode=mode,
        build_seconds=round(built.seconds, 3),
        placement=built.placement.as_dict(),
    )
    write_manifest(folder, manifest)
    return f"built in {built.seconds:.1f} s, {built.golden}, {built.placement}"
