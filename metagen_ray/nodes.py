"""The nodes that a study asks for: refused at once where no node could ever hold it, waited for where they may come.

`unplaced` is plain arithmetic over bundles and nodes. `hold` speaks to the connected cluster and, where it has one, to
its autoscaler: what later phases need stays asked for while another runs, so nodes neither come late nor go early.
"""

import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2
from ray.exceptions import RayError

from metagen_ray import autoscaler
from metagen_ray.errors import MachineError
from metagen_ray.progress import say
from metagen_ray.study import Resources

ASKER_CPUS = 0.1  # an actor that asks the app, and waits for it most of the time
SMALL_PARTS_CPUS = 0.05  # what the app and Ray Data start beside replicas and askers
GIB = 2**30
TOLD_S = 30.0  # between two words about nodes that have not come
LOOK_S = 1.0
PATIENT_S = 20.0  # what is impossible for so long stays so
FIRST_REPORT_S = 60.0
SLACK = 1e-6  # shares of a CPU are sums of floats
TRAIN, SERVE = "train", "serve"
STANDING = autoscaler.Standing()  # a driver has one demand


@dataclass(frozen=True)
class Bundle:
    """What one process needs on one node. `labels` are those its node must have."""

    what: str
    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """As a person would ask for it."""
        shape = ", ".join(f"{amount:g} {name}" for name, amount in self.resources.items())
        where = "".join(f", {name}={value}" for name, value in self.labels.items())
        return f"{self.what} ({shape}{where})"


@dataclass(frozen=True)
class Node:
    """A node that is up: all it has, whether in use or not."""

    resources: Mapping[str, float]
    labels: Mapping[str, str] = field(default_factory=dict)


def bundles(need: Resources, phases: Iterable[str]) -> list[Bundle]:
    """What a study's phases hold at the same time."""
    wanted: list[Bundle] = []
    for phase in phases:
        if phase == TRAIN:
            workers = max(need.lanes * need.workers_per_lane, need.meta_workers)
            shape = _shape(need.cpus_per_worker, need.gpus_per_worker)
            wanted += [Bundle("a training worker", shape, need.train_nodes)] * workers
        else:
            shape = _shape(need.cpus_per_replica, need.gpus_per_replica)
            wanted += [Bundle("a serving replica", shape, need.serve_nodes)] * need.replicas
            wanted += [Bundle("what asks the app", {"CPU": ASKER_CPUS})] * need.askers
            wanted.append(Bundle("the app's small parts", {"CPU": SMALL_PARTS_CPUS}))
    return wanted


def unplaced(wanted: Iterable[Bundle], nodes: Sequence[Node]) -> list[Bundle]:
    """The bundles that empty nodes have no room for; the largest are placed first, where least is left over."""
    free = [dict(node.resources) for node in nodes]
    left = []
    for bundle in sorted(wanted, key=_size):
        fitting = [n for n, node in enumerate(nodes) if _carries(node, free[n], bundle)]
        if not fitting:
            left.append(bundle)
            continue
        room = free[min(fitting, key=lambda n: (free[n].get("GPU", 0.0), free[n].get("CPU", 0.0)))]
        for name, amount in bundle.resources.items():
            room[name] -= amount
    return left


def demand(need: Resources, phases: Iterable[str]) -> list[Bundle]:
    """What the cluster must have at once for these phases, which share nodes where they take turns."""
    phases = sorted(set(phases))
    if need.phases == "together" or len(phases) < 2 or need.train_nodes != need.serve_nodes:
        return bundles(need, phases)
    return max((bundles(need, [phase]) for phase in phases), key=lambda w: (_sum(w, "GPU"), _sum(w, "CPU")))


def check_fit(need: Resources, phases: Iterable[str] = (TRAIN, SERVE)) -> None:
    """MachineError where the connected cluster, as it is, cannot hold the phases: what is missing, what to change."""
    nodes = alive()
    for wanted in _at_once(need, phases):
        _check_totals(wanted, nodes)
        left = unplaced(wanted, nodes)
        if left:
            raise MachineError(
                f"no node has room for {left[0]} beside the rest of the plan ({_counted(left)} left over); lower "
                f"{_settings_of(left[0])}, or add nodes"
            )
    memory = max((node.resources.get("memory", 0.0) for node in nodes), default=0.0) / GIB
    if memory < need.memory_gib:
        raise MachineError(
            f"the plan needs {need.memory_gib:g} GiB on a node, the largest has {memory:.1f} GiB free for Ray; "
            "close other programs, use a larger node, or lower resources.memory_gib if you know better"
        )


def hold(need: Resources, phases: Sequence[str], now: Iterable[str]) -> None:
    """Return once the nodes of `now` are up, and from then on ask the autoscaler for what is `beyond` the first phase.

    `phases` are those still to come, the one that begins first. Without an autoscaler this is a check. MachineError
    names what the node types cannot hold, or what did not come within `need.wait_for_nodes_s`.
    """
    now = list(now)
    wanted = demand(need, now)
    if not (autoscales() or _autoscales_soon(wanted)):
        if now:
            check_fit(need, phases)
        return
    if unplaced(wanted, alive()):  # phases in turn may have shapes of which neither holds the other
        _wait_for(wanted, need.wait_for_nodes_s)
    _ask(beyond(need, phases))


def beyond(need: Resources, phases: Sequence[str]) -> list[Bundle]:
    """What later phases need beside the first, whose own processes ask for its nodes; asked twice, it comes twice."""
    if need.phases != "together" and need.train_nodes == need.serve_nodes:  # the next one has the nodes of this one
        return []
    return bundles(need, sorted(set(phases[1:]) - set(phases[:1])))


