"""Models, a device, and a project that deploys to it; no process of a device outlives its test."""

import pytest

from tests.ssh.desk import Desk, device_at, idle
from tests.unit.deploy.conftest import save_bundle, save_data


@pytest.fixture(scope="session")
def models(tmp_path_factory):
    """Bundles of three models of one form."""
    root = tmp_path_factory.mktemp("models")
    for seed in range(3):
        save_bundle(root / str(seed), "fp32", seed=seed)
    return [root / str(seed) for seed in range(3)]


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """A data folder, as stage prepare writes it."""
    folder = tmp_path_factory.mktemp("data")
    save_data(folder)
    return folder


@pytest.fixture(scope="module")
def shared_device(tmp_path_factory):
    with device_at(tmp_path_factory.mktemp("device") / "shelf", "shelf") as device:
        yield device


@pytest.fixture(scope="module")
def shared_desk(tmp_path_factory, models, shared_device):
    desk = Desk(tmp_path_factory.mktemp("desk") / "project", models, shared_device)
    desk.deployed("shelf")
    return desk


@pytest.fixture
def shelf(shared_device):
    """A device with a release at the least, which the tests of a module share."""
    yield shared_device
    idle(shared_device)


@pytest.fixture
def desk(shared_desk, shelf):
    """The project that deploys to it, with an earlier release of the first model."""
    shared_desk.reset("shelf")
    return shared_desk


@pytest.fixture
def bare(tmp_path):
    """A device that nothing was sent to."""
    with device_at(tmp_path / "device", "bare") as device:
        yield device
        idle(device)


@pytest.fixture
def bare_desk(tmp_path, models, bare):
    return Desk(tmp_path / "project", models, bare)
