"""Training with 1 and with 2 workers through Ray Train: lanes of fine-tunes, and data-parallel meta-SFT. Draws a curve.

A worker has one CPU and one thread. Speed is that of the training itself: tokens over the seconds of the slowest lane,
without what Ray Train takes to start.
"""

import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path

import ray

from benchmarks import workload
from benchmarks.bank_trl import make_jobs
from benchmarks.bases import Base, make_base
from benchmarks.curves import Curve, write_curve
from benchmarks.measure import ROOT, Options, Row
from metagen_ray.store import content_key
from metagen_ray.study import META_RECIPE, Recipe, Resources
from metagen_ray.training.lanes import deal_jobs, run_lanes, run_meta
from metagen_ray.training.worker import AdapterJob

WORKERS = (1, 2)
ROUNDS = 3
FINE_TUNES, TREES = 32, 64
RECIPE = Recipe(epochs=1)
META = META_RECIPE.model_copy(update={"epochs": 1})


def rows(options: Options) -> list[Row]:
    """No row of the table: the curve alone."""
    base = make_base("1M", Path())
    with tempfile.TemporaryDirectory(prefix="b", dir="/tmp", ignore_cleanup_errors=True) as room:
        environment = {"env_vars": {"PYTHONPATH": str(ROOT)}}
        ray.init(include_dashboard=False, _temp_dir=room, runtime_env=environment, log_to_driver=False)
        try:
            lanes = [_point("fine-tunes", n, lambda i, n=n: lanes_speed(base, n, f"{room}/{n}-{i}")) for n in WORKERS]
            meta = [_point("meta-SFT", n, lambda i, n=n: meta_speed(base, n)) for n in WORKERS]
        finally:
            ray.shutdown()
    if not options.quick:
        columns = ("training", "workers", "tokens_per_s", "low", "high")
        write_curve(Curve("workers", "Training tokens a second by workers", columns, [*lanes, *meta]))
    return []


def lanes_speed(base: Base, lanes: int, store: str) -> float:
    """Tokens a second of fine-tunes dealt to lanes."""
    jobs = [
        AdapterJob(content_key({"benchmark": "workers", "number": n}), trees, RECIPE, seed)
        for n, (trees, seed) in enumerate(make_jobs(base, FINE_TUNES, 128))
    ]
    resources = Resources(lanes=lanes, cpus_per_worker=1)
    outcomes = {o.key: o for o in run_lanes(base.directory, jobs, resources, store, "object_sft", "workers")}
    failed = [o.reason for o in outcomes.values() if not o.ok]
    if failed:
        raise RuntimeError(f"{len(failed)} fine-tunes failed; the first: {failed[0]}")
    slowest = max(sum(outcomes[job.key].seconds for job in share) for share in deal_jobs(jobs, lanes))
    return sum(job.cost() for job in jobs) / slowest


def meta_speed(base: Base, workers: int) -> float:
    """Tokens a second of meta-SFT over data-parallel workers."""
    trees = workload.meta_trees(base, TREES)
    resources = Resources(meta_workers=workers, cpus_per_worker=1)
    result = run_meta(base.directory, [trees], META, 0, resources, "workers")
    return sum(tree.read_tokens() for tree in trees) / result.seconds


def _point(line: str, workers: int, speed: Callable[[int], float]) -> tuple[str, float, float, float, float]:
    found = [speed(number) for number in range(ROUNDS)]
    return line, workers, statistics.median(found), min(found), max(found)