def release() -> None:
    """Ask the autoscaler for nothing any more; a head that is gone asks for nothing either."""
    with suppress(RayError, MachineError):
        if ray.is_initialized():
            STANDING.withdraw()


def autoscales() -> bool:
    """Whether the connected cluster has an autoscaler that has looked at it."""
    return autoscaler.state().autoscaler_state_version > 0


def _autoscales_soon(wanted: Sequence[Bundle]) -> bool:
    """The same, after a while if need be: an autoscaler that has just been started has not looked yet."""
    end = time.monotonic() + FIRST_REPORT_S
    while is_autoscaler_v2(fetch_from_server=True) and unplaced(wanted, alive()) and time.monotonic() < end:
        time.sleep(LOOK_S)
        if autoscales():
            return True
    return False


def alive() -> list[Node]:
    """The nodes that are up."""
    return [Node(n["Resources"], n.get("Labels") or {}) for n in ray.nodes() if n["Alive"]]


def _at_once(need: Resources, phases: Iterable[str]) -> list[list[Bundle]]:
    """What must fit together; taking turns, each phase must fit alone."""
    phases = sorted(set(phases))
    return [bundles(need, phases)] if need.phases == "together" else [bundles(need, [phase]) for phase in phases]


def _check_totals(wanted: Sequence[Bundle], nodes: Sequence[Node]) -> None:
    for kind, name in (("CPUs", "CPU"), ("GPUs", "GPU")):
        need, have = _sum(wanted, name), sum(node.resources.get(name, 0.0) for node in nodes)
        if need > have + SLACK:
            raise MachineError(
                f"the plan needs {need:g} {kind}, the cluster has {have:g}; lower resources.replicas, "
                "resources.lanes or resources.meta_workers, or add nodes"
            )


def _wait_for(wanted: Sequence[Bundle], limit_s: float) -> None:
    began = told = possible = time.monotonic()
    _ask(wanted)
    while left := unplaced(wanted, alive()):
        now, state = time.monotonic(), autoscaler.state()
        if not (never := impossible(wanted, state)):
            possible = now
        elif now - possible >= PATIENT_S:
            raise MachineError(
                f"this cluster's node types cannot hold the plan, however far it grows: {_counted(never)}; lower "
                f"{_settings_of(never[0])}, or add a node type for {never[0]}, or more nodes (max_workers), to the "
                "cluster's file"
            )
        if now - began > limit_s:
            raise MachineError(
                f"nodes did not come within {limit_s:.0f} s: {_counted(left)} wait for one; {_coming(state)}. Look at "
                "`ray status`, ask the cloud for quota, or raise resources.wait_for_nodes_s"
            )
        if now - told > TOLD_S:
            told = now
            say(f"waiting for nodes, {now - began:.0f} s: {_counted(left)}; {_coming(state)}")
        time.sleep(LOOK_S)


def impossible(asked: Sequence[Bundle], state: Any) -> list[Bundle]:
    """All that was asked for, the largest first, where the autoscaler says that some of it could never be held.

    It does not say which, nor where another driver's is the part that cannot. It says so for a while too where nodes
    of an earlier study are still on their way out.
    """
    shapes = {_key(b.resources, b.labels): b for b in asked}
    for constraint in state.infeasible_cluster_resource_constraints:
        found = [(shapes.get(_asked_key(each.request)), each.count) for each in constraint.resource_requests]
        named = [bundle for bundle, count in found for _ in range(count) if bundle is not None]
        if named and all(bundle is not None for bundle, _ in found):  # else it is what another study asked for
            return sorted(named, key=_size)
    return []


def _asked_key(request: Any) -> tuple:
    return _key(request.resources_bundle, autoscaler.labels_of(request))


def _key(resources: Mapping[str, float], labels: Mapping[str, str]) -> tuple:
    return frozenset((k, round(v, 4)) for k, v in resources.items() if v), frozenset(labels.items())


def _coming(state: Any) -> str:
    """What the autoscaler says of the nodes it has asked for."""
    pending = Counter({r.ray_node_type_name: r.count for r in state.pending_instance_requests})
    pending.update(instance.ray_node_type_name for instance in state.pending_instances)
    failed = [f"{r.ray_node_type_name}: {r.reason}" for r in state.failed_instance_requests]
    coming = ", ".join(f"{count} {name}" for name, count in pending.items()) or "no node"
    return f"{coming} on the way" + (f"; failed: {'; '.join(failed)[:300]}" if failed else "")


def _ask(asked: Sequence[Bundle]) -> None:
    STANDING.ask([b.resources for b in asked], [b.labels for b in asked])


def _carries(node: Node, free: Mapping[str, float], bundle: Bundle) -> bool:
    return all(node.labels.get(name) == value for name, value in bundle.labels.items()) and all(
        amount <= free.get(name, 0.0) + SLACK for name, amount in bundle.resources.items()
    )


def _size(bundle: Bundle) -> tuple[float, float]:
    """Sorts the largest first."""
    return -bundle.resources.get("GPU", 0.0), -bundle.resources.get("CPU", 0.0)


def _shape(cpus: float, gpus: float) -> dict[str, float]:
    return {"CPU": cpus} | ({"GPU": gpus} if gpus else {})


def _sum(wanted: Iterable[Bundle], name: str) -> float:
    return sum(bundle.resources.get(name, 0.0) for bundle in wanted)


def _counted(left: Sequence[Bundle]) -> str:
    return ", ".join(f"{count} x {what}" for what, count in Counter(map(str, left)).items())


def _settings_of(bundle: Bundle) -> str:
    part = "worker" if bundle.what == "a training worker" else "replica"
    return f"resources.cpus_per_{part} or gpus_per_{part}"
