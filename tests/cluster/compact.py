"""Makes tests/cluster/schemas/ from published files: `python -m tests.cluster.compact CRDS CORE COMPOSE EC2 COMPUTE`.

CRDS is the folder of KubeRay's custom resource definitions, CORE the `_definitions.json` of a strict version in the
package kubernetes-validate, COMPOSE the `compose-spec.json` of check-jsonschema, EC2 the `service-2.json.gz` of
botocore, COMPUTE the `compute.v1.json` of google-api-python-client.
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
    definition = yaml.load(path.read_text(encoding="utf-8"), Loader=yaml.CSafeLoader)
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


def ec2_schema(service: dict[str, Any]) -> dict[str, Any]:
    """What starts an EC2 instance: the input of RunInstances."""
    shapes, wanted, kept = service["shapes"], ["RunInstancesRequest"], {}
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = ec2_shape(shapes[name])
            wanted += references(kept[name])
    return {"$ref": REFERENCE + "RunInstancesRequest", "$defs": kept}


def ec2_shape(shape: dict[str, Any]) -> dict[str, Any]:
    """One shape of botocore's service model as JSON schema."""
    kind = shape["type"]
    if kind == "structure":
        fields = {name: {"$ref": member["shape"]} for name, member in shape["members"].items()}
        required = {"required": shape["required"]} if shape.get("required") else {}
        return {"type": "object", "properties": fields, "additionalProperties": False} | required
    if kind == "list":
        return {"type": "array", "items": {"$ref": shape["member"]["shape"]}}
    if kind == "string":
        return {"type": "string"} | ({"enum": shape["enum"]} if "enum" in shape else {})
    return {"type": {"integer": "integer", "long": "integer", "boolean": "boolean"}.get(kind, ["number", "string"])}


def compute_schema(discovery: dict[str, Any]) -> dict[str, Any]:
    """What starts a Compute Engine instance: the body of instances.insert."""
    kept: dict[str, Any] = {}
    wanted = ["Instance"]
    while wanted:
        name = wanted.pop()
        if name not in kept:
            kept[name] = compute_shape(discovery["schemas"][name])
            wanted += references(kept[name])
    return {"$ref": REFERENCE + "Instance", "$defs": kept}


def compute_shape(node: dict[str, Any]) -> dict[str, Any]:
    """One schema of a discovery document as JSON schema."""
    if "$ref" in node:
        return {"$ref": node["$ref"]}
    kept = {key: node[key] for key in ("type", "enum") if key in node}
    if node.get("format") in ("int64", "uint64"):
        kept["type"] = ["string", "integer"]
    if "items" in node:
        kept["items"] = compute_shape(node["items"])
    if "properties" in node:
        kept["properties"] = {name: compute_shape(field) for name, field in node["properties"].items()}
        kept["additionalProperties"] = False
    return kept


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


def read(path: str) -> dict[str, Any]:
    data = Path(path).read_bytes()
    return json.loads(gzip.decompress(data) if path.endswith(".gz") else data)


def main(crds: str, core: str, compose: str, ec2: str, compute: str) -> None:
    for kind in KUBERAY:
        write(f"kuberay-{kind}", crd_schema(Path(crds) / f"ray.io_{kind}.yaml"))
    write("kubernetes", core_schema(read(core)["$defs"]))
    write("compose", described_no_more(read(compose)))
    write("aws", ec2_schema(read(ec2)))
    write("gcp", compute_schema(read(compute)))


if __name__ == "__main__":
    main(*sys.argv[1:])
