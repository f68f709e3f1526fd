"""What the driver tells of a stage while it runs, Prometheus and the run's pulse; the ledger has the figures after."""

import time
from collections.abc import Mapping

from metagen_ray import metrics
from metagen_ray.stages.pulse import Pulse
from metagen_ray.study import Resources

COUNTED = {"answers": "metagen_answers", "judged": "metagen_judged", "unscored": "metagen_unscored"}
TOKENS = {"prompt_tokens": "prompt", "output_tokens": "output", "train_tokens": "train"}


class Meter:
    """One stage of one run; `gpus` is what it holds."""

    def __init__(self, run: str, stage: str, shards: int, gpus: float = 0.0, pulse: Pulse | None = None) -> None:
        self.stage = stage
        self._tags = {"run": run, "stage": stage}
        self._gpus, self._pulse = gpus, pulse
        self._began = self._told = time.monotonic()
        metrics.gauge("metagen_shards_planned", shards, **self._tags)
        if pulse:
            pulse.begin(stage, shards)

    def outcome(self, ok: bool, figures: Mapping[str, float]) -> None:
        """A shard has ended, well or not, with the figures of its ledger."""
        metrics.count("metagen_shards_done" if ok else "metagen_shards_failed", 1, **self._tags)
        if self._pulse:
            self._pulse.outcome(self._tags["stage"], ok)
        for name, metric in COUNTED.items():
            metrics.count(metric, figures.get(name, 0), **self._tags)
        for name, kind in TOKENS.items():
            metrics.count("metagen_tokens", figures.get(name, 0), kind=kind, **self._tags)
        self.tick()

    def tick(self) -> None:
        """Time has gone by."""
        now = time.monotonic()
        metrics.count("metagen_gpu_seconds", (now - self._told) * self._gpus, **self._tags)
        metrics.gauge("metagen_stage_seconds", now - self._began, **self._tags)
        self._told = now


def gpus_of(stage: str, resources: Resources) -> float:
    """GPUs that a stage holds while it runs."""
    workers = {"object_sft": resources.lanes * resources.workers_per_lane, "meta_sft": resources.meta_workers}
    if stage in workers:
        return workers[stage] * resources.gpus_per_worker
    return resources.replicas * resources.gpus_per_replica
