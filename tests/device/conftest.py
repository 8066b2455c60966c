"""The devices that tests of this folder use."""

import pytest

from tests.device import arm64


@pytest.fixture(scope="session")
def arm64_device(tmp_path_factory):
    """An emulated 64-bit Arm device that answers over SSH; its first start on a machine takes three minutes."""
    try:
        with arm64.device(tmp_path_factory.mktemp("arm64") / "device") as device:
            yield device
    except arm64.Arm64Error as error:
        pytest.fail(str(error), pytrace=False)


@pytest.fixture(scope="session")
def arm64_wheels():
    """A folder with the wheels such a device needs."""
    try:
        return arm64.wheels()
    except arm64.Arm64Error as error:
        pytest.fail(str(error), pytrace=False)
