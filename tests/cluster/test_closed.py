"""Manifests are closed: token everywhere, no token inside, dashboards on loopback, nothing of Ray open to a network."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cluster import manifests
from tests.cluster.manifests import COMPOSE, KUBERAY, LAUNCHERS, ROOT, document, documents

FILES = sorted(p for folder in ("cluster", "docker") for p in (ROOT / folder).rglob("*") if p.is_file())
SECRETS = re.compile(r"\b[0-9a-f]{24,}\b|\bAKIA[0-9A-Z]{12,}|PRIVATE KEY|\beyJ[\w-]{20,}|\bgh[ps]_\w{20,}")
SECRET_NAME = re.compile(r"(TOKEN|SECRET|PASSWORD|KEY)$", re.IGNORECASE)
USERS = "metagen-users"
OPERATOR = "kuberay-operator"


def openings_of_launcher(config: dict[str, Any]) -> list[str]:
    """What of a `ray up` file opens a cluster, or leaves its token out."""
    start, auth = config["head_start_ray_commands"][-1], "/home/ray/.ray/auth_token"
    wrong = {
        "token authentication is not on": "--env=RAY_AUTH_MODE=token" not in config["docker"]["run_options"],
        "the token is not mounted": config["file_mounts"].get(auth) != "~/.ray/auth_token",
        "the dashboard is not on loopback": re.findall(r"--dashboard-host=(\S+)", start) != ["127.0.0.1"],
        "Ray Client is asked for": "--ray-client-server-port" in start,
        "nodes have public addresses": config["provider"].get("use_internal_ips") is not True,
        "Ray would make a security group open to SSH": not all(map(has_own_network, node_configs(config))),
    }
    return [fault for fault, is_there in wrong.items() if is_there]


def node_configs(config: dict[str, Any]) -> list[dict[str, Any]]:
    return [node_type["node_config"] for node_type in config["available_node_types"].values()]


def has_own_network(node: dict[str, Any]) -> bool:
    """Whether a node names its network, and asks for no public address there."""
    if "SecurityGroupIds" in node:
        return "SubnetIds" in node
    interfaces = node.get("NetworkInterfaces") or node.get("networkInterfaces") or []
    public = [card for card in interfaces if card.get("accessConfigs") or card.get("AssociatePublicIpAddress")]
    return bool(interfaces) and not public


def openings_of_compose(found: dict[str, Any]) -> list[str]:
    """What of a compose file listens beyond loopback, or runs without the token."""
    wrong = []
    for name, service in found["services"].items():
        wrong += [f"{name}: {port} is not on loopback" for port in service.get("ports", []) if not loopback(port)]
        wrong += [f"{name}: {key}" for key in ("network_mode", "privileged", "pid", "ipc") if key in service]
        if "ray" in service.get("command", []) and service["environment"].get("RAY_AUTH_MODE") != "token":
            wrong.append(f"{name}: token authentication is not on")
        wrong += [f"{name}: {key} holds a secret" for key in service["environment"] if SECRET_NAME.search(key)]
    return wrong


def loopback(port: Any) -> bool:
    return isinstance(port, str) and port.startswith("127.0.0.1:") and port.count(":") == 2


def openings_of_cluster(cluster: dict[str, Any]) -> list[str]:
    """What of a Ray cluster's spec is open, or runs as somebody it should not."""
    head = cluster["headGroupSpec"]
    wrong = [
        *(["token authentication is not on"] if cluster.get("authOptions", {}).get("mode") != "token" else []),
        *(["the head's service is no ClusterIP"] if head.get("serviceType") != "ClusterIP" else []),
        *(["the head has an ingress"] if head.get("enableIngress") else []),
    ]
    for group in manifests.groups(cluster):
        spec = group["template"]["spec"]
        ports = [port["containerPort"] for c in spec["containers"] for port in c.get("ports", [])]
        wrong += ["Ray Client is offered"] * (not ports or 10001 in ports)
        wrong += ["a pod may run as root"] * (spec.get("securityContext", {}).get("runAsNonRoot") is not True)
        wrong += ["a pod uses the node's network"] * bool(spec.get("hostNetwork"))
        locked = [c.get("securityContext", {}).get("allowPrivilegeEscalation") is False for c in spec["containers"]]
        wrong += ["a container may gain privileges"] * (not all(locked))
    return wrong


def reachable(policies: list[dict[str, Any]], labels: dict[str, str]) -> Iterator[tuple[str, int | None]]:
    """(who, port) that policies let through to a pod; `same`: pods of its cluster, else a namespace; None: any port."""
    chosen = [p["spec"] for p in policies if selects(p["spec"]["podSelector"], labels)]
    assert chosen, f"no policy selects {labels}: it is open"
    for spec in chosen:
        assert "Ingress" in spec["policyTypes"]
        for rule in spec["ingress"]:
            for peer in rule["from"]:
                for port in rule.get("ports", [{"port": None}]):
                    yield who(peer, labels), port["port"]


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    return set(selector) == {"matchLabels"} and selector["matchLabels"].items() <= labels.items()


