"""Makes tests/cluster/schemas/ from the published files: `python -m tests.cluster.compact CRDS DEFINITIONS COMPOSE`.

CRDS is the folder of KubeRay's custom resource definitions, DEFINITIONS the `_definitions.json` of a strict version in
the package kubernetes-validate, COMPOSE the `compose-spec.json` of the package check-jsonschema.
"""

import gzip
import json
import sys
from pathlib import Path
from typing import Any

import yaml

SCHEMAS = Path(__file__).parent / "schemas"
KUBERAY = ("rayclusters", "rayjobs", "rayservices")
CORE = {
    "ConfigMap": "io.k8s.api.core.v1.ConfigMap",
    "NetworkPolicy": "io.k8s.api.networking.v1.NetworkPolicy",
    "ObjectMeta": "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta",
    "PersistentVolumeClaim": "io.k8s.api.core.v1.PersistentVolumeClaim",
    "Secret": "io.k8s.api.core.v1.Secret",
    "ServiceAccount": "io.k8s.api.core.v1.ServiceAccount",
}
REFERENCE = "#/$defs/"


def crd_schema(path: Path) -> dict[str, Any]:
    """The schema of version v1 in a custom resource definition."""
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)  # noqa: S506 - it is a safe one
    (version,) = [v for v in definition["spec"]["versions"] if v["name"] == "v1"]
    return described_no_more(version["schema"]["openAPIV3Schema"])


def core_schema(definitions: dict[str, Any]) -> dict[str, Any]:
    """Our kinds and everything they refer to."""
    kept: dict[str, Any] = {}
    wanted = list(CORE.values())
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = described_no_more(definitions[name])
            wanted += references(kept[name])
    return {"kinds": {kind: REFERENCE + name for kind, name in CORE.items()}, "$defs": kept}


def references(node: Any) -> list[str]:
    """Names of the definitions that a schema refers to; local references are written the short way."""
    if isinstance(node, list):
        return [name for item in node for name in references(item)]
    if not isinstance(node, dict):
        return []
    if isinstance(node.get("$ref"), str):
        name = node["$ref"].rpartition("/")[2]
        node["$ref"] = REFERENCE + name
        return [name]
    return [name for item in node.values() for name in references(item)]


def described_no_more(node: Any, names: bool = False) -> Any:
    """A schema without descriptions; `names` where the keys are names of fields."""
    if isinstance(node, list):
        return [described_no_more(item) for item in node]
    if not isinstance(node, dict):
        return node
    return {
        key: described_no_more(value, names=key in ("properties", "definitions", "$defs") and not names)
        for key, value in node.items()
        if names or key != "description"
    }


def write(name: str, schema: dict[str, Any]) -> None:
    """Compact, and the same bytes each time."""
    text = json.dumps(schema, sort_keys=True, separators=(",", ":"))
    (SCHEMAS / f"{name}.json.gz").write_bytes(gzip.compress(text.encode(), mtime=0))


def main(crds: str, definitions: str, compose: str) -> None:
    for kind in KUBERAY:
        write(f"kuberay-{kind}", crd_schema(Path(crds) / f"ray.io_{kind}.yaml"))
    write("kubernetes", core_schema(json.loads(Path(definitions).read_text(encoding="utf-8"))["$defs"]))
    write("compose", described_no_more(json.loads(Path(compose).read_text(encoding="utf-8"))))


if __name__ == "__main__":
    main(*sys.argv[1:])
