"""Reading the manifests of cluster/ and docker/, and checking one of them against what is published of its format.

Each `faults_of_*` returns what is wrong as lines of text, an empty list where nothing is.
"""

import copy
import functools
import gzip
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import yaml

ROOT = Path(__file__).parents[2]
SCHEMAS = Path(__file__).parent / "schemas"
KUBERAY = ROOT / "cluster" / "kuberay"
LAUNCHERS = {name: ROOT / "cluster" / f"{name}.yaml" for name in ("aws", "gcp")}
COMPOSE = ROOT / "docker" / "compose.yaml"
RAY_START = re.compile(r"ray start (.*)", re.DOTALL)


def documents(path: Path) -> list[dict[str, Any]]:
    """The YAML documents of a file, aliases and merges resolved into copies of their own."""
    return [copy_apart(d) for d in yaml.safe_load_all(path.read_text(encoding="utf-8")) if d is not None]


def document(path: Path) -> dict[str, Any]:
    (only,) = documents(path)
    return only


def copy_apart(node: Any) -> Any:
    """A copy in which no two places share an object: a typo planted in one is not planted in the other."""
    return json.loads(json.dumps(node))


def plant(found: Any, path: str, value: Any) -> None:
    """Set a value at a path of keys; digits are places in a list."""
    *parents, last = path.split("/")
    for part in parents:
        found = found[int(part) if part.isdecimal() else part]
    found[int(last) if last.isdecimal() else last] = value


def kubernetes_objects() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every object of cluster/kuberay/ that goes to the API server, with its file."""
    for path in sorted(KUBERAY.rglob("*.yaml")):
        if path.name != "kustomization.yaml":
            yield from ((path, found) for found in documents(path))


def clusters() -> Iterator[tuple[Path, dict[str, Any]]]:
    """Every spec of a Ray cluster among them."""
    for path, found in kubernetes_objects():
        if found["kind"] == "RayCluster":
            yield path, found["spec"]
        elif found["kind"] == "RayService":
            yield path, found["spec"]["rayClusterConfig"]


def groups(cluster: dict[str, Any]) -> list[dict[str, Any]]:
    return [cluster["headGroupSpec"], *cluster["workerGroupSpecs"]]


@functools.cache
def schema(name: str) -> dict[str, Any]:
    return json.loads(gzip.decompress((SCHEMAS / f"{name}.json.gz").read_bytes()))


def strict(node: Any) -> Any:
    """A schema that refuses fields it does not name, where the published one leaves them to the API server to drop."""
    if isinstance(node, list):
        return [strict(item) for item in node]
    if not isinstance(node, dict):
        return node
    kept = {key: strict(value) for key, value in node.items()}
    if isinstance(node.get("properties"), dict) and not node.get("x-kubernetes-preserve-unknown-fields"):
        kept.setdefault("additionalProperties", False)
    return kept


def faults(wanted: dict[str, Any], found: Any) -> list[str]:
    """Where and how `found` breaks a schema."""
    validator = jsonschema.Draft202012Validator(wanted)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(found)]


def faults_of_launcher(config: dict[str, Any]) -> list[str]:
    """Of a file for `ray up`: Ray's own checks, the cloud's for the nodes, and the options of `ray start`."""
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(copy.deepcopy(config))
    prepared["cluster_synced_files"] = []
    try:
        validate_config(prepared)
    except (jsonschema.ValidationError, ValueError) as error:
        return [str(error).splitlines()[0]]
    unknown = [f"provider: {key} is unknown" for key in set(config["provider"]) - provider_keys()]
    return unknown + faults_of_nodes(config) + faults_of_ray_start(commands_of(config))


@functools.cache
def provider_keys() -> set[str]:
    """What Ray's launcher documents of a provider; its own check lets any other key pass."""
    import ray.autoscaler

    wanted = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text(encoding="utf-8"))
    return set(wanted["properties"]["provider"]["properties"])


def faults_of_nodes(config: dict[str, Any]) -> list[str]:
    """Of each node type's description, which Ray hands to the cloud unread."""
    found = []
    for name, node_type in config["available_node_types"].items():
        # SubnetIds is Ray's: the subnets it tries in turn. The counts are filled in when nodes start.
        node = {key: value for key, value in node_type["node_config"].items() if key != "SubnetIds"}
        counts = {"MinCount": 1, "MaxCount": 1} if config["provider"]["type"] == "aws" else {}
        found += [f"{name}: {fault}" for fault in faults(schema(config["provider"]["type"]), node | counts)]
    return found


def commands_of(config: dict[str, Any]) -> list[str]:
    return config["head_start_ray_commands"] + config["worker_start_ray_commands"]


def faults_of_ray_start(commands: list[str]) -> list[str]:
    """Options that `ray start` does not have."""
    options = {option for line in commands for rest in RAY_START.findall(line) for option in rest.split()}
    given = {option.split("=")[0].removeprefix("--") for option in options if option.startswith("--")}
    return [f"ray start has no --{name}" for name in sorted(given - ray_start_options())]


@functools.cache
def ray_start_options() -> set[str]:
    from ray.scripts.scripts import start

    return {flag.removeprefix("--") for option in start.params for flag in option.opts}


def faults_of_kubernetes(found: dict[str, Any]) -> list[str]:
    """Of an object for the API server: KubeRay's kinds by their definitions, ours by Kubernetes' own."""
    kind = found["kind"]
    if kind in ("RayCluster", "RayJob", "RayService"):
        wanted = strict(schema(f"kuberay-{kind.lower()}s"))
        core = schema("kubernetes")
        metadata = faults({"$ref": core["kinds"]["ObjectMeta"], "$defs": core["$defs"]}, found["metadata"])
        return faults(wanted, found) + metadata + faults_of_start_params(found)
    core = schema("kubernetes")
    if kind not in core["kinds"]:
        return [f"kind {kind} is none that we check"]
    return faults({"$ref": core["kinds"][kind], "$defs": core["$defs"]}, found)


def faults_of_start_params(found: dict[str, Any]) -> list[str]:
    """Keys of rayStartParams that become options which `ray start` does not have."""
    spec = found["spec"] if found["kind"] == "RayCluster" else found["spec"].get("rayClusterConfig")
    given = {key for group in groups(spec) for key in group.get("rayStartParams", {})} if spec else set()
    return [f"ray start has no --{name}" for name in sorted(given - ray_start_options())]


def faults_of_compose(found: dict[str, Any]) -> list[str]:
    """Of a compose file: the Compose Specification, and the options of `ray start`."""
    commands = [" ".join(service.get("command", [])) for service in found["services"].values()]
    return faults(schema("compose"), found) + faults_of_ray_start(commands)
