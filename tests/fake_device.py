"""A device without a network: `ssh` is a script that runs the command here, `python -m deploy` one that plays it.

What lies between them is real: the boot program, the package as it is sent, the protocol, the store, the releases.
"""

import json
import os
import sys
from pathlib import Path

from deploy.files import write_json
from deploy.install.environment import READY, Wanted
from deploy.remote.wheel import LOADGEN, requirements_of

SPEC = {"runtime": "onnxruntime", "threads": 1, "variants": {"fp32": {"onnx": "fp32", "precision": "fp32"}}}
# Files beside it make it fail: `refuse` holds a pattern of engines that fail their test, `break` the last words of a
# command that fails, `over` those of a measurement whose variants are all over the budget, `skip` what is written of
# variants that cannot be built.
PYTHON = """\
#!/bin/sh
here=${0%/*}
[ $# -eq 2 ] && exit 0
shift 3
echo "$*" >> "$here/commands"
case $1 in
selftest)
    if [ -e "$here/refuse" ] && grep -q -f "$here/refuse" engine/model; then
        echo "loading" >&2
        echo "error: engine 'fp32': other answers" >&2
        exit 7
    fi
    echo "fp32 on t: relative error 0" ;;
fingerprint)
    case "$*" in *--output*) echo '{}' > device.json ;; *) echo '{"board": "fake"}' ;; esac ;;
build)
    if [ -e "$here/break" ]; then
        cat "$here/break" >&2
        exit 7
    fi
    mkdir -p engines/fp32
    echo '{"skipped": {}}' > engines/skipped.json
    [ -e "$here/skip" ] && cp "$here/skip" engines/skipped.json
    echo built > engines/fp32/model
    echo '{"precision": "fp32", "runtime": "onnxruntime", "runtime_version": "1", "onnx_sha256": "1",
        "engine": {"sha256": "2"}}' > engines/fp32/manifest.json ;;
measure)
    if [ -e "$here/break" ]; then
        cat "$here/break" >&2
        exit 9
    fi
    mkdir measured
    echo '{"variants": {}}' > measured/record.json
    if [ -e "$here/over" ]; then
        cat "$here/over" >&2
        exit 11
    fi ;;
doctor)
    echo '{"targets": {}}'
    exit 7 ;;
esac
"""
SSH = """\
#!/bin/sh
for last; do
    [ "$last" = -G ] && exit 0
done
cd "$DEVICE_HOME" && HOME=$DEVICE_HOME exec sh -c "$last"
"""
# What is asked is read to its end; the answers have theirs before.
ANSWERS = """\
#!/bin/sh
for last; do
    [ "$last" = -G ] && exit 0
done
cat "$DEVICE_HOME/answers"
exec cat > /dev/null
"""


def script(path: Path, text: str) -> Path:
    """Write a program."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def make_environment(folder: Path, key: str) -> Path:
    """Make an environment, ready, whose Python plays `python -m deploy`; return the folder of that Python."""
    write_json(folder / "environments" / key / READY, {})
    return script(folder / "environments" / key / "bin/python", PYTHON).parent


class FakeDevice:
    """A device in a home of its own, which `SLAD_SSH` leads to.

    Args:
        folder: existing and empty.
        monkeypatch: of the test.
    """

    def __init__(self, folder: Path, monkeypatch) -> None:
        self.home, self._ssh, self._patch = folder / "home", folder / "ssh", monkeypatch
        self.home.mkdir()
        self.root = self.home / "slad-edge"
        self.speak(SSH)
        monkeypatch.setenv("SLAD_SSH", str(self._ssh))
        monkeypatch.setenv("DEVICE_HOME", str(self.home))
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        wanted = Wanted(system_site_packages=False, requirements=requirements_of("onnxruntime", LOADGEN), wheels={})
        self.bin = make_environment(self.root, wanted.key)
        self.said: list[str] = []

    @property
    def spec(self) -> dict:
        """A section that this device is fit for."""
        install = {"python": sys.executable, "disk_mb": 0, "memory_mb": 0}
        return json.loads(json.dumps({**SPEC, "host": "device", "install": install}))

    @property
    def say(self):
        """Take a line."""
        return self.said.append

    def speak(self, text: str) -> None:
        """Let another script be `ssh`."""
        script(self._ssh, text)

    def answer(self, *lines: str | bytes) -> None:
        """Let the device greet as ours do, and then write whatever is given, to whatever it is asked."""
        hello = {"python": [3, 10, 0], "machine": os.uname().machine, "system": "Linux", "there": True, "root": "/r"}
        content = [f"slad-edge device: {json.dumps(hello)}\n".encode()]
        content += [line if isinstance(line, bytes) else f"{line}\n".encode() for line in lines]
        (self.home / "answers").write_bytes(b"".join(content))
        self.speak(ANSWERS)

    def commands(self) -> list[str]:
        """Return the commands of `python -m deploy` that were run."""
        return (self.bin / "commands").read_text().splitlines()
