"""An engine folder: the compiled file and the manifest that says what, for whom and from what it was built.

Nothing is loaded before the manifest fits: a foreign engine can crash the runtime instead of raising.
"""

import hashlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.bundle import Bundle, load_bundle
from deploy.device import differences, fingerprint
from deploy.document import SCHEMA, Document, read_document
from deploy.errors import EngineError
from deploy.files import sha256_file, write_json
from deploy.runtime import Engine, Option, OptionValue, Placement, Settings
from deploy.runtimes import RUNTIMES, get_runtime
from deploy.target import Target

MANIFEST = "manifest.json"
EDITED = "the manifest does not fit itself: it was edited"
# What runtimes call the types that a variant may ask for.
TYPES = {
    "bf16": {"bf16", "bfloat16"},
    "fp16": {"f16", "fp16", "float16", "half"},
    "int8": {"i8", "u8", "int8", "uint8"},
}


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of an engine.

    Attributes:
        key: identity of the engine, see `engine_key`.
        threads, options: what the target asked for.
        told: what the runtime was told, by its own names.
        device: the whole fingerprint of the machine it was built on.
        power_mode: the machine's when it was built; TensorRT chooses kernels by timing them.
        placement: where its nodes ran when it was tested.
    """

    target: str
    variant: str
    precision: str
    runtime: str
    runtime_version: str
    onnx_sha256: str
    bundle_variant: str
    key: str
    engine_file: str
    engine_sha256: str
    engine_bytes: int
    threads: int
    options: Mapping[str, OptionValue]
    told: Mapping[str, Any]
    device: Mapping[str, Any]
    power_mode: str | None
    build_seconds: float
    placement: Mapping[str, Any]

    @property
    def settings(self) -> Settings:
        """How it was built, and must be loaded."""
        return Settings(precision=self.precision, threads=self.threads, options=self.options)

    def as_target(self) -> Target:
        """Return as much of its target as a fingerprint takes."""
        options = {name: self.options.get(name, option.default) for name, option in self._known().items()}
        return Target(name=self.target, runtime=self.runtime, options=options, threads=self.threads)

    @property
    def fits_itself(self) -> bool:
        """Whether its key is that of what it says."""
        key = engine_key(onnx_sha256=self.onnx_sha256, device=self.device, settings=self.settings)
        return self.runtime_version == self.device.get("runtime_version") and self.key == key

    def other_options(self) -> list[str]:
        """Return one phrase for each option that another release of this package knew, or did not know yet."""
        known = self._known()
        unknown = [f"option {name!r} in the manifest, unknown here" for name in self.options if name not in known]
        return unknown + [f"option {name!r} not in the manifest" for name in known if name not in self.options]

    def _known(self) -> Mapping[str, Option]:
        return get_runtime(self.runtime).OPTIONS


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """A verified engine, ready to run; `load_seconds` is the runtime's share of the loading."""

    manifest: Manifest
    engine: Engine
    load_seconds: float


