"""Releases of a target on a device: each is complete and tested before one rename makes it the one that serves."""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from deploy.document import SCHEMA, read_document
from deploy.errors import DeviceError
from deploy.files import (
    flush_folder,
    remove_folder,
    remove_leftovers,
    replaced_folder,
    system_text,
    write_json,
    write_text,
)
from deploy.install.process import CODE, Done, RemoteError, reason_of
from deploy.install.root import Root
from deploy.install.store import link

CURRENT = "current"
RECORD = "release.json"
ENVIRONMENT = "environment"  # a link in a release; in the folder of work, a file with the name of the one that it uses
PACKAGE = "package"
SHOWN = ("variant", "model", "engine_sha256", "runtime", "device_clock")  # of the record, by `slad status`
NAME = re.compile(r"(\d{4,})-([0-9a-f]{12})")
# The folder of the release is found before Python starts: a switch meanwhile cannot mix two releases.
RUN = """\
#!/bin/sh
# Predictions of this release: run image.jpg, a folder of images, or camera; run --help says more.
here=$(dirname -- "$(readlink -f -- "$0")") || exit 1
exec "$here/environment/bin/python" -c '{code}' "$here/package" run --bundle "$here/bundle" --engine "$here/engine" "$@"
"""


@dataclass(frozen=True)
class Wanted:
    """What a release is made of.

    Attributes:
        target: its name.
        spec: section `targets.<target>` with one variant, whose `onnx` is "bundle".
        files: of the bundle: sha256 by relative path.
        environment: key of the environment.
        keep: number of releases that stay, with the one that serves.
        engine_sha256: of the engine that was measured, which is the one to take; None takes any that passes the test.
    """

    target: str
    spec: Mapping[str, Any]
    files: Mapping[str, str]
    environment: str
    keep: int
    engine_sha256: str | None

    @property
    def variant(self) -> str:
        """Name of the one variant."""
        (name,) = self.spec["variants"]
        return str(name)

    def content(self, package: Path) -> str:
        """Return 12 digits that change with whatever the host decides of a release."""
        spec = {key: value for key, value in self.spec.items() if key not in ("host", "install", "budget")}
        parts = [self.target, spec, dict(self.files), self.environment, package.name, self.engine_sha256]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]


def install(root: Root, wanted: Wanted) -> dict[str, Any]:
    """Make a release, test it, and let it serve; the earlier one serves until then, whatever happens.

    An engine that was built on this device from the same model, with the same options, is taken: the very file that
    was measured. Where the same release serves already, it is tested again and nothing changes; where it is the newest
    one, and was rolled back from or never came to serve, it is taken up again.

    Returns:
        `release`, its name; `line`, what the test said; `engine`, where the engine comes from; `new`, whether it was
        made; and `removed`, names of those that went.

    Raises:
        RemoteError: the engine cannot be built, or the release fails its test.
        HostGoneError: the host is gone.
    """
    place = root.target(wanted.target)
    for folder in (place, place / "releases"):
        remove_leftovers(folder)
    content = wanted.content(root.package)
    serving = current(place)
    for name in dict.fromkeys([serving, *releases(place)[-1:]]):
        if name is None or not name.endswith(content):
            continue
        root.say(f"release {name} {'serves already' if name == serving else 'is there already'}")
        try:
            line = _tested(root, place, name)
        except (RemoteError, DeviceError) as error:
            root.say(f"it fails its test ({error}): making another")
            continue
        if name != serving:
            _switch(root, place, name)
        return {"release": name, "line": line, "engine": "as before", "new": name != serving, "removed": []}
    name = f"{_last_number(place) + 1:04d}-{content}"
    # It gets its name after its test: a run that was killed leaves no release that was never tested.
    with replaced_folder(place / "releases" / name) as fresh:
        engine, line = _fill(root, fresh, wanted, place=place, name=name)
    _switch(root, place, name)
    return {"release": name, "line": line, "engine": engine, "new": True, "removed": _prune(root, place, wanted.keep)}


