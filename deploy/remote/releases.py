"""Releases from the host's side: what is deployed to a target's device, what serves there, and what served before."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from deploy.errors import TargetError
from deploy.remote.session import Say, connected
from deploy.remote.trees import bundle_tree, hashes
from deploy.remote.work import at_work
from deploy.target import read_target


def deploy(
    name: str, spec: Mapping[str, Any], *, variant: str, engine_sha256: str | None, onnx_root: Path, say: Say
) -> dict[str, Any]:
    """Install one variant on a target's device, test it there, and let it serve.

    Args:
        name: of the target.
        spec: its section, with a `host`.
        variant: name of one of its variants.
        engine_sha256: of the engine that was measured; None takes any.
        onnx_root: holds the bundles.
        say: takes lines for the user.

    Returns:
        What `deploy.install.releases.install` returns, and `sent`, in bytes.

    Raises:
        TargetError: the target has no such variant.
        DeployError: the device cannot be reached, is not fit, or the release fails its test; an earlier one goes on.
    """
    target = read_target(name, spec)
    chosen = next((each for each in target.variants if each.name == variant), None)
    if chosen is None:
        known = ", ".join(each.name for each in target.variants)
        msg = f"target {name!r} has no variant {variant!r}; it has {known}"
        raise TargetError(msg)
    tree = bundle_tree(onnx_root / chosen.onnx)
    # The bundle of a release lies in its folder, by this name.
    own = {**spec, "variants": {variant: {"onnx": "bundle", "precision": chosen.precision}}}
    with at_work(name, spec, say=say) as work:
        sent = work.session.send(list(tree.values()))
        release = {
            "target": name, "spec": own, "files": hashes(tree), "environment": work.environment,
            "keep": target.install.keep, "engine_sha256": engine_sha256,
        }  # fmt: skip
        done: dict[str, Any] = work.session.ask("install", release=release)
        work.session.tidy()
    return {**done, "sent": sent}


def roll_back(name: str, spec: Mapping[str, Any], *, to: str | None, say: Say) -> dict[str, Any]:
    """Let an earlier release serve again, after its test; see `deploy.install.releases.roll_back`.

    Raises:
        DeployError: the device cannot be reached, has no such release, or it fails its test.
    """
    with connected(read_target(name, spec), say=say) as session:
        session.ask("lock")
        done: dict[str, Any] = session.ask("roll_back", target=name, to=to)
    return done


def status(name: str, spec: Mapping[str, Any], *, say: Say) -> dict[str, Any]:
    """Ask a device for its releases; see `deploy.install.releases.status`.

    Raises:
        DeviceError: the device cannot be reached.
    """
    with connected(read_target(name, spec), say=say) as session:
        found: dict[str, Any] = session.ask("status", target=name)
    return found
