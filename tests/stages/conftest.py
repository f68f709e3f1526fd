"""One random base for the plans of this folder."""

import pytest

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.study import load_study
from tests.lab_base import make_random_base


@pytest.fixture(scope="session")
def base_dir(tmp_path_factory):
    return make_random_base(tmp_path_factory.mktemp("base"))


@pytest.fixture
def plan_of(base_dir, tmp_path):
    """Plans of a small study with overrides."""

    def make(*overrides: str) -> Plan:
        small = ("domains=8", "block_domains=4", f"model={base_dir}", f"store={tmp_path / 'store'}")
        return Plan(StudyContext(load_study("pocket", [*small, *overrides])))

    return make
