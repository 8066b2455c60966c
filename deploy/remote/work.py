"""What the stages do on a target's device: fingerprint, build, measure; and the doctor."""

import contextlib
import json
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from deploy.build import SKIPPED
from deploy.engine import MANIFEST
from deploy.errors import (
    DeviceError,
    EngineError,
    MeasureError,
    OverBudgetError,
    RuntimeMissingError,
    TargetError,
)
from deploy.files import sha256_file
from deploy.measure.plan import Plan
from deploy.measure.record import RECORD
from deploy.remote.session import Say, Session, connected, understood
from deploy.remote.ssh import plain
from deploy.remote.trees import Blob, Tree, bundles_tree, hashes, test_split_tree, text_blob
from deploy.remote.wheel import LOADGEN, requirements_of
from deploy.target import Target, read_target

CLOCK_S = 300  # certificates and the times in records suffer from more


class Work:
    """A device with an environment for a target's engines; see `at_work`.

    Args:
        session: to the device.
        target: the target.
        spec: its section.
        environment: key of the environment.
    """

    def __init__(self, session: Session, target: Target, spec: Mapping[str, Any], *, environment: str) -> None:
        self.session, self.environment = session, environment
        self._target, self._spec = target, spec

    def fingerprint(self) -> dict[str, Any]:
        """Describe the device as the target's engines see it; see `deploy.device.fingerprint`."""
        self._hand_over({"spec.json": self._spec})
        return self._read(self._command("fingerprint", *self._asked())["output"])

    def build(self, output: Path, *, onnx_root: Path, device: Mapping[str, Any]) -> None:
        """Build the engines on the device, where they stay; their manifests come back.

        Args:
            output: existing folder, filled as by `deploy.build.build_target`, but for the engines.
            onnx_root: holds one bundle per variant of the model.
            device: the fingerprint on file.
        """
        self._send_bundles(onnx_root)
        self._hand_over({"spec.json": self._spec, "device.json": device})
        here = ("--onnx", "onnx", "--device", "given/device.json")
        self._command("build", *self._asked(), *here, "--output", "engines")
        self.session.fetch("engines", [f"*/{MANIFEST}", SKIPPED], output, target=self._target.name)
        self.session.tidy()

    def measure(
        self, output: Path, *, onnx_root: Path, engines: Path, data: Path, device: Mapping[str, Any], plan: Plan
    ) -> dict[str, Any]:
        """Measure the engines on the device; the record and its raw data come back.

        Args:
            output: existing folder, filled as by `deploy.measure.step.measure_target`.
            onnx_root: holds the bundles.
            engines: what `build` filled.
            data: the data folder; its test split is sent.
            device: the fingerprint on file.
            plan: what is measured.

        Returns:
            The record, with what failed in it.

        Raises:
            MeasureError: nothing was measured, or the engines there are not those of the manifests.
        """
        self._check_engines(engines)
        self._send_bundles(onnx_root)
        self.session.check_out(test_split_tree(data), "data", target=self._target.name)
        self._hand_over({"spec.json": self._spec, "device.json": device})
        here = ("--onnx", "onnx", "--device", "given/device.json", "--engines", "engines", "--data", "data")
        asked = (
            "--profile", plan.profile, "--scenarios", *plan.asked, "--queries", str(plan.queries), "--seconds",
            str(plan.seconds), "--attempts", str(plan.attempts), "--seed", str(plan.seed),
        )  # fmt: skip
        self.session.ask("remove", target=self._target.name, folder="measured")
        # What failed, and what is over the budget, is in the record, which comes back nevertheless.
        good = (MeasureError.exit_code, OverBudgetError.exit_code)
        done = self._command("measure", *self._asked(), *here, *asked, "--output", "measured", good=good)
        self.session.fetch("measured", ["*"], output, target=self._target.name)
        if not (output / RECORD).is_file():
            raise MeasureError(plain(done["reason"]))
        record = self._read((output / RECORD).read_bytes())
        self.session.tidy()
        return record

    def examine(self) -> dict[str, Any]:
        """Have the device's own doctor examine it; see `deploy.doctor.examine`."""
        self._hand_over({"spec.json": self._spec})
        good = (EngineError.exit_code, RuntimeMissingError.exit_code)  # that a target will not work is in the report
        return self._read(self._command("doctor", *self._asked(), "--json", good=good)["output"])

    def _asked(self) -> tuple[str, ...]:
        return ("--target", self._target.name, "--spec", "given/spec.json")

    def _command(self, *arguments: str, good: Sequence[int] = ()) -> dict[str, Any]:
        """Run `python -m deploy`; the answer holds `output`, and `reason` where its exit code was one of `good`."""
        asked = {"environment": self.environment, "arguments": arguments, "good": list(good)}
        answer: dict[str, Any] = self.session.ask("command", target=self._target.name, **asked)
        return answer

    def _read(self, document: str | bytes) -> dict[str, Any]:
        with understood(str(self._target.host)):
            content: dict[str, Any] = dict(_plain(json.loads(document)))
            return content

    def _hand_over(self, values: Mapping[str, Any]) -> None:
        tree = {name: text_blob(json.dumps(value)) for name, value in values.items()}
        self.session.check_out(tree, "given", target=self._target.name)

    def _send_bundles(self, onnx_root: Path) -> None:
        tree = bundles_tree(onnx_root, (variant.onnx for variant in self._target.variants))
        self.session.check_out(tree, "onnx", target=self._target.name)

    def _check_engines(self, engines: Path) -> None:
        """Refuse engines that are not those whose manifests came back: another run may have built others since."""
        ours = {file.parent.name: file.read_bytes() for file in engines.glob(f"*/{MANIFEST}")}
        with tempfile.TemporaryDirectory() as folder:
            there = Path(folder)
            self.session.fetch("engines", [f"*/{MANIFEST}"], there, target=self._target.name)
            theirs = {file.parent.name: file.read_bytes() for file in there.glob(f"*/{MANIFEST}")}
        others = sorted(name for name in {*ours, *theirs} if ours.get(name) != theirs.get(name))
        if others:
            msg = (
                f"device {self._target.host!r}: its engines of {self._target.name!r} are not those of {engines} "
                f"({', '.join(others)}); build them again with `dvc repro -sf compile@{self._target.name}`"
            )
            raise EngineError(msg)