def roll_back(root: Root, target: str, *, to: str | None) -> dict[str, Any]:
    """Let an earlier release serve again, after testing it.

    Args:
        root: the folder on the device.
        target: its name.
        to: name of the release, or its number; None takes the newest one before the one that serves.

    Raises:
        DeviceError: there is no such release.
        RemoteError: it fails its test; the one that serves stays.
    """
    place = root.target(target)
    serving, names = current(place), releases(place)
    if to is None:
        earlier = names[: names.index(serving)] if serving in names else []
        chosen = earlier[-1] if earlier else None
    else:
        chosen = next(
            (name for name in names if to == name or to.lstrip("0") == name.partition("-")[0].lstrip("0")), None
        )
    if chosen is None:
        wish = "no earlier release" if to is None else f"no release {to!r}"
        msg = (
            f"target {target!r}: {wish} is kept; there are {', '.join(names) or 'none'}, and {serving or 'none'} serves"
        )
        raise DeviceError(msg)
    line = _tested(root, place, chosen)
    _switch(root, place, chosen)
    return {"release": chosen, "before": serving, "line": line}


def status(place: Path) -> dict[str, Any]:
    """Describe the releases of a target, oldest first, and name the one that serves.

    Returns:
        `current`, a name or None, and `releases`: the record of each and `release`, its name; of one without a sound
        record, `release` and `error`.
    """
    return {"current": current(place), "releases": [_described(place / "releases" / name) for name in releases(place)]}


def releases(place: Path) -> list[str]:
    """Return the names of a target's releases, oldest first: by number, whatever the device's clock said."""
    folder = place / "releases"
    found = [each.name for each in folder.glob("*") if NAME.fullmatch(each.name)] if folder.is_dir() else []
    return sorted(found, key=lambda name: int(name.partition("-")[0]))


def current(place: Path) -> str | None:
    """Return the name of the release that serves, or None."""
    link = place / CURRENT
    return link.readlink().name if link.is_symlink() and (link / RECORD).is_file() else None


def used(root: Root) -> tuple[set[str], set[str]]:
    """Return the environments and packages that the releases and the work of all targets need."""
    working = {text for file in root.folder.glob(f"targets/*/work/{ENVIRONMENT}") if (text := system_text(file))}
    environments, packages = (
        {link.readlink().name for link in root.folder.glob(f"targets/*/releases/*/{kind}") if link.is_symlink()}
        for kind in (ENVIRONMENT, PACKAGE)
    )
    return working | environments, packages


def _fill(root: Root, fresh: Path, wanted: Wanted, *, place: Path, name: str) -> tuple[str, str]:
    """Put all of a release into a folder; return where its engine comes from, and what its test said."""
    root.store.lay_out(fresh / "bundle", wanted.files)
    for kind, there in ((PACKAGE, root.package), (ENVIRONMENT, root.environments / wanted.environment)):
        (fresh / kind).symlink_to(os.path.relpath(there, fresh))
    write_json(fresh / "spec.json", dict(wanted.spec))
    write_text(fresh / "run", RUN.format(code=CODE))
    (fresh / "run").chmod(0o755)
    found = _find_engine(root, fresh, wanted, place=place)
    if found is None:
        _build(root, fresh, wanted)
        root.say(f"testing release {name}")
        done = _test(root, fresh, wanted.target, environment=wanted.environment, package=root.package)
        how = "built" if wanted.engine_sha256 is None else "built anew: the one that was measured is not there"
        found = how, _passed(done, name)
    manifest = json.loads((fresh / "engine/manifest.json").read_text(encoding="utf-8"))
    bundle = json.loads((fresh / "bundle/bundle.json").read_text(encoding="utf-8"))
    record = {
        "schema": SCHEMA,
        "target": wanted.target,
        "variant": wanted.variant,
        "precision": manifest["precision"],
        "runtime": f"{manifest['runtime']} {manifest['runtime_version']}",
        "model": bundle["name"],
        "onnx_sha256": manifest["onnx_sha256"],
        "engine_sha256": manifest["engine"]["sha256"],
        "environment": wanted.environment,
        "package": root.package.name,
        "lineage": bundle["lineage"],
        "device_clock": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }
    write_json(fresh / RECORD, record)
    return found


