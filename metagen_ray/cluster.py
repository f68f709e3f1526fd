"""Reaching Ray: a local cluster or one that runs, checked before anything is spent. Knows no stages."""

import math
import os
import shutil
import signal
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ray
import ray.exceptions

from metagen_ray.errors import MachineError
from metagen_ray.nodes import ASKER_CPUS, GIB, SERVE, TRAIN, alive, autoscales, bundles, release, unplaced
from metagen_ray.study import Resources, Study

OBJECT_STORE_BYTES = 256 * 2**20  # paths and keys travel, not data
REACH_S = 10.0
NAMESPACE = "metagen"  # of the actors that outlive a job
LOOPBACK = "127.0.0.1"
HEAD = "node:__internal_head__"  # a resource that only the head node has


def reach(address: str | None) -> None:
    """Join the cluster at `address`, or the one this job runs in, or start one on this machine.

    MachineError where there is none, or where its versions differ from ours.
    """
    address = address or os.environ.get("RAY_ADDRESS")
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    os.environ.setdefault("RAY_TRAIN_ENABLE_PRINT_PATCH", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address:
        _require_listener(address)
    on_sigterm = signal.getsignal(signal.SIGTERM)
    try:
        if address:
            os.environ.setdefault("RAY_AUTH_MODE", "token")
            ray.init(address=address, **quiet)
        else:
            # Ray turns token authentication on for a cluster it starts itself.
            ray.init(include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **quiet)
    except RuntimeError as error:
        if "ersion mismatch" in str(error):
            raise MachineError(
                f"the cluster runs another Ray or Python than this driver (ray {ray.__version__}): {_line(error)}; "
                "install the same lock on both"
            ) from None
        raise
    except (ConnectionError, ray.exceptions.AuthenticationError) as error:
        raise MachineError(
            f"no cluster at {address}: {_line(error)}; check the address, the token and RAY_AUTH_MODE"
        ) from None
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_sigterm)  # Ray has put its own in the place, which waits for everything


def _require_listener(address: str) -> None:
    """MachineError where nothing listens at HOST:PORT; Ray itself would try for minutes."""
    if address in ("auto", "local"):
        return
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or int(port) > 65535:
        raise MachineError(f"{address!r} is no address of a cluster; write HOST:PORT or `auto`")
    try:
        socket.create_connection((host.removeprefix("ray://").strip("[]"), int(port)), REACH_S).close()
    except (OSError, UnicodeError) as error:  # a host name that cannot be encoded is a UnicodeError
        raise MachineError(f"no cluster at {address}: {error}; check the address") from None


def overlaps(study: Study) -> bool:
    """Whether this study trains and asks at the same time on this cluster, or in turn."""
    return overlap_fits(study.resources, ray.cluster_resources())


def overlap_fits(need: Resources, have: Mapping[str, float]) -> bool:
    """`resources.overlap` made concrete. `auto`: each worker and replica has whole cores and GPUs, the askers one more.

    MachineError where `on` is asked for and the shares themselves do not fit: workers would wait for askers to end.
    """
    if need.overlap == "off" or need.phases == "in_turn":
        return False
    whole = need.overlap == "auto"
    askers = need.askers * ASKER_CPUS
    cpus = _for_both(need, need.cpus_per_worker, need.cpus_per_replica, whole) + (
        math.ceil(askers) if whole else askers
    )
    gpus = _for_both(need, need.gpus_per_worker, need.gpus_per_replica, whole)
    fits = cpus <= have.get("CPU", 0.0) and gpus <= have.get("GPU", 0.0)
    if not fits and not whole:
        raise MachineError(
            f"resources.overlap is on, but training and serving at once need {cpus:g} CPUs and {gpus:g} GPUs, the "
            f"cluster has {have.get('CPU', 0.0):g} and {have.get('GPU', 0.0):g}; lower resources.replicas or "
            "lanes, or set overlap to auto"
        )
    return fits


def _for_both(need: Resources, per_worker: float, per_replica: float, whole: bool) -> float:
    workers = max(need.lanes * need.workers_per_lane, need.meta_workers)
    if whole:  # a share of a device is a device that somebody else may use too
        per_worker, per_replica = math.ceil(per_worker), math.ceil(per_replica)
    return workers * per_worker + need.replicas * per_replica


def app_host(need: Resources) -> str:
    """Where the app listens: on loopback where this machine is the whole cluster, else the head's private address."""
    if need.host:
        return need.host
    nodes = [node for node in ray.nodes() if node["Alive"]]
    if len(nodes) == 1 and not autoscales() and not unplaced(bundles(need, (TRAIN, SERVE)), alive()):
        return LOOPBACK
    return next(node["NodeManagerAddress"] for node in nodes if HEAD in node["Resources"])


def take_down() -> list[str]:
    """End the app and the long-lived actors of metagen on the connected cluster; says what was ended."""
    from metagen_ray.serving import app  # not for those who only reach a cluster

    gone = []
    release()  # a driver that was killed has left its demand for nodes
    if app.is_up():
        app.undeploy()
        gone.append("app: ended")
    named: list[Any] = ray.util.list_named_actors(all_namespaces=True)
    for actor in named:
        if actor["namespace"] == NAMESPACE:
            ray.kill(ray.get_actor(actor["name"], NAMESPACE))
            gone.append(f"actor {actor['name']}: ended")
    return gone


def token_file() -> str:
    """Where this machine keeps Ray's token."""
    return os.environ.get("RAY_AUTH_TOKEN_PATH", str(Path.home() / ".ray" / "auth_token"))


def free_disk_gib(path: Path) -> float:
    """Free space where `path` lies, GiB."""
    return shutil.disk_usage(path if path.exists() else path.parent).free / GIB


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