def engine_key(*, onnx_sha256: str, device: Mapping[str, Any], settings: Settings) -> str:
    """Name an engine by all that decides what it is.

    Args:
        onnx_sha256: of the model.
        device: the fingerprint, with the runtime and its version, and the driver or the Jetson's release.
        settings: precision, threads and options.

    Returns:
        16 hexadecimal digits.
    """
    parts = {
        "onnx_sha256": onnx_sha256,
        "device": {key: value for key, value in device.items() if key != "target"},
        "settings": [settings.precision, settings.threads, dict(settings.options)],
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def check_placement(placement: Placement, settings: Settings, *, target: str, allow_fallback: bool, name: str) -> None:
    """Refuse an engine that runs elsewhere, or in another precision, than its target says.

    Args:
        placement: what the runtime reports of the loaded engine.
        settings: what was asked for.
        target: the target's name.
        allow_fallback: the target's.
        name: of the variant.

    Raises:
        EngineError: it fell back, and the target does not allow that.
    """
    if allow_fallback:
        return
    total, strays = sum(placement.nodes.values()), placement.strays
    remedy = f"take the variant out, or set `targets.{target}.allow_fallback` to true and the record will tell"
    if strays:
        where = ", ".join(f"{count} on {place}" for place, count in placement.nodes.items())
        msg = (
            f"engine {name!r}: {len(strays)} of {total} nodes do not run on {placement.asked} ({where}), first "
            f"{', '.join(strays[:3])}; {remedy}"
        )
        raise EngineError(msg)
    wanted = settings.precision.partition("_")[0]
    found = {kind.lower() for kind in placement.precisions}
    if wanted in TYPES and found and not found & TYPES[wanted]:
        kinds = ", ".join(f"{kind} {count}" for kind, count in placement.precisions.items())
        msg = f"engine {name!r}: none of its {total} nodes computes in {wanted} ({kinds}); {remedy}"
        raise EngineError(msg)


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Write `folder/manifest.json`."""
    content = {
        "schema": SCHEMA,
        "target": manifest.target,
        "variant": manifest.variant,
        "precision": manifest.precision,
        "runtime": manifest.runtime,
        "runtime_version": manifest.runtime_version,
        "onnx_sha256": manifest.onnx_sha256,
        "bundle_variant": manifest.bundle_variant,
        "key": manifest.key,
        "engine": {
            "file": manifest.engine_file,
            "sha256": manifest.engine_sha256,
            "bytes": manifest.engine_bytes,
        },
        "threads": manifest.threads,
        "options": dict(manifest.options),
        "told": dict(manifest.told),
        "placement": dict(manifest.placement),
        "device": dict(manifest.device),
        "power_mode": manifest.power_mode,
        "build_seconds": manifest.build_seconds,
    }
    write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json` without touching the engine.

    Raises:
        EngineError: the manifest is missing or faulty.
    """
    document = read_document(folder / MANIFEST, error=EngineError, remedy="build it with `dvc repro compile@<target>`")
    runtime = document.choice("runtime", RUNTIMES)
    power_mode = document.get("power_mode")
    return Manifest(
        target=document.text("target"),
        variant=document.text("variant"),
        precision=document.choice("precision", tuple(get_runtime(runtime).EXPORTED_AS)),
        runtime=runtime,
        runtime_version=document.text("runtime_version"),
        onnx_sha256=document.text("onnx_sha256"),
        bundle_variant=document.text("bundle_variant"),
        key=document.text("key"),
        engine_file=_engine_file(document),
        engine_sha256=document.text("engine.sha256"),
        engine_bytes=document.integer("engine.bytes"),
        threads=document.integer("threads", minimum=0),
        options=document.mapping("options"),
        told=document.mapping("told"),
        placement=document.mapping("placement"),
        device=document.mapping("device"),
        power_mode=None if power_mode is None else document.text("power_mode"),
        build_seconds=document.number("build_seconds"),
    )


def open_engine(bundle: Path, engine: Path | None, *, target: Target | None = None) -> tuple[Bundle, LoadedEngine]:
    """Verify a bundle and an engine that was built from it, on this device, and load both.

    Args:
        bundle: folder of the bundle.
        engine: folder of the engine; None is the folder `engine` beside the bundle.
        target: what asks for it now; None takes the engine as it was built.

    Raises:
        BundleError: the bundle is faulty.
        EngineError: the engine does not fit this device or was built from another model.
        RuntimeMissingError: its runtime is not installed.
    """
    model = load_bundle(bundle)
    if engine is None:
        engine = Path(os.path.normpath(bundle / ".." / "engine"))
        if not (engine / MANIFEST).is_file():
            msg = f"engine {engine}: no engine lies beside the bundle {bundle}; name its folder with `--engine`"
            raise EngineError(msg)
    manifest = read_manifest(engine)
    if manifest.onnx_sha256 != model.onnx_sha256:
        msg = (
            f"engine {engine}: built from ONNX {manifest.onnx_sha256[:12]}, the bundle {bundle} holds "
            f"{model.onnx_sha256[:12]}; name the bundle {manifest.bundle_variant!r}, or build the engine again"
        )
        raise EngineError(msg)
    if not manifest.fits_itself:  # the runtime is asked for a fingerprint with the manifest's own options
        msg = f"engine {engine}: {EDITED}; build it again with `dvc repro -sf compile@{manifest.target}`"
        raise EngineError(msg)
    return model, load_engine(engine, device=fingerprint(manifest.as_target()), target=target)


def load_engine(folder: Path, *, device: Mapping[str, Any], target: Target | None = None) -> LoadedEngine:
    """Verify an engine, then load it.

    Args:
        folder: holds the engine and its manifest.
        device: the fingerprint taken now.
        target: what asks for it now; None takes the engine as it was built.

    Raises:
        EngineError: the engine is missing, truncated or tampered with, was built on another device, with another
            runtime version, threads or options, or the runtime refuses it or falls back.
        RuntimeMissingError: its runtime is not installed.
    """
    manifest = read_manifest(folder)
    verify_engine(folder, manifest, device=device, target=target)
    runtime = get_runtime(manifest.runtime)
    start = time.perf_counter()
    engine = runtime.load(folder / manifest.engine_file, manifest.settings)
    return LoadedEngine(manifest=manifest, engine=engine, load_seconds=time.perf_counter() - start)


def verify_engine(folder: Path, manifest: Manifest, *, device: Mapping[str, Any], target: Target | None = None) -> None:
    """Compare an engine with its manifest, and the manifest with the device, without loading anything.

    Raises:
        EngineError: with the first differences and the command that rebuilds the engine.
    """
    remedy = f"build it again with `dvc repro -sf compile@{manifest.target}`"
    path = folder / manifest.engine_file
    faults: list[str] = []
    if not path.is_file():
        faults = ["the file is missing"]
    elif (size := path.stat().st_size) != manifest.engine_bytes:
        faults = [f"it has {size} bytes, {manifest.engine_bytes} in the manifest"]
    elif (actual := sha256_file(path)) != manifest.engine_sha256:
        faults = [f"it has sha256 {actual[:12]}, {manifest.engine_sha256[:12]} in the manifest"]
    if faults:
        msg = f"engine {path}: {faults[0]}; {remedy}"
        raise EngineError(msg)
    found = [*differences(device, manifest.device), *manifest.other_options(), *_other_settings(manifest, target)]
    if not manifest.fits_itself:
        found.append(EDITED)
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        msg = f"engine {path}: built for another device or runtime: {'; '.join(found[:3])}{more}; {remedy}"
        raise EngineError(msg)


def _other_settings(manifest: Manifest, target: Target | None) -> list[str]:
    """Return one phrase for each setting that the target has changed since."""
    if target is None:
        return []
    asked = {"threads": target.threads, **target.options}
    built = {"threads": manifest.threads, **manifest.options}
    return [
        f"{name} {asked.get(name)!r} asked for, {built.get(name)!r} in the manifest"
        for name in asked
        if asked.get(name) != built.get(name)
    ]


def _engine_file(document: Document) -> str:
    """Return the engine's file name, which must stay in the manifest's own folder."""
    name = document.text("engine.file")
    if Path(name).name != name or name == ".." or "\\" in name:
        document.fail(f"`engine.file` {name!r} leaves the engine's folder")
    return name
