"""What a driver asks of the autoscaler, asked through Ray's own coordinator."""

import importlib
import json
import tempfile
import time
from collections.abc import Iterator
from typing import Any

import pytest

from metagen_ray import autoscaler

pytestmark = [pytest.mark.slow, pytest.mark.machine]
ALL_CPUS = 2


@pytest.fixture
def coordinator() -> Iterator[Any]:
    import ray

    room: Any = importlib.import_module("ray.data._internal.cluster_autoscaler")
    with tempfile.TemporaryDirectory(prefix="r", dir="/tmp", ignore_cleanup_errors=True) as folder:
        ray.init(num_cpus=ALL_CPUS, include_dashboard=False, _temp_dir=folder, log_to_driver=False)
        try:
            yield room.get_or_create_autoscaling_coordinator()
        finally:
            ray.shutdown()


def asked() -> list[dict[str, float]]:
    """What Ray tells the autoscaler to have."""
    kv: Any = importlib.import_module("ray.experimental.internal_kv")
    constants: Any = importlib.import_module("ray._private.ray_constants")
    return json.loads(kv._internal_kv_get(constants.AUTOSCALER_RESOURCE_REQUEST_CHANNEL) or "[]")


def wait_for(wanted: list[dict[str, float]], limit_s: float) -> float:
    began = time.monotonic()
    while asked() != wanted:
        assert time.monotonic() - began < limit_s, asked()
        time.sleep(0.1)
    return time.monotonic() - began


def test_demand_is_added_to_what_others_ask_for_takes_nothing_from_them_and_ends(coordinator):
    import ray

    def others(resources: list[dict[str, float]]) -> None:
        ray.get(coordinator.request_resources.remote("data", resources, 100.0, request_remaining=["CPU"]))

    def set_aside() -> float:
        found: Any = ray.get(coordinator.get_reserved_resources.remote("data"))
        return sum(node.get("CPU", 0.0) for node in found.values())

    others([{"CPU": 1}])
    ours, theirs = {"CPU": 1.5, "GPU": 8}, {"CPU": 1}
    demand = autoscaler.Standing()
    demand.ask([ours], [{"metagen/market": "spot"}])
    assert asked() == [theirs, ours]
    assert set_aside() == ALL_CPUS  # theirs, and what is left of the node
    others([])
    assert asked() == [ours]
    demand.withdraw()
    assert asked() == []


def test_demand_outlasts_its_term_while_its_driver_lives_and_not_much_longer(coordinator, monkeypatch):
    import ray

    monkeypatch.setattr(autoscaler, "EXPIRES_S", 3.0)
    monkeypatch.setattr(autoscaler, "RENEWED_S", 1.0)
    demand, ours = autoscaler.Standing(), {"CPU": 1.5}
    demand.ask([ours], [{}])
    time.sleep(5.0)
    ray.get(coordinator._tick.remote())
    assert asked() == [ours]
    demand._over.set()  # as the driver's death ends it
    time.sleep(4.0)
    ray.get(coordinator._tick.remote())
    assert asked() == []
