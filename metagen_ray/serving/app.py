"""The app as a whole: one base and its adapters behind one URL. Owns deployment; knows neither vLLM nor studies.

Nothing heavy is imported here: vLLM is imported once, by the replica that runs it.
"""

import errno
import os
import re
import socket
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.config import RequestRouterConfig
from ray.serve.context import _get_global_client
from ray.serve.schema import ApplicationStatusOverview, ProxyStatus

from metagen_ray.errors import InputError, MachineError
from metagen_ray.serving.auth import default_token_file, ensure_token_file
from metagen_ray.serving.ingress import Ingress

APP = "metagen"
MAX_LORA_RANK = 512
# A session's requests go to one replica, and to the next one where that has its hands full.
ROUTER: Any = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
QUIET = {"log_level": "WARNING", "enable_access_log": False}
FAILED = ("DEPLOY_FAILED", "UNHEALTHY")


@dataclass(frozen=True)
class ServingSpec:
    """What is served and with what. Limits on requests count requests of many prompts."""

    model_dir: str
    model_name: str
    store: str
    adapter_stages: tuple[str, ...] = ("object_sft",)  # served as LoRA, many in a batch
    merged_stages: tuple[str, ...] = ("meta_sft",)  # merged into the base, one at a time
    max_lora_rank: int = 8
    max_model_len: int = 512
    adapters_in_batch: int = 8
    adapters_in_memory: int = 128
    replicas: int = 1
    max_replicas: int | None = None
    requests_per_replica: int = 6
    cpus_per_replica: float = 1.0
    gpus_per_replica: float = 0.0
    kv_cache_gib: float = 0.25
    threads: int = 1
    prompts_in_batch: int = 256
    tokens_in_batch: int = 4096
    host: str = "127.0.0.1"
    port: int = 0
    node_labels: tuple[tuple[str, str], ...] = ()  # of the nodes that may hold a replica
    start_timeout_s: float = 900.0

    @property
    def bundle(self) -> dict[str, float]:
        """Resources of one replica."""
        gpus = {"GPU": self.gpus_per_replica} if self.gpus_per_replica else {}
        return {"CPU": self.cpus_per_replica} | gpus


@dataclass(frozen=True)
class App:
    """A deployed app. `token_file` holds its bearer token on every node that asks it."""

    url: str
    model_name: str
    token_file: str


def deploy(spec: ServingSpec, token_file: str | Path | None = None) -> App:
    """Deploy the app on the connected cluster and return once it answers.

    MachineError where the port is taken, the cluster has too few CPUs or GPUs, or a replica does not start.
    """
    if ":" in spec.model_name or not spec.model_name:
        raise InputError(f"model name {spec.model_name!r}: give a name without a colon; it sets adapters apart")
    if spec.max_lora_rank > MAX_LORA_RANK:
        raise InputError(f"LoRA rank {spec.max_lora_rank} is above the engine's {MAX_LORA_RANK}; train at a lower rank")
    url = _listen(spec)
    _check_resources(spec)
    token_path = ensure_token_file(Path(token_file) if token_file else default_token_file())
    undeploy_app()
    target = serve.RunTarget(build(spec, str(token_path)), name=APP, route_prefix="/", logging_config=QUIET)
    serve.run_many([target], wait_for_ingress_deployment_creation=False, wait_for_applications_running=False)
    _wait_running(spec)
    return App(url, spec.model_name, str(token_path))


def undeploy() -> None:
    """End the app, and Serve with it where no other app is left."""
    undeploy_app()
    if _serve_client() is not None and not serve.status().applications:
        serve.shutdown()


def is_up() -> bool:
    """Whether the cluster has the app, in whatever state."""
    return _serve_client() is not None and APP in serve.status().applications


def undeploy_app(wait: bool = True) -> None:
    """End the app, also one that an earlier driver left; Serve goes on."""
    if is_up():
        serve.delete(APP, _blocking=wait)


def build(spec: ServingSpec, token_file: str) -> serve.Application:
    """The graph of deployments: ingress -> engine replicas."""
    from metagen_ray.serving.replica import EngineReplica

    engine = serve.deployment(EngineReplica, **engine_options(spec)).bind(spec)
    ingress = serve.deployment(
        Ingress,
        name="ingress",
        num_replicas=1,
        max_ongoing_requests=1000,
        ray_actor_options={"num_cpus": 0},
    )
    return ingress.bind(engine, spec.model_name, token_file)


