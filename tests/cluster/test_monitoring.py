"""Monitoring: every query of the dashboard names metrics that exist, by labels they have; Prometheus finds the pods."""

import importlib.util
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metagen_ray.metrics import METRICS
from tests.cluster import manifests, shapes
from tests.cluster.manifests import ROOT, document

promql = pytest.importorskip("promql_parser", reason="no promql-parser; `make setup` installs it")

MONITORING = ROOT / "cluster" / "monitoring"
# Metrics of Ray's own: the label we use of each, and the file of the installed package that defines it.
RAYS = {
    "ray_cluster_active_nodes": ({"node_type"}, "ray/dashboard/modules/reporter/reporter_agent.py"),
    "ray_node_disk_utilization_percentage": ({"instance"}, "ray/dashboard/modules/reporter/reporter_agent.py"),
    "ray_node_gpus_utilization": ({"instance"}, "ray/dashboard/modules/reporter/reporter_agent.py"),
    "ray_serve_deployment_queued_queries": ({"deployment"}, "ray/serve/_private/router.py"),
}
LABELS = {metric.exported(name): set(metric.tags) for name, metric in METRICS.items()} | {
    name: labels for name, (labels, _) in RAYS.items()
}


def dashboard() -> dict[str, Any]:
    return json.loads((MONITORING / "grafana-study.json").read_text(encoding="utf-8"))


SHAPES = {
    "prometheus.yml": (shapes.PROMETHEUS, "global/scrape_intervall"),
    "podmonitor.yaml": (shapes.POD_MONITOR, "spec/podMetricsEndpoint"),
    "grafana-study.json": (shapes.DASHBOARD, "panels/0/gridpos"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_monitoring_file_has_its_shape_and_a_typo_breaks_it(name: str) -> None:
    shape, typo = SHAPES[name]
    found = document(MONITORING / name)  # JSON is YAML too
    assert manifests.faults(shape, found) == []
    manifests.plant(found, typo, {})
    assert manifests.faults(shape, found)


def queries() -> list[str]:
    """Every query, Grafana's variables replaced by values."""
    found = [target["expr"] for panel in dashboard()["panels"] for target in panel["targets"]]
    return [query.replace("$__rate_interval", "1m").replace("$run", ".+") for query in found]


def faults(query: str) -> list[str]:
    """What a query asks for that is not there. It must parse."""
    wrong = []
    for selector, labels in selectors(promql.parse(query), set()):
        if selector.name not in LABELS:
            wrong.append(f"no metric {selector.name}")
        else:
            used = labels | {matcher.name for matcher in selector.matchers.matchers}
            wrong += [f"{selector.name} has no label {name}" for name in used - LABELS[selector.name]]
    return wrong


def selectors(node: Any, labels: set[str]) -> Iterator[tuple[Any, set[str]]]:
    """Every selector of a parsed query, with the labels that something around it groups by."""
    if isinstance(node, promql.VectorSelector):
        yield node, labels
    elif isinstance(node, promql.MatrixSelector):
        yield from selectors(node.vector_selector, labels)
    elif isinstance(node, promql.AggregateExpr):
        yield from selectors(node.expr, labels | set(node.modifier.labels if node.modifier else []))
    elif isinstance(node, promql.BinaryExpr):
        yield from selectors(node.lhs, labels)
        yield from selectors(node.rhs, labels)
    elif isinstance(node, promql.ParenExpr | promql.UnaryExpr | promql.SubqueryExpr):
        yield from selectors(node.expr, labels)
    elif isinstance(node, promql.Call):
        for argument in node.args:
            yield from selectors(argument, labels)


@pytest.mark.parametrize("query", queries())
def test_dashboard_query_names_metrics_and_labels_that_exist(query: str) -> None:
    assert faults(query) == []


@pytest.mark.parametrize(
    "query",
    [
        "sum by (stage) (ray_metagen_shards_dome_total)",
        "sum by (stage) (ray_metagen_shards_done)",  # the name before the suffix of a counter
        "clamp_min(1 - (sum by (stage) (rate(ray_metagen_tokens_totl[1m]))), 0)",
        'ray_metagen_shards_done_total{rum=~".+"}',
        "sum by (replica) (ray_metagen_shards_done_total)",
        "vllm_prefix_cache_hits / ray_node_gpus_utilization",
    ],
)
def test_dashboard_query_with_a_typo_is_found(query: str) -> None:
    assert faults(query)


def test_dashboard_query_that_does_not_parse_is_found() -> None:
    with pytest.raises(ValueError):
        faults("sum by (stage (ray_metagen_answers_total)")


def test_dashboard_shows_what_a_study_is_watched_for() -> None:
    asked = {s.name for query in queries() for s, _ in selectors(promql.parse(query), set())}
    assert {metric.exported(name) for name, metric in METRICS.items()} <= asked


def test_dashboard_panels_do_not_overlap() -> None:
    taken = set()
    for panel in dashboard()["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken and at["x"] + at["w"] <= 24, panel["title"]
        taken |= cells


@pytest.mark.parametrize("name", RAYS)
def test_rays_metrics_are_defined_where_we_say(name: str) -> None:
    package = importlib.util.find_spec("ray")
    assert package and package.origin
    source = Path(package.origin).parents[1] / RAYS[name][1]
    assert f'"{name.removeprefix("ray_")}"' in source.read_text(encoding="utf-8")


def test_prometheus_reads_the_file_that_ray_writes() -> None:
    from ray._private.ray_constants import PROMETHEUS_SERVICE_DISCOVERY_FILE

    (job,) = document(MONITORING / "prometheus.yml")["scrape_configs"]
    assert [Path(name).name for name in job["file_sd_configs"][0]["files"]] == [PROMETHEUS_SERVICE_DISCOVERY_FILE]


def test_pod_monitor_selects_every_pod_of_both_clusters_by_a_port_it_has() -> None:
    spec = document(MONITORING / "podmonitor.yaml")["spec"]
    (selector,), (endpoint,) = spec["selector"]["matchExpressions"], spec["podMetricsEndpoints"]
    for path, cluster in manifests.clusters():
        for group in manifests.groups(cluster):
            template = group["template"]
            assert template["metadata"]["labels"][selector["key"]] in selector["values"], path
            ports = {port["name"]: port["containerPort"] for port in template["spec"]["containers"][0]["ports"]}
            assert ports[endpoint["port"]] == 8080