def _find_engine(root: Root, fresh: Path, wanted: Wanted, *, place: Path) -> tuple[str, str] | None:
    """Take over an engine of this model and device that is as the target asks, and passes its test.

    Returns:
        Where it comes from, and what its test said; None where there is none.
    """
    serving = current(place)
    candidates = {"compiled before": place / "work/engines" / wanted.variant}
    if serving is not None:
        candidates[f"of release {serving}"] = place / "releases" / serving / "engine"
    for name, folder in candidates.items():
        if folder.is_dir() and _is_measured(folder, wanted):
            shutil.copytree(folder, fresh / "engine", copy_function=link)
            root.say(f"testing the engine {name}")
            done = _test(root, fresh, wanted.target, environment=wanted.environment, package=root.package)
            if done.code == 0:
                return name, done.output.strip()
            root.say(f"it is not taken: {reason_of(done)}")
            shutil.rmtree(fresh / "engine")
    return None


def _is_measured(engine: Path, wanted: Wanted) -> bool:
    """Say whether an engine is the one that was measured, where one was; its test compares the file with this."""
    if wanted.engine_sha256 is None:
        return True
    try:
        manifest = json.loads((engine / "manifest.json").read_text(encoding="utf-8"))
        return bool(manifest["engine"]["sha256"] == wanted.engine_sha256)
    except (OSError, ValueError, LookupError, TypeError):
        return False


def _build(root: Root, fresh: Path, wanted: Wanted) -> None:
    """Build the engine; its bundle is the one that the release holds."""
    asked = ("--target", wanted.target, "--spec", "spec.json")
    for arguments in (
        ("fingerprint", *asked, "--output", "device.json"),
        ("build", *asked, "--onnx", ".", "--device", "device.json", "--output", "engines"),
    ):
        done = root.deploy(wanted.environment, *arguments, folder=fresh)
        if done.code:
            raise RemoteError(done.code, reason_of(done))
    skipped = json.loads((fresh / "engines/skipped.json").read_text(encoding="utf-8"))["skipped"]
    if wanted.variant in skipped:
        msg = f"variant {wanted.variant!r} cannot run on this device: {skipped[wanted.variant]}; deploy another one"
        raise DeviceError(msg)
    (fresh / "engines" / wanted.variant).rename(fresh / "engine")
    shutil.rmtree(fresh / "engines")
    (fresh / "device.json").unlink()


def _tested(root: Root, place: Path, name: str) -> str:
    """Test a release where it lies, by its own environment and package; return what the test said.

    Raises:
        RemoteError: it fails.
        DeviceError: it is not whole.
    """
    folder = place / "releases" / name
    remedy = f"remove {folder}, and deploy again"
    record = read_document(folder / RECORD, error=DeviceError, remedy=remedy)
    root.say(f"testing release {name}")
    done = _test(
        root,
        folder,
        record.text("target"),
        environment=record.text(ENVIRONMENT),
        package=root.folder / "packages" / record.text(PACKAGE),
    )
    return _passed(done, name)


def _passed(done: Done, name: str) -> str:
    if done.code:
        raise RemoteError(done.code, f"release {name}: {reason_of(done)}")
    return done.output.strip()


def _test(root: Root, folder: Path, target: str, *, environment: str, package: Path) -> Done:
    asked = ("--target", target, "--spec", "spec.json", "--bundle", "bundle", "--engine", "engine")
    return root.deploy(environment, "selftest", *asked, folder=folder, package=package)


def _switch(root: Root, place: Path, name: str) -> None:
    """Let a release serve: by one rename of a link."""
    root.say(f"switching to release {name}")
    fresh = place / f".{CURRENT}.new-{os.getpid()}"
    fresh.unlink(missing_ok=True)
    fresh.symlink_to(Path("releases", name))
    fresh.replace(place / CURRENT)
    flush_folder(place)


def _prune(root: Root, place: Path, keep: int) -> list[str]:
    """Remove the oldest releases but the one that serves; return the names of those that went."""
    serving, gone = current(place), []
    for name in releases(place)[:-keep]:
        if name == serving:
            continue
        try:
            remove_folder(place / "releases" / name)
        except OSError as error:  # the new release serves: this is no failure of its deployment
            root.say(f"warning: release {name} cannot be removed ({error})")
        else:
            gone.append(name)
    return gone


def _last_number(place: Path) -> int:
    names = releases(place)
    return int(names[-1].partition("-")[0]) if names else 0


def _described(folder: Path) -> dict[str, Any]:
    try:
        record = read_document(folder / RECORD, error=DeviceError, remedy="remove the folder")
        for key in SHOWN:
            record.text(key)
    except DeviceError as error:
        return {"release": folder.name, "error": str(error)}
    return {"release": folder.name, **record.content}
