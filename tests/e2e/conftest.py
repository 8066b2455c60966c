"""One clone for all tests of this folder: its first run takes the time of most of them."""

import pytest

from tests.clone import Clone, made_clone


@pytest.fixture(scope="session")
def clone(tmp_path_factory) -> Clone:
    return made_clone(tmp_path_factory.mktemp("clone"))


@pytest.fixture(scope="session")
def finished(clone) -> Clone:
    """The clone after `slad repro` of the quick experiment."""
    done = clone.run("slad", "repro", "experiment=quick")
    assert done.returncode == 0, done.stdout + done.stderr
    (clone.root / "printed.txt").write_text(done.stdout)
    return clone
