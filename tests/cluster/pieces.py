"""What the proof campaigns show of a cluster of several nodes. A piece returns its figures, or raises."""

import os
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from tests.cluster.autoscaled import inside
from tests.cluster.kills import TITLES, strike
from tests.cluster.local import LocalCluster
from tests.cluster.study_apart import ON_TWO_WORKERS, Ran, here, submission, submitted

SIXTEEN = ("domains=16", "analysis.resamples=200", "resources.overlap=off")
TWO_REPLICAS = ("resources.replicas=2", "resources.cpus_per_replica=0.5", "resources.cpus_per_worker=0.75")


def three_nodes() -> Mapping[str, object]:
    """A study of 16 domains on a head and two workers, and as one node; meta-SFT resumed by one worker of two."""
    with tempfile.TemporaryDirectory() as folder, LocalCluster() as cluster:
        room = Path(folder)
        apart = submitted(cluster, (*SIXTEEN, *ON_TWO_WORKERS), room / "apart.log")
        requests, shards = apart.figures("requests to "), apart.figures("shards on ")
        table = apart.rmse()  # read now: the store ends with the cluster, and the next run writes its own figures
        figures = {
            "wall_s": round(apart.seconds),
            "meta_nodes": len(set(apart.meta_record()["nodes"])),
            "requests": sorted(round(n / requests.total(), 3) for n in requests.values()),
            "shards": sorted(round(n / shards.total(), 3) for n in shards.values()),
        }
        gap = _resumed_gap(cluster, apart, room)
    assert gap < 1e-4, f"losses of the resumed meta-SFT differ by {gap}"
    with tempfile.TemporaryDirectory() as folder:
        alone = here((*SIXTEEN, *TWO_REPLICAS), Path(folder) / "alone")
        one_node = alone.rmse()
    rmse = _rmse_gap(table, one_node)
    assert rmse["mean"] < rmse["floor"], rmse
    return {**figures, "resumed_on_one_loss_gap": gap, "one_node_wall_s": round(alone.seconds), "rmse_gap": rmse}


def _rmse_gap(one: Mapping, other: Mapping) -> dict[str, float]:
    """Differences of the tables, beside the noise floor of the predictor that is nothing else."""
    gaps = np.array([abs(one[k] - other[k]) for k in one if k in other and k[1] != "diagonal"])
    floor = np.mean([v for (name, _), v in one.items() if name == "GT-same"])
    return {
        "mean": round(float(gaps.mean()), 2),
        "largest": round(float(gaps.max()), 2),
        "floor": round(float(floor), 2),
    }


def _resumed_gap(cluster: LocalCluster, ran: Ran, room: Path) -> float:
    """Train the meta adapter again, on two workers to a checkpoint and from there on one; the losses' difference."""
    plan = Plan(StudyContext(ran.study))
    store, whole = plan.context.store, ran.meta_record()["losses"]
    store.drop("meta_sft", plan.meta)
    begun = cluster.start("out", *submission(cluster, (*SIXTEEN, *ON_TWO_WORKERS)), log=room / "begun.log")
    while not store.keys("checkpoint"):
        assert begun.poll() is None, (room / "begun.log").read_text()[-3000:]
        time.sleep(0.2)
    for pid in cluster.processes(TITLES["driver"]):
        os.kill(pid, signal.SIGKILL)
    begun.wait(120)
    on_one = [s for s in ON_TWO_WORKERS if "meta_workers" not in s]
    again = submitted(cluster, (*SIXTEEN, *on_one), room / "again.log")
    record = again.meta_record()
    assert len(record["nodes"]) == 1 and 0 < record["resumed_after_steps"] < len(whole) == len(record["losses"])
    return float(np.abs(np.array(record["losses"]) - np.array(whole)).max())


def autoscaled() -> Mapping[str, object]:
    """From no workers to a finished study and back."""
    with tempfile.TemporaryDirectory(prefix="ma", dir="/tmp", ignore_cleanup_errors=True) as folder:
        found = inside(Path(folder))
    assert found["ran"]["code"] == 0, found["ran"]["error"]
    told = {name: found[name]["error"].strip().splitlines()[-1][:300] for name in ("refused", "late")}
    return {**found, **told, "refused_after_s": found["refused"]["seconds"], "ran": found["ran"]["seconds"]}


def killed(kind: str, moment: int) -> Mapping[str, object]:
    """One line of the kill table."""
    with tempfile.TemporaryDirectory() as folder:
        return strike(kind, moment, Path(folder))