def engine_options(spec: ServingSpec) -> dict[str, Any]:
    """Serve's options of the engine deployment."""
    scale: dict[str, Any] = {"num_replicas": spec.replicas}
    if spec.max_replicas is not None and spec.max_replicas > spec.replicas:
        limits = {"min_replicas": spec.replicas, "max_replicas": spec.max_replicas}
        scale = {
            "autoscaling_config": {
                **limits,
                "target_ongoing_requests": max(1, spec.requests_per_replica // 2),
            }
        }
    return {
        "name": "engine",
        **scale,
        "max_ongoing_requests": spec.requests_per_replica,
        "request_router_config": RequestRouterConfig(request_router_class=ROUTER),
        "ray_actor_options": {"num_cpus": spec.cpus_per_replica, "num_gpus": spec.gpus_per_replica},
        "placement_group_bundles": [spec.bundle],
        **({"placement_group_bundle_label_selector": [dict(spec.node_labels)]} if spec.node_labels else {}),
        "health_check_period_s": 5,
        "health_check_timeout_s": 60,
        "max_constructor_retry_count": 1 + spec.replicas,  # each may be lost once while it starts
        "graceful_shutdown_timeout_s": 5,
        "graceful_shutdown_wait_loop_s": 0.5,
    }


def _serve_client() -> Any:
    """The connection to the cluster's Serve; None where none runs."""
    return _get_global_client(raise_if_no_controller_running=False) if ray.is_initialized() else None


def _listen(spec: ServingSpec) -> str:
    """Start Serve's HTTP proxy, or find the one that an earlier driver left; returns its URL."""
    client = _serve_client()
    if client is None:
        port = _free_port(spec.host, spec.port)
        _start_proxy({"host": spec.host, "port": port}, spec.start_timeout_s)
        return f"http://{spec.host}:{port}"
    running = client.http_config
    if spec.port not in (0, running.port):
        raise MachineError(
            f"Serve listens on {running.host}:{running.port} in this cluster already, not on port {spec.port}; "
            "leave the port at 0, or end Serve with `serve shutdown`"
        )
    return f"http://{running.host}:{running.port}"


def _start_proxy(http: dict[str, Any], limit_s: float) -> None:
    """Start Serve and return once its proxy listens.

    Serve ends a proxy that is not ready within 5 s, as on a loaded node, and starts the next one, which gets 5 s more;
    its own start knows the first one alone.
    """
    deadline = time.monotonic() + limit_s
    start = partial(serve.start, proxy_location="HeadOnly", http_options=http, logging_config=QUIET)
    try:
        start()
        return
    except (RayActorError, TimeoutError):
        start()  # joins what runs; where that was the controller's end, it must not listen elsewhere
    while not any(state == ProxyStatus.HEALTHY for state in serve.status().proxies.values()):
        if time.monotonic() > deadline:
            raise MachineError(
                f"Serve's HTTP proxy on {http['host']}:{http['port']} is not ready after {limit_s:g} s; "
                "the logs of Serve's controller and proxy on the head say why"
            )
        time.sleep(0.5)


def _wait_running(spec: ServingSpec) -> None:
    """Return once the app answers; where it does not, take it down again and say why."""
    deadline = time.monotonic() + spec.start_timeout_s
    state = serve.status().applications[APP]
    while state.status != "RUNNING":
        if _given_up(state) or time.monotonic() > deadline:
            replicas = "; ".join(d.message for d in state.deployments.values() if d.message)
            undeploy_app()
            raise MachineError(
                f"the app of {spec.model_name} did not start ({state.status}): {_reason(state.message or replicas)}"
            )
        time.sleep(0.1)
        state = serve.status().applications[APP]


def _given_up(state: ApplicationStatusOverview) -> bool:
    """Whether Serve has. A replica that was up and is lost while others start, as with its node, is called a failed
    deployment as well, but Serve starts another one.
    """
    if state.status not in FAILED:
        return False
    failed = [d.status_trigger for d in state.deployments.values() if d.status in FAILED]
    return not failed or any(why != "HEALTH_CHECK_FAILED" for why in failed)


def _free_port(host: str, port: int) -> int:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise MachineError(
                    f"port {port} on {host} is taken; give another one, or 0 for any that is free"
                ) from None
            raise MachineError(
                f"cannot listen on {host}:{port} ({os.strerror(error.errno or 0)}); give an address of this node"
            ) from None
        return probe.getsockname()[1]


def _check_resources(spec: ServingSpec) -> None:
    """MachineError where the cluster could never hold the replicas."""
    total = ray.cluster_resources()
    for name, need in (
        ("CPU", spec.cpus_per_replica * spec.replicas),
        ("GPU", spec.gpus_per_replica * spec.replicas),
    ):
        if need > total.get(name, 0.0):
            raise MachineError(
                f"{spec.replicas} serving replicas need {need:g} {name}, the cluster has {total.get(name, 0.0):g}; "
                f"lower resources.replicas or resources.{name.lower()}s_per_replica, or add nodes"
            )


def _reason(message: str) -> str:
    """The line of a traceback that says what is wrong."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    errors = [line for line in lines if re.match(r"[\w.]*(Error|Exception)\b", line)]
    told = errors[-1:] or lines[:1] or ["no reason given; see the replica's log"]
    return told[0][:400]
