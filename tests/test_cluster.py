"""Reaching a cluster: one of another version and one too small for the plan are refused with what to do."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from metagen_ray.cluster import overlap_fits, reach
from metagen_ray.errors import MachineError
from metagen_ray.nodes import check_fit
from metagen_ray.study import load_study
from tests.local_ray import local_ray

CONNECT = """
import sys
from metagen_ray.cluster import reach
reach(sys.argv[1])
"""


@pytest.fixture(scope="module")
def small_cluster() -> Iterator[str]:
    """The address of a cluster of one CPU and 1 GiB."""
    with local_ray(cpus=1, memory=2**30) as address:
        yield address


@pytest.mark.slow
@pytest.mark.machine
@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        ([], "needs 1.95 CPUs, the cluster has 1"),
        (
            ["resources.cpus_per_replica=0.2", "resources.cpus_per_worker=0.2", "resources.gpus_per_worker=1"],
            "needs 1 GPUs",
        ),
        (["resources.cpus_per_replica=0.2", "resources.cpus_per_worker=0.2"], "needs 8 GiB on a node, the largest has"),
    ],
    ids=["cpu", "gpu", "memory"],
)
def test_cluster_too_small_for_the_plan_is_refused(small_cluster: str, overrides: list[str], words: str):
    with pytest.raises(MachineError, match=words):
        check_fit(load_study("pocket", overrides).resources)


@pytest.mark.slow
@pytest.mark.machine
def test_cluster_of_another_ray_version_is_refused(small_cluster: str):
    from ray._common.usage.usage_constants import CLUSTER_METADATA_KEY
    from ray.experimental import internal_kv

    where = {"namespace": b"cluster"}
    told = internal_kv._internal_kv_get(CLUSTER_METADATA_KEY, **where)
    assert told, "Ray keeps the cluster's versions elsewhere now"
    foreign = json.dumps({**json.loads(told), "ray_version": "1.0.0"}).encode()
    internal_kv._internal_kv_put(CLUSTER_METADATA_KEY, foreign, overwrite=True, **where)
    done = subprocess.run(
        [sys.executable, "-c", CONNECT, small_cluster],
        capture_output=True,
        text=True,
        timeout=120,
        env=dict(os.environ),
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "MachineError: the cluster runs another Ray" in last and "install the same lock on both" in last


@pytest.mark.parametrize(
    ("overrides", "have", "expected"),
    [
        ([], {"CPU": 2}, False),  # 1.9 of 2: shares fit, whole cores do not
        ([], {"CPU": 3}, True),
        (["lanes=3"], {"CPU": 4}, False),
        (["lanes=3"], {"CPU": 5}, True),
        (["meta_workers=4"], {"CPU": 5}, False),
        (["replicas=12"], {"CPU": 14}, False),  # 12 askers take a core and a fifth
        (["replicas=12"], {"CPU": 15}, True),
        (["overlap=on"], {"CPU": 2}, True),
        (["overlap=off"], {"CPU": 64}, False),
        (["gpus_per_worker=1", "gpus_per_replica=1"], {"CPU": 8, "GPU": 2}, True),
        (["gpus_per_worker=1", "gpus_per_replica=1"], {"CPU": 8, "GPU": 1}, False),
        (["gpus_per_worker=0.5", "gpus_per_replica=0.5"], {"CPU": 8, "GPU": 1}, False),  # one card for both
        (["gpus_per_worker=0.5", "gpus_per_replica=0.5", "overlap=on"], {"CPU": 8, "GPU": 1}, True),
        (["gpus_per_worker=1"], {"CPU": 3, "GPU": 1}, True),
    ],
)
def test_overlap_auto_needs_whole_cores_and_gpus_for_both(overrides: list[str], have: dict, expected: bool):
    need = load_study("pocket", [f"resources.{o}" for o in overrides]).resources
    assert overlap_fits(need, have) is expected


def test_overlap_on_that_does_not_fit_is_refused():
    need = load_study("pocket", ["resources.overlap=on", "resources.lanes=2"]).resources
    with pytest.raises(MachineError, match=r"need 2\.7 CPUs and 0 GPUs, the cluster has 2 and 0"):
        overlap_fits(need, {"CPU": 2.0})


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "no-such-host.invalid:6379"])
def test_cluster_that_is_not_there_is_told_at_once(address: str):
    with pytest.raises(MachineError, match=f"no cluster at {address}"):
        reach(address)


@pytest.mark.parametrize(
    "address", ["head", "head:", ":6379", "127.0.0.1:99999", "127.0.0.1:-1", "a..b:6379", "x" * 300 + ":1"]
)
def test_cluster_address_that_is_none_is_one_clear_error(address: str):
    with pytest.raises(MachineError, match=r"no (address of a )?cluster"):
        reach(address)
