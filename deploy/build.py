"""Build every engine of a target on the device it will run on."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from deploy.bundle import Bundle, load_bundle
from deploy.device import check_device
from deploy.document import SCHEMA
from deploy.engine import Manifest, load_engine, write_manifest
from deploy.errors import DeployError, EngineError, TargetError
from deploy.files import sha256_file, write_json
from deploy.golden import check_golden
from deploy.runtimes import get_runtime
from deploy.target import EXPORTED_AS, Target, Variant, read_target

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
    check_device(device, target=target, runtime=wanted.runtime)
    output.mkdir(parents=True, exist_ok=True)
    runtime = get_runtime(wanted.runtime)
    skipped: dict[str, str] = {}
    failed: dict[str, str] = {}
    for variant in wanted.variants:
        reason = runtime.supports(variant.precision)
        if reason is not None:
            skipped[variant.name] = reason
            on_progress(f"{target}/{variant.name}: skipped, {reason}")
            continue
        on_progress(f"{target}/{variant.name}: building for {wanted.runtime} in {variant.precision}")
        try:
            done = _build_variant(output / variant.name, variant, wanted=wanted, onnx_root=onnx_root, device=device)
        except DeployError as error:
            failed[variant.name] = str(error)
            done = f"failed, {error}"
        on_progress(f"{target}/{variant.name}: {done}")
    write_json(output / SKIPPED, {"schema": SCHEMA, "skipped": skipped})
    if failed:
        reasons = "; ".join(f"{name!r}: {reason}" for name, reason in failed.items())
        msg = f"target {target!r}: {len(failed)} of {len(wanted.variants)} variants failed: {reasons}"
        raise EngineError(msg)


def bundle_of(variant: Variant, *, target: str, onnx_root: Path) -> Bundle:
    """Load the bundle that a variant is built from.

    Raises:
        BundleError: the bundle is missing or faulty.
        TargetError: it was exported in a precision the variant cannot be built from.
    """
    bundle = load_bundle(onnx_root / variant.onnx)
    if bundle.precision != EXPORTED_AS[variant.precision]:
        msg = (
            f"`targets.{target}.variants.{variant.name}` asks for precision {variant.precision!r} of the bundle "
            f"{variant.onnx!r}, which is {bundle.precision}; name a bundle in {EXPORTED_AS[variant.precision]}"
        )
        raise TargetError(msg)
    return bundle


def _build_variant(
    folder: Path, variant: Variant, *, wanted: Target, onnx_root: Path, device: Mapping[str, Any]
) -> str:
    """Build one engine, write its manifest, load it back and test it; return a line that says how it went."""
    bundle = bundle_of(variant, target=wanted.name, onnx_root=onnx_root)
    folder.mkdir(parents=True, exist_ok=True)
    runtime = get_runtime(wanted.runtime)
    path = folder / runtime.ENGINE_FILE
    start = time.perf_counter()
    options = runtime.build(bundle.onnx, path, precision=variant.precision, threads=wanted.threads)
    seconds = time.perf_counter() - start
    manifest = Manifest(
        target=wanted.name,
        variant=variant.name,
        precision=variant.precision,
        runtime=wanted.runtime,
        runtime_version=runtime.version(),
        onnx_sha256=bundle.onnx_sha256,
        bundle_variant=bundle.variant,
        engine_file=path.name,
        engine_sha256=sha256_file(path),
        engine_bytes=path.stat().st_size,
        options=options,
        device=device,
        build_seconds=round(seconds, 3),
    )
    write_manifest(folder, manifest)
    error, tolerance = _self_test(folder, bundle, device=device)
    return f"built in {seconds:.1f} s, relative error {error:.2g} (at most {tolerance:g})"


def _self_test(folder: Path, bundle: Bundle, *, device: Mapping[str, Any]) -> tuple[float, float]:
    """Load the engine as a user would, and run the golden inputs; return relative error and tolerance."""
    loaded = load_engine(folder, device=device)
    check = check_golden(loaded.engine, bundle, precision=loaded.manifest.precision)
    if not check.passed:
        msg = (
            f"engine {folder / loaded.manifest.engine_file}: relative error {check.relative_error:.3g} on the golden "
            f"inputs, at most {check.tolerance:g} allowed; compare the exported model's parity record"
        )
        raise EngineError(msg)
    return check.relative_error, check.tolerance
