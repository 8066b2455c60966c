"""The device package as a wheel: this very code, without the host's, the same bytes each time.

What only a host does with devices and with their records stays here.
"""

import hashlib
import importlib.metadata
import io
import re
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from pathlib import Path

import deploy
from deploy.errors import DeviceError
from deploy.runtimes import RUNTIMES

DISTRIBUTION = "slad-edge"
NAME = "slad_edge_device"
SUFFIXES = {".py"}
HOSTS = ("remote", "measure/compare.py", "measure/comparable.py")
LOADGEN = "loadgen"
EXTRAS = (*RUNTIMES, "camera", LOADGEN)
EPOCH = (1980, 1, 1, 0, 0, 0)  # the first that a zip file can hold
EXTRA = re.compile(r"""\bextra\s*==\s*['"]([\w.-]+)['"]""")


@dataclass(frozen=True)
class Wheel:
    """A wheel of the package `deploy`.

    Attributes:
        file: its name.
        content: its bytes.
    """

    file: str
    content: bytes

    @property
    def sha256(self) -> str:
        """Of its bytes."""
        return hashlib.sha256(self.content).hexdigest()


def device_wheel() -> Wheel:
    """Build the wheel of this package, with the requirements of the device's runtimes as extras.

    Raises:
        DeviceError: slad-edge is not installed, so that its requirements are not known.
    """
    folder = Path(deploy.__file__).parent
    sources = sorted(file for file in folder.rglob("*") if file.suffix in SUFFIXES and not _is_hosts(file, folder))
    version = _metadata().version
    info = f"{NAME}-{version}.dist-info"
    files = {f"deploy/{file.relative_to(folder).as_posix()}": file.read_bytes() for file in sources}
    files[f"{info}/METADATA"] = _described(version).encode()
    files[f"{info}/WHEEL"] = b"Wheel-Version: 1.0\nGenerator: slad-edge\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = _record(files, f"{info}/RECORD").encode()
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, content)
    return Wheel(f"{NAME}-{version}-py3-none-any.whl", stream.getvalue())


def _is_hosts(file: Path, folder: Path) -> bool:
    return any(file.is_relative_to(folder / part) for part in HOSTS)


def requirements_of(*extras: str) -> list[str]:
    """Return what pip must install on a device, with the markers that pip judges there.

    Args:
        extras: names of runtimes, and `LOADGEN`; without any it is numpy and Pillow.

    Raises:
        DeviceError: slad-edge is not installed.
    """
    found = []
    for line in _metadata().requires or []:
        extra = EXTRA.search(line)
        if extra is None:
            found.append(line)
        elif extra[1].replace("-", "_") in extras:  # chosen here: what takes its place is always true
            found.append(EXTRA.sub('python_version >= "3"', line))
    return found


def _metadata() -> importlib.metadata.Distribution:
    try:
        return importlib.metadata.distribution(DISTRIBUTION)
    except importlib.metadata.PackageNotFoundError as cause:
        msg = f"{DISTRIBUTION} is not installed, so what a device needs is not known; run `pip install -e .`"
        raise DeviceError(msg) from cause


def _described(version: str) -> str:
    """Return the wheel's METADATA: the base requirements, and the extras of the device."""
    lines = [
        "Metadata-Version: 2.4", f"Name: {NAME.replace('_', '-')}", f"Version: {version}",
        "Summary: The device side of slad-edge: builds, tests, runs and measures compiled vision models.",
        "License-Expression: Apache-2.0", "Requires-Python: >=3.10",
        *(f"Provides-Extra: {extra}" for extra in EXTRAS),
    ]  # fmt: skip
    for line in _metadata().requires or []:
        found = EXTRA.search(line)
        if found is None or found[1].replace("-", "_") in EXTRAS:
            lines.append(f"Requires-Dist: {line}")
    return "\n".join(lines) + "\n"


def _record(files: dict[str, bytes], own: str) -> str:
    lines = []
    for name, content in files.items():
        digest = urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
        lines.append(f"{name},sha256={digest},{len(content)}")
    return "\n".join([*lines, f"{own},,"]) + "\n"
