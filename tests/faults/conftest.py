"""One study for the tests of faults that need a finished one: what it says of its own, or to compare theirs with."""

import pytest

from tests.faults.grown import Grown, run_both


@pytest.fixture(scope="session")
def grown(tmp_path_factory: pytest.TempPathFactory) -> Grown:
    """Two runs in one store. Read them."""
    return run_both(tmp_path_factory.mktemp("grown"))
