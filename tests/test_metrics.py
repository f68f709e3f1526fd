"""Metrics: what is declared can be emitted, what is not is refused, and without Ray nothing happens."""

import subprocess
import sys

import pytest

from metagen_ray.metrics import METRICS, count, gauge


def test_metrics_without_ray_load_nothing_and_do_nothing() -> None:
    code = (
        "import sys; from metagen_ray.metrics import count, gauge; "
        "count('metagen_shards_done', run='r', stage='s'); gauge('metagen_stage_seconds', 1.5, run='r', stage='s'); "
        "assert 'ray' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(
    ("call", "name", "tags"),
    [
        (count, "metagen_shards_dome", {"run": "r", "stage": "s"}),
        (count, "metagen_stage_seconds", {"run": "r", "stage": "s"}),
        (gauge, "metagen_stage_seconds", {"run": "r"}),
        (count, "metagen_shards_done", {"run": "r", "stage": "s", "shard": "one series each"}),
    ],
)
def test_metrics_that_are_not_declared_so_are_refused(call, name: str, tags: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="not declared"):
        call(name, 1, **tags)


def test_every_declared_metric_is_one_that_ray_takes() -> None:
    from ray.util.metrics import Counter, Gauge

    for name, metric in METRICS.items():
        made = (Counter if metric.kind == "counter" else Gauge)(name, metric.description, metric.tags)
        assert made.info["tag_keys"] == metric.tags