def who(peer: dict[str, Any], labels: dict[str, str]) -> str:
    if set(peer) == {"podSelector"} and peer["podSelector"]["matchLabels"]:
        return "same" if selects(peer["podSelector"], labels) else "other pods"
    (name,) = peer["namespaceSelector"]["matchLabels"].values() if set(peer) == {"namespaceSelector"} else [str(peer)]
    return name


@pytest.mark.parametrize("path", FILES, ids=lambda p: p.name)
def test_no_file_holds_a_secret_or_listens_everywhere(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert not SECRETS.search(text)
    assert "0.0.0.0" not in text and "10001" not in text


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_is_closed(name: str) -> None:
    assert openings_of_launcher(document(LAUNCHERS[name])) == []


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_that_is_opened_is_found(name: str) -> None:
    config = document(LAUNCHERS[name])
    config["head_start_ray_commands"][-1] += " --dashboard-host=0.0.0.0 --ray-client-server-port=10001"
    config["docker"]["run_options"].remove("--env=RAY_AUTH_MODE=token")
    config["file_mounts"] = {}
    config["provider"]["use_internal_ips"] = False
    config["available_node_types"]["head"]["node_config"] = {}
    assert len(openings_of_launcher(config)) == 6


def test_compose_is_closed() -> None:
    assert openings_of_compose(document(COMPOSE)) == []


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ports", ["8265:8265"]),
        ("ports", ["0.0.0.0:8265:8265"]),
        ("ports", [{"target": 8265, "published": 8265}]),
        ("network_mode", "host"),
        ("environment", {"RAY_AUTH_MODE": "disabled"}),
        ("environment", {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "abc"}),
    ],
)
def test_compose_that_is_opened_is_found(key: str, value: Any) -> None:
    found = document(COMPOSE)
    found["services"]["head"][key] = value
    assert openings_of_compose(found)


def test_kubernetes_clusters_are_closed() -> None:
    secret = document(KUBERAY / "token-secret.yaml")
    for path, cluster in manifests.clusters():
        assert openings_of_cluster(cluster) == [], path
        assert cluster["authOptions"]["secretName"] == secret["metadata"]["name"]
    assert not any(found["kind"] in ("Service", "Ingress") for _, found in manifests.kubernetes_objects())


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serviceType", "LoadBalancer"),
        ("enableIngress", True),
        ("template", {"spec": {"containers": [{"ports": [{"containerPort": 10001}]}]}}),
    ],
)
def test_kubernetes_cluster_that_is_opened_is_found(key: str, value: Any) -> None:
    _, cluster = next(manifests.clusters())
    cluster["headGroupSpec"][key] = value
    assert openings_of_cluster(cluster)
    assert openings_of_cluster({**cluster, "authOptions": {"mode": "disabled"}})


def test_kubernetes_token_secret_holds_nothing_and_is_applied_by_nobody() -> None:
    assert set(document(KUBERAY / "token-secret.yaml")["stringData"].values()) == {""}
    for path in KUBERAY.rglob("kustomization.yaml"):
        assert not any("token-secret" in name for name in document(path).get("resources", [])), path


@pytest.mark.parametrize(
    ("folder", "file", "allowed"),
    [
        ("cluster", "raycluster.yaml", {(USERS, 8265)}),
        ("service", "rayservice.yaml", {(USERS, 8000)}),
    ],
)
def test_only_the_cluster_and_named_namespaces_reach_its_pods(folder: str, file: str, allowed: set) -> None:
    policies = documents(KUBERAY / folder / "networkpolicy.yaml")
    (cluster,) = [spec for path, spec in manifests.clusters() if path.name == file]
    everywhere = {("same", None), ("monitoring", 8080)} | {pair for pair in allowed if pair[1] == 8000}
    for group in manifests.groups(cluster):
        is_head = group is cluster["headGroupSpec"]
        labels = {**group["template"]["metadata"]["labels"], "ray.io/node-type": "head" if is_head else "worker"}
        at_head = {(OPERATOR, 8265)} | allowed if is_head else set()
        assert set(reachable(policies, labels)) == everywhere | at_head


def test_the_two_clusters_of_a_namespace_do_not_reach_each_other() -> None:
    labels = [
        {"ray.io/node-type": "head", **manifests.groups(c)[0]["template"]["metadata"]["labels"]}
        for _, c in manifests.clusters()
    ]
    assert labels[0] != labels[1]


def test_submitter_of_a_study_is_let_through() -> None:
    submitter = document(KUBERAY / "job" / "rayjob.yaml")["spec"]["submitterPodTemplate"]
    _, cluster = next(manifests.clusters())
    assert submitter["metadata"]["labels"] == cluster["headGroupSpec"]["template"]["metadata"]["labels"]
    for variable in submitter["spec"]["containers"][0]["env"]:
        assert not SECRET_NAME.search(variable["name"]) or "secretKeyRef" in variable["valueFrom"]
