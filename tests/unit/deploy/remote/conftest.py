from pathlib import Path

import pytest

from tests.fake_device import FakeDevice


@pytest.fixture
def device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    (tmp_path / "device").mkdir()
    return FakeDevice(tmp_path / "device", monkeypatch)
