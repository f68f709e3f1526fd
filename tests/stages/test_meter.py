"""A stage's figures as Prometheus reads them from a real node."""

import time

import httpx
import pytest
import ray

from metagen_ray.stages.meter import Meter, gpus_of
from metagen_ray.study import Resources
from tests.local_ray import local_ray


def test_gpus_of_a_stage_are_those_of_its_workers_or_replicas() -> None:
    resources = Resources(
        lanes=3, workers_per_lane=2, gpus_per_worker=1, meta_workers=4, replicas=2, gpus_per_replica=0.5
    )
    stages = ("object_sft", "meta_sft", "ground_truth", "judge meta")
    assert [gpus_of(stage, resources) for stage in stages] == [6, 4, 1, 1]


@pytest.mark.slow
@pytest.mark.machine
def test_meter_of_a_stage_arrives_at_the_node_s_metrics_port() -> None:
    with local_ray(cpus=1):
        (node,) = ray.nodes()
        meter = Meter("run-1", "judge truth", shards=3, gpus=2.0)
        meter.outcome(True, {"judged": 40, "unscored": 2, "prompt_tokens": 900})
        meter.outcome(False, {})
        wanted = {
            "metagen_shards_planned{": 3,
            "metagen_shards_done_total{": 1,
            "metagen_shards_failed_total{": 1,
            "metagen_judged_total{": 40,
            "metagen_unscored_total{": 2,
            "metagen_tokens_total{": 900,
        }
        deadline, found = time.monotonic() + 60, {}
        while found != wanted and time.monotonic() < deadline:
            text = httpx.get(f"http://127.0.0.1:{node['MetricsExportPort']}/metrics", trust_env=False).text
            lines = [line for line in text.splitlines() if "run-1" in line and "judge truth" in line]
            found = {w: float(line.split()[-1]) for w in wanted for line in lines if line.startswith(f"ray_{w}")}
            time.sleep(0.5)
        assert found == wanted
