"""An engine folder: the compiled file and the manifest that says what, for whom and from what it was built.

Nothing is loaded before the manifest fits: a foreign engine can crash the runtime instead of raising.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.device import differences
from deploy.document import SCHEMA, Document, read_document
from deploy.errors import EngineError
from deploy.files import sha256_file, write_json
from deploy.runtime import Engine
from deploy.runtimes import get_runtime
from deploy.target import PRECISIONS

MANIFEST = "manifest.json"


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of an engine; `device` is the whole fingerprint of the machine it was built on."""

    target: str
    variant: str
    precision: str
    runtime: str
    runtime_version: str
    onnx_sha256: str
    bundle_variant: str
    engine_file: str
    engine_sha256: str
    engine_bytes: int
    options: Mapping[str, Any]
    device: Mapping[str, Any]
    build_seconds: float


@dataclass(frozen=True, kw_only=True)
class LoadedEngine:
    """A verified engine, ready to run; `load_seconds` is the runtime's share of the loading."""

    manifest: Manifest
    engine: Engine
    load_seconds: float


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
        "engine": {
            "file": manifest.engine_file,
            "sha256": manifest.engine_sha256,
            "bytes": manifest.engine_bytes,
        },
        "options": dict(manifest.options),
        "device": dict(manifest.device),
        "build_seconds": manifest.build_seconds,
    }
    write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> Manifest:
    """Read `folder/manifest.json` without touching the engine.

    Raises:
        EngineError: the manifest is missing or faulty.
    """
    document = read_document(folder / MANIFEST, error=EngineError, remedy="build it with `dvc repro compile@<target>`")
    return Manifest(
        target=document.text("target"),
        variant=document.text("variant"),
        precision=document.choice("precision", PRECISIONS),
        runtime=document.text("runtime"),
        runtime_version=document.text("runtime_version"),
        onnx_sha256=document.text("onnx_sha256"),
        bundle_variant=document.text("bundle_variant"),
        engine_file=_engine_file(document),
        engine_sha256=document.text("engine.sha256"),
        engine_bytes=document.integer("engine.bytes"),
        options=document.mapping("options"),
        device=document.mapping("device"),
        build_seconds=document.number("build_seconds"),
    )


def load_engine(folder: Path, *, device: Mapping[str, Any], threads: int | None = None) -> LoadedEngine:
    """Verify an engine, then load it.

    Args:
        folder: holds the engine and its manifest.
        device: the fingerprint taken now.
        threads: what the target asks for; None takes what the engine was built with.

    Raises:
        EngineError: the engine is missing, truncated or tampered with, was built on another device, with another
            runtime version or number of threads, or the runtime refuses it.
        RuntimeMissingError: its runtime is not installed.
    """
    manifest = read_manifest(folder)
    verify_engine(folder, manifest, device=device, threads=threads)
    runtime = get_runtime(manifest.runtime)
    start = time.perf_counter()
    engine = runtime.load(
        folder / manifest.engine_file, precision=manifest.precision, threads=int(manifest.options.get("threads", 0))
    )
    return LoadedEngine(manifest=manifest, engine=engine, load_seconds=time.perf_counter() - start)


def verify_engine(folder: Path, manifest: Manifest, *, device: Mapping[str, Any], threads: int | None = None) -> None:
    """Compare an engine with its manifest, and the manifest with the device, without loading anything.

    Raises:
        EngineError: with the first differences and the command that rebuilds the engine.
    """
    remedy = f"build it again with `dvc repro -f compile@{manifest.target}`"
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
    found = differences(device, manifest.device)
    if manifest.runtime_version != device.get("runtime_version") and not found:
        found = [
            f"runtime_version {device.get('runtime_version')!r} here, {manifest.runtime_version!r} in the manifest"
        ]
    built_with = manifest.options.get("threads", 0)
    if threads is not None and threads != built_with:
        found.append(f"threads {threads!r} asked for, {built_with!r} in the manifest")
    if found:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        msg = f"engine {path}: built for another device or runtime: {'; '.join(found[:3])}{more}; {remedy}"
        raise EngineError(msg)


def _engine_file(document: Document) -> str:
    """Return the engine's file name, which must stay in the manifest's own folder."""
    name = document.text("engine.file")
    if Path(name).name != name or name == ".." or "\\" in name:
        document.fail(f"`engine.file` {name!r} leaves the engine's folder")
    return name