def _plain(value: Any) -> Any:
    """Clean all texts of a document: see `deploy.remote.ssh.plain`."""
    if isinstance(value, dict):
        return {plain(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    return plain(value) if isinstance(value, str) else value


@contextlib.contextmanager
def at_work(name: str, spec: Mapping[str, Any], *, say: Say) -> Iterator[Work]:
    """Connect to a target's device, hold it, check that it has room, and see to its environment.

    Args:
        name: of the target.
        spec: its section, with a `host`.
        say: takes lines for the user.

    Raises:
        TargetError: the section is faulty.
        DeviceError: the device cannot be reached, or is not fit, or its environment cannot be made.
    """
    target = read_target(name, spec)
    wheels = _wheels(target)
    wanted = _environment(target, wheels)
    with connected(target, say=say) as session:
        session.ask("lock")
        room = session.ask("room")
        with understood(str(target.host)):
            _check_room(room, target, say=say)
        if not session.ask("ready", wanted=wanted):  # what has been installed is not kept as wheels too
            session.send(list(wheels.values()))
        yield Work(session, target, spec, environment=session.ask("environment", wanted=wanted))


def _environment(target: Target, wheels: Tree) -> dict[str, Any]:
    install = target.install
    extras = [target.runtime] if install.packages is None else []
    # The wheels of a device without a network are what its owner chose; our own issuer takes LoadGen's place there.
    if install.wheels is None or any(name.startswith("mlcommons_loadgen-") for name in wheels):
        extras.append(LOADGEN)
    return {
        "system_site_packages": install.system_site_packages,
        "requirements": requirements_of(*extras) + list(install.packages or ()),
        "wheels": hashes(wheels),
    }


def _wheels(target: Target) -> Tree:
    """List the wheels that are sent; {} lets pip on the device use its index."""
    if target.install.wheels is None:
        return {}
    folder = Path(target.install.wheels).expanduser()
    files = sorted(folder.glob("*.whl"))
    if not files:
        msg = f"`targets.{target.name}.install.wheels` {str(folder)!r} has no wheels; `pip download` fills it"
        raise TargetError(msg)
    return {file.name: Blob(sha256_file(file), file.stat().st_size, file) for file in files}


def _check_room(room: Mapping[str, Any], target: Target, *, say: Say) -> None:
    place, install = f"targets.{target.name}.install", target.install
    faults = []
    if room["disk_mb"] < install.disk_mb:
        faults.append(f"{room['disk_mb']} MB of disk are free, `{place}.disk_mb` asks for {install.disk_mb}; make room")
    if room["memory_mb"] is not None and room["memory_mb"] < install.memory_mb:
        faults.append(
            f"{room['memory_mb']} MB of memory are free, `{place}.memory_mb` asks for {install.memory_mb}; end other "
            "programs there"
        )
    if faults:
        msg = f"device {target.host!r}: {'; '.join(faults)}"
        raise DeviceError(msg)
    ahead = room["clock"] - time.time()
    if abs(ahead) > CLOCK_S:
        where = "ahead of" if ahead > 0 else "behind"
        say(f"warning: the clock of device {target.host!r} is {abs(ahead) / 3600:.1f} h {where} this one's; set it")
