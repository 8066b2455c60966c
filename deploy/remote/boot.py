"""The first words on a device, given to `python3 -c`: takes in the device package, and hands over to it.

Any Python 3 runs it, so that one that is too old can be told. It speaks before it listens, after whatever the account's
own start-up files print.
"""

import base64
import hashlib
import io
import json
import os
import platform
import shutil
import sys
import zipfile
from pathlib import Path

HELLO = "slad-edge device: "


def say(**words: object) -> None:
    """Write one line for the host."""
    sys.stdout.write(HELLO + json.dumps(words) + "\n")
    sys.stdout.flush()


def unpack(content: bytes, folder: Path) -> None:
    """Unpack the wheel next to its place, and rename it in."""
    fresh = folder.with_name("." + folder.name + ".new-" + str(os.getpid()))
    shutil.rmtree(str(fresh), ignore_errors=True)  # of a killed process that had this number
    fresh.mkdir(parents=True)
    try:
        zipfile.ZipFile(io.BytesIO(content)).extractall(str(fresh))
        os.sync()
        fresh.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another connection was faster
            raise
    finally:
        shutil.rmtree(str(fresh), ignore_errors=True)


def main() -> None:
    """Greet, take the package where it is not here, and serve."""
    asked = json.loads(base64.b64decode(sys.argv[1]).decode())
    root = Path(os.path.expanduser("~"), asked["folder"])  # noqa: PTH111 - `Path.expanduser` is younger
    package = root / "packages" / asked["sha256"][:16]
    there = package.is_dir()
    python = list(sys.version_info[:3])
    say(python=python, machine=platform.machine(), system=platform.system(), there=there, root=str(root))
    if python < asked["python"]:
        return
    if not there:
        content = sys.stdin.buffer.read(asked["bytes"])
        if hashlib.sha256(content).hexdigest() != asked["sha256"]:
            return  # the host is gone
        try:
            unpack(content, package)
        except OSError as error:
            say(error=str(error))
            return
        say(error=None)
    sys.path.insert(0, str(package))
    from deploy.install.server import main as serve

    sys.exit(serve(root, package, sys.stdin.buffer, sys.stdout.buffer))


if __name__ == "__main__":
    main()
