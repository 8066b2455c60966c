"""An emulated 64-bit Arm device, reached over SSH: Debian's arm64 under qemu-user, and wheels for it.

    python -m tests.device.arm64                 # start it, print how it is reached, wait for Ctrl-C

The first start takes three minutes; what it makes is kept in .cache/arm64. It needs Linux on x86-64, root, and Debian's
packages qemu-user-static, binfmt-support, debootstrap and openssh-server. The device lives in namespaces of its own, so
its mounts and processes end with the process that started it, however that ends. Its root cannot be written to.
"""

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.sshd import WITH_US, Sshd

ROOT = Path(__file__).parents[2]
CACHE = ROOT / ".cache/arm64"
BINFMT = Path("/proc/sys/fs/binfmt_misc/qemu-aarch64")

NAME = "arm64-device"
RELEASE = "bookworm"
PACKAGES = "python3,python3-venv,openssh-server,ca-certificates"
PYTHON = "3.11"  # of the release
CPU = "cortex-a76"  # that of a Raspberry Pi 5
# What its kernel says of each core. Under the emulator programs read the host's instead, which crashes ONNX Runtime.
CPUINFO = """\
processor\t: {core}
Features\t: fp asimd aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

"""
PLATFORMS = ("manylinux2014_aarch64", "manylinux_2_27_aarch64", "manylinux_2_28_aarch64")

SEEN = Path("/srv")  # the folder of a test, as the device sees it
ISOLATED = ["unshare", "--mount", "--pid", "--fork", "--kill-child"]
ENTER = """
root=$1; folder=$2; shift 2
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount --bind "$folder" "$root/srv"
mount -t proc proc "$root/proc"
mount --bind "$folder/cpuinfo" "$root/proc/cpuinfo"
mount -t sysfs -o ro sysfs "$root/sys"
mount -t devpts -o newinstance,ptmxmode=0666 devpts "$root/dev/pts"
for place in dev/shm tmp run; do mount -t tmpfs -o mode=1777 tmpfs "$root/$place"; done
mkdir -m 755 "$root/run/sshd"
exec chroot "$root" "$@"
"""


class Arm64Error(Exception):
    """The device cannot be made or started: one line, with what to do."""


@contextlib.contextmanager
def device(folder: Path) -> Iterator[Sshd]:
    """Start the device, whose home lies in `folder`, and stop it with all that runs on it.

    Raises:
        Arm64Error: something is missing on this machine, or a step of making the device failed.
    """
    check_machine()
    prefix = [*ISOLATED, "sh", "-euc", ENTER, "sh", str(root()), str(folder)]
    made = Sshd(folder, name=NAME, environment={"QEMU_CPU": CPU}, seen=SEEN, prefix=prefix)
    (folder / "cpuinfo").write_text("".join(CPUINFO.format(core=core) for core in range(os.cpu_count() or 1)))
    with made as started:
        yield started


def check_machine() -> None:
    """Refuse a machine that cannot make the device, with what to do."""
    if os.geteuid() != 0:
        msg = f"user id {os.geteuid()}: making and entering the device needs root; run as root"
        raise Arm64Error(msg)
    tools = ("debootstrap", "unshare", "chroot", "mount")
    if missing := [name for name in tools if shutil.which(name) is None]:
        msg = f"{', '.join(missing)}: not installed; install Debian's packages debootstrap, util-linux and mount"
        raise Arm64Error(msg)
    # F: the kernel holds the emulator open, so that it is found from inside the device's root.
    words = BINFMT.read_text() if BINFMT.exists() else ""
    if not words.startswith("enabled") or not re.search(r"^flags: \w*F", words, re.MULTILINE):
        msg = (
            f"{BINFMT}: the kernel does not know how to run 64-bit Arm programs; install Debian's qemu-user-static and "
            "binfmt-support, then `mount -t binfmt_misc binfmt_misc /proc/sys/fs/binfmt_misc` and "
            "`update-binfmts --enable qemu-aarch64`"
        )
        raise Arm64Error(msg)


def root() -> Path:
    """Return the device's file system; make it where it is missing, in two to three minutes."""
    return _cached("root", RELEASE, PACKAGES, make=_make_root)


def wheels() -> Path:
    """Return a folder with the wheels a device needs, in the pinned versions; download them where they are missing."""
    return _cached("wheels", *requirements(), (ROOT / "constraints.txt").read_text(), make=_make_wheels)


def requirements() -> list[str]:
    """Return what is installed on the device; ONNX Runtime, pinned for x86 under another name, in the same version."""
    pinned = re.search(r"^onnxruntime-gpu==(\S+)", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    if pinned is None:
        msg = "constraints.txt: no line 'onnxruntime-gpu==<version>'; pin it again, the device takes the same version"
        raise Arm64Error(msg)
    return ["numpy", "pillow", f"onnxruntime=={pinned[1]}"]


def _make_root(folder: Path) -> None:
    """Install Debian; in namespaces of its own, so that no mount is left in a folder that is then removed."""
    command = ["debootstrap", "--arch=arm64", "--variant=minbase", f"--include={PACKAGES}", RELEASE, str(folder)]
    _run([*WITH_US, *ISOLATED, *command], remedy="see that Debian's mirror is reached and start again")
    (folder / "etc/machine-id").write_text(uuid.uuid4().hex + "\n")
    (folder / "etc/hostname").write_text(NAME + "\n")


def _make_wheels(folder: Path) -> None:
    platforms = [word for platform in PLATFORMS for word in ("--platform", platform)]
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--quiet", *platforms]
    command += ["--only-binary=:all:", "--python-version", PYTHON, "--constraint", str(ROOT / "constraints.txt")]
    _run([*command, "--dest", str(folder), *requirements()], remedy="see that the package index is reached")


def _cached(kind: str, *recipe: str, make: Callable[[Path], None]) -> Path:
    """Return the folder of a recipe; it is made under another name, so that a killed run leaves nothing that counts."""
    place = CACHE / f"{kind}-{hashlib.sha256(repr(recipe).encode()).hexdigest()[:12]}"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / f"{kind}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another process may be making it
        if place.is_dir():
            return place
        for leftover in CACHE.glob(f".{kind}-*"):
            shutil.rmtree(leftover)
        fresh = Path(tempfile.mkdtemp(prefix=f".{kind}-", dir=CACHE))
        try:
            fresh.chmod(0o755)
            make(fresh)
            fresh.rename(place)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)  # what could not be made; else it has its name by now
    return place


def _run(command: list[str], *, remedy: str) -> None:
    """Run a command whose words are shown only where it fails."""
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        words = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()[-1]
        name = next(word for word in command if word not in (*WITH_US, *ISOLATED))
        msg = f"{name}: exit code {done.returncode}: {words}; {remedy}"
        raise Arm64Error(msg)


def main() -> int:
    """Start the device and wait until the user ends it."""
    try:
        with tempfile.TemporaryDirectory() as folder, device(Path(folder) / NAME) as started:
            lines = [
                f"SLAD_SSH='{' '.join(started.command)}'",
                f"wheels: {wheels()}",
                f"{NAME} answers; Ctrl-C ends it",
            ]
            print(*lines, sep="\n", flush=True)  # noqa: T201 - a command's own words
            with contextlib.suppress(KeyboardInterrupt):
                signal.pause()
    except Arm64Error as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201 - a command's own words
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
