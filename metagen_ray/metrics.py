"""What a study tells Prometheus while it runs: names, kinds and tags of its metrics, and the two calls that emit them.

The declarations are plain data, which the dashboards are tested against. Ray adds `ray_` in front of a name and
`_total` behind a counter's. Where Ray is not loaded or not connected, nothing happens.
"""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Metric:
    """One declared metric. A counter only grows; a gauge holds the last value its process has set."""

    kind: Literal["counter", "gauge"]
    description: str
    tags: tuple[str, ...]

    def exported(self, name: str) -> str:
        """The name that Prometheus knows it by."""
        return f"ray_{name}_total" if self.kind == "counter" else f"ray_{name}"


STAGE = ("run", "stage")

METRICS: Mapping[str, Metric] = {
    "metagen_shards_planned": Metric("gauge", "shards of the stage that were missing when the driver began", STAGE),
    "metagen_shards_done": Metric("counter", "shards committed", STAGE),
    "metagen_shards_failed": Metric("counter", "shards given up", STAGE),
    "metagen_retries": Metric("counter", "attempts repeated after a failure", STAGE),
    "metagen_tokens": Metric("counter", "tokens; kind is prompt, output or train", (*STAGE, "kind")),
    "metagen_answers": Metric("counter", "answers sampled", STAGE),
    "metagen_judged": Metric("counter", "answers graded, unscored ones included", STAGE),
    "metagen_unscored": Metric("counter", "answers that the judge gave no score", STAGE),
    "metagen_prefix_cache_query_tokens": Metric("counter", "prompt tokens looked up in the prefix cache", ("replica",)),
    "metagen_prefix_cache_hit_tokens": Metric("counter", "prompt tokens found in the prefix cache", ("replica",)),
    "metagen_gpu_seconds": Metric("counter", "seconds in which the stage held GPUs, times their number", STAGE),
    "metagen_stage_seconds": Metric("gauge", "seconds since the stage began", STAGE),
}


def count(name: str, value: float = 1, **tags: str) -> None:
    """Add to a counter. Nothing, or a value of 0, is added silently; Ray refuses zeros."""
    _declared(name, "counter", tags)
    if value and _connected():
        _emitter(name).inc(value, tags=tags)


def gauge(name: str, value: float, **tags: str) -> None:
    """Set a gauge. It is exported for as long as this process lives."""
    _declared(name, "gauge", tags)
    if _connected():
        _emitter(name).set(value, tags=tags)


def _declared(name: str, kind: str, tags: Mapping[str, str]) -> None:
    """ValueError for a call that no dashboard could show, in a process without Ray as well."""
    metric = METRICS.get(name)
    if metric is None or metric.kind != kind or set(metric.tags) != set(tags):
        raise ValueError(f"{kind} {name!r} with the tags {sorted(tags)} is not declared in METRICS")


def _connected() -> bool:
    ray = sys.modules.get("ray")  # never imported for this: a process that uses Ray has loaded it
    return ray is not None and ray.is_initialized()


@functools.cache
def _emitter(name: str) -> Any:
    from ray.util import metrics

    declared = METRICS[name]
    make = metrics.Counter if declared.kind == "counter" else metrics.Gauge
    return make(name, declared.description, declared.tags)
