"""Manifests: each is right by the published description of its format, and a typo in any kind of them is found."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.cluster import compact, manifests, shapes
from tests.cluster.manifests import COMPOSE, KUBERAY, LAUNCHERS, ROOT, document, documents

DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
RAYCLUSTER = KUBERAY / "cluster" / "raycluster.yaml"
RAYJOB = KUBERAY / "job" / "rayjob.yaml"
RAYSERVICE = KUBERAY / "service" / "rayservice.yaml"


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_file_is_right(name: str) -> None:
    assert manifests.faults_of_launcher(document(LAUNCHERS[name])) == []


@pytest.mark.parametrize(
    ("name", "path", "value"),
    [
        ("aws", "idle_timeout_minuts", 5),
        ("aws", "max_workers", "8"),
        ("aws", "provider/regoin", "us-east-1"),
        ("aws", "available_node_types/gpu-spot/label", {"a": "b"}),
        ("aws", "available_node_types/gpu-spot/node_config/InstanceTyp", "g6e.12xlarge"),
        ("aws", "available_node_types/gpu-spot/node_config/InstanceType", "g6e.12xlarg"),
        ("aws", "available_node_types/gpu-spot/node_config/NetworkInterfaces/0/Group", ["sg-1"]),
        ("aws", "head_node_type", "haed"),
        ("aws", "head_start_ray_commands/1", "ray start --head --dashbord-host=127.0.0.1"),
        ("gcp", "docker/imgae", "metagen:gpu"),
        ("gcp", "available_node_types/gpu-spot/node_config/scheduling/provisioningModell", "SPOT"),
        ("gcp", "available_node_types/gpu-spot/node_config/scheduling/provisioningModel", "SPOTT"),
    ],
)
def test_launcher_typo_is_found(name: str, path: str, value: Any) -> None:
    found = document(LAUNCHERS[name])
    manifests.plant(found, path, value)
    assert manifests.faults_of_launcher(found)


@pytest.mark.parametrize("name", LAUNCHERS)
def test_launcher_head_computes_nothing_and_groups_start_empty(name: str) -> None:
    config = document(LAUNCHERS[name])
    types = config["available_node_types"]
    head = types.pop(config["head_node_type"])
    assert head["resources"] == {"CPU": 0}
    assert "--num-cpus=0" in config["head_start_ray_commands"][-1]
    assert {t["labels"]["metagen/market"] for t in types.values()} == {"on-demand", "spot"}
    assert all(t.get("min_workers", 0) == 0 and t["resources"]["GPU"] > 0 for t in types.values())
    assert config["max_workers"] <= sum(t["max_workers"] for t in types.values())
    assert "Spot" in str(types["gpu-spot"]["node_config"]).title()
    assert "Spot" not in str(types["gpu-on-demand"]["node_config"]).title()


@pytest.mark.parametrize("path", [p for p, _ in manifests.kubernetes_objects()], ids=lambda p: p.name)
def test_kubernetes_file_is_right(path: Path) -> None:
    assert [fault for found in documents(path) for fault in manifests.faults_of_kubernetes(found)] == []


@pytest.mark.parametrize(
    ("path", "place", "value"),
    [
        (RAYCLUSTER, "spec/enableInTreeAutoscalling", True),
        (RAYCLUSTER, "spec/autoscalerOptions/version", "v3"),
        (RAYCLUSTER, "spec/workerGroupSpecs/0/maxReplicas", "2"),
        (RAYCLUSTER, "spec/workerGroupSpecs/1/template/spec/containers/0/image_", "metagen"),
        (RAYCLUSTER, "spec/headGroupSpec/rayStartParams/num_cpus", "0"),
        (RAYCLUSTER, "metadata/lables", {}),
        (RAYJOB, "spec/entrypoints", "python"),
        (RAYJOB, "spec/submitterPodTemplate/spec/restartPolicies", "Never"),
        (RAYSERVICE, "spec/serveConfig", ""),
        (RAYSERVICE, "spec/rayClusterConfig/authOptions/mode", "tokens"),
        (KUBERAY / "cluster" / "storage.yaml", "spec/accessMode", ["ReadWriteMany"]),
        (KUBERAY / "cluster" / "serviceaccount.yaml", "automountServiceAccountToken", "no"),
        (KUBERAY / "token-secret.yaml", "stringdata", {}),
    ],
)
def test_kubernetes_typo_is_found(path: Path, place: str, value: Any) -> None:
    found = document(path)
    manifests.plant(found, place, value)
    assert manifests.faults_of_kubernetes(found)


def test_network_policy_typo_is_found() -> None:
    found = documents(KUBERAY / "cluster" / "networkpolicy.yaml")[1]
    manifests.plant(found, "spec/ingress/0/from/0/namespaceSelectors", {})
    assert manifests.faults_of_kubernetes(found)


def test_kubernetes_schemas_are_those_of_the_definitions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = os.environ.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip(
            "KUBERAY_CRDS names no folder of KubeRay's definitions; the copies in tests/cluster/schemas are used"
        )
    for kind in compact.KUBERAY:
        assert compact.crd_schema(Path(folder) / f"ray.io_{kind}.yaml") == manifests.schema(f"kuberay-{kind}")


def test_labels_of_nodes_are_such_as_ray_takes() -> None:
    from ray._private.label_utils import validate_label_key, validate_label_value, validate_node_labels

    launched = [t for path in LAUNCHERS.values() for t in document(path)["available_node_types"].values()]
    for group in [*launched, *(group for _, cluster in manifests.clusters() for group in manifests.groups(cluster))]:
        validate_node_labels(group.get("labels", {}))
        for key, value in group.get("labels", {}).items():
            assert validate_label_key(key) is None
            validate_label_value(value)


def test_kuberay_head_computes_nothing_and_the_cluster_starts_empty() -> None:
    for _, cluster in manifests.clusters():
        assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert cluster["enableInTreeAutoscaling"] is True and cluster["autoscalerOptions"]["version"] == "v2"
        assert f"ray=={cluster['rayVersion']}\n" in (ROOT / "docker" / "requirements-gpu.txt").read_text(
            encoding="utf-8"
        )
    workers = document(RAYCLUSTER)["spec"]["workerGroupSpecs"]
    assert all(group["minReplicas"] == group["replicas"] == 0 < group["maxReplicas"] for group in workers)
    assert {group["labels"]["metagen/market"] for group in workers} == {"on-demand", "spot"}


def test_kustomizations_name_files_that_exist_and_one_image() -> None:
    values = document(KUBERAY / "values" / "kustomization.yaml")
    (image,) = values["images"]
    for _, found in manifests.kubernetes_objects():
        assert set(re.findall(r"'image': '([^']*)'", str(found))) <= {image["name"]}, found["metadata"]["name"]
        assert set(re.findall(r"'configMapRef': {'name': '([^']*)'", str(found))) <= {
            generated["name"] for generated in values["configMapGenerator"]
        }
    for path in KUBERAY.rglob("kustomization.yaml"):
        found = document(path)
        assert manifests.faults(shapes.KUSTOMIZATION, found) == []
        assert manifests.faults(shapes.KUSTOMIZATION, {**found, "resource": ["raycluster.yaml"]})
        for name in [*found.get("resources", []), *found.get("components", [])]:
            assert (path.parent / name).exists(), f"{path}: {name}"


def test_rayjob_starts_a_study_that_the_command_line_takes() -> None:
    from metagen_ray.study import load_study

    _, job, study, *rest = document(RAYJOB)["spec"]["entrypoint"].split()
    assert (ROOT / "jobs" / Path(job).name).is_file()
    assert rest[::2] == ["--set"] * (len(rest) // 2)
    assert load_study(study, rest[1::2]).resources.gpus_per_worker == 1


def test_rayservice_serves_an_app_that_can_be_built() -> None:
    from ray.serve.schema import ServeDeploySchema

    from metagen_ray.errors import InputError
    from metagen_ray.serving import standing

    config = ServeDeploySchema.model_validate(yaml.safe_load(document(RAYSERVICE)["spec"]["serveConfigV2"]))
    (app,) = config.applications
    assert app.import_path == "metagen_ray.serving.standing:app"
    assert standing.app({"store": "s3://bucket/prefix", **app.args})
    with pytest.raises(InputError, match="model_dri"):
        standing.spec({"store": "s3://bucket/prefix", **app.args, "model_dri": "typo"})


def test_compose_file_is_right() -> None:
    assert manifests.faults_of_compose(document(COMPOSE)) == []


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("services/worker/depend_on", ["head"]),
        ("services/head/ports", "8265:8265"),
        ("services/worker/deploy/replicas", [2]),
        ("service", {}),
        ("services/head/command", ["ray", "start", "--haed"]),
    ],
)
def test_compose_typo_is_found(place: str, value: Any) -> None:
    found = document(COMPOSE)
    manifests.plant(found, place, value)
    assert manifests.faults_of_compose(found)


def test_compose_has_a_head_that_computes_nothing_two_workers_and_a_store() -> None:
    services = document(COMPOSE)["services"]
    assert "--num-cpus=0" in services["head"]["command"]
    assert services["worker"]["deploy"]["replicas"] == 2
    assert set(services) == {"head", "worker", "store"}


def hadolint(*paths: Path) -> str:
    """What hadolint has to say, an empty text where nothing."""
    linter = shutil.which("hadolint", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    if linter is None:
        pytest.skip("no hadolint; `make setup` installs it")
    return subprocess.run([linter, "--no-color", *map(str, paths)], capture_output=True, text=True, check=False).stdout


def test_dockerfiles_pass_the_linter() -> None:
    assert hadolint(*DOCKERFILES) == ""


@pytest.mark.parametrize(
    ("right", "wrong", "rule"),
    [
        ("WORKDIR /home", "WORKDIRS /home", "missing whitespace"),
        ("FROM python:3", "FROM python:latest AS was-3", "DL3007"),
        ("WORKDIR /home/ray/metagen", "WORKDIR metagen", "DL3000"),
    ],
)
def test_dockerfile_mistake_is_found(tmp_path: Path, right: str, wrong: str, rule: str) -> None:
    text = DOCKERFILES[0].read_text(encoding="utf-8")
    assert right in text
    (tmp_path / "Dockerfile").write_text(text.replace(right, wrong), encoding="utf-8")
    assert rule in hadolint(tmp_path / "Dockerfile")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda p: p.name)
def test_dockerfiles_pin_their_base_and_run_as_a_numbered_user(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert re.search(r"^FROM python:3\.11\.\d+-slim-\w+$", text, re.MULTILINE)
    assert re.findall(r"^USER (.*)$", text, re.MULTILINE) == ["$UID"] and "\nARG UID=1000\n" in text
    for source in re.findall(r"^COPY --chown=\S+ (.*) \S+$", text, re.MULTILINE):
        assert all(list(ROOT.glob(name)) for name in source.split()), source


@pytest.mark.parametrize("path", [*LAUNCHERS.values(), COMPOSE], ids=lambda p: p.name)
def test_values_of_a_site_are_stated_once(path: Path) -> None:
    root = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    texts = [node.value for node in scalars(root)]
    for name, node in values_of_a_site(root):
        assert texts.count(node.value) == 1 or node.value.isdecimal(), f"{name}: {node.value} is stated again"


def scalars(node: yaml.Node, seen: set[int] | None = None) -> list[yaml.Node]:
    """Every scalar that is written in a file, aliases not counted again."""
    seen = set() if seen is None else seen
    if id(node) in seen:
        return []
    seen.add(id(node))
    if isinstance(node, yaml.MappingNode):
        return [found for pair in node.value for part in pair for found in scalars(part, seen)]
    if isinstance(node, yaml.SequenceNode):
        return [found for part in node.value for found in scalars(part, seen)]
    return [node]


def values_of_a_site(root: yaml.Node) -> list[tuple[str, yaml.Node]]:
    """The header: `metadata` of a launcher file, the extension fields of a compose file."""
    top = {key.value: value for key, value in root.value}
    header = top["metadata"].value if "metadata" in top else [p for p in root.value if p[0].value.startswith("x-")]
    return [(key.value, value) for key, value in header if isinstance(value, yaml.ScalarNode)]
