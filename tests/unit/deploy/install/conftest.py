import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy.install.root import Root
from tests.fake_device import make_environment

KEY = "e" * 16


@pytest.fixture
def host() -> Iterator[tuple]:
    """The stream that a host keeps open, and its other end."""
    read, write = os.pipe()
    with os.fdopen(read, "rb") as stream, os.fdopen(write, "wb") as other:
        yield stream, other


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def root(tmp_path: Path, host, said) -> Root:
    """A device's folder with one package, and one environment whose Python plays `python -m deploy`."""
    folder = tmp_path / "slad-edge"
    package = folder / "packages" / ("p" * 16)
    package.mkdir(parents=True)
    make_environment(folder, KEY)
    return Root(folder, package, say=said.append, host=host[0])


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing here is tested by pulling the plug."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(os, "sync", lambda: None)


@pytest.fixture(autouse=True)
def lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file that is locked, of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/slad-edge/device.lock"
