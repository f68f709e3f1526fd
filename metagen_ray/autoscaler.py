"""What this driver asks of the cluster's autoscaler, for as long as it lives, and what the autoscaler says of it.

Ray Data and Ray Train ask through an actor of Ray's, the coordinator. Every 20 s it sends the sum of what is asked
there in place of all that was asked past it, also long after the last of them has ended. So we ask there too.
"""

import importlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, TypeVar

import ray
from ray.exceptions import RayError

from metagen_ray.errors import MachineError

T = TypeVar("T")
RPC_S = 10.0
RPC_ATTEMPTS = 3
START_S = 60.0  # of the coordinator, where nobody has started it yet
EXPIRES_S, RENEWED_S = 90.0, 20.0  # nobody takes back what a killed driver asked for
# The coordinator sets aside what is asked for from what Ray Data may use, among the nodes with one label. We want nodes
# to be there and Ray Data to use them. Any label but this: for the autoscaler that is every node, for it none.
NOWHERE_KEY, NOWHERE = "ray-subcluster", "!metagen-nowhere"


class Standing:
    """A demand that is renewed in the background."""

    def __init__(self) -> None:
        self._name, self._wanted = "", ([], [])
        self._over = threading.Event()

    def ask(self, resources: Sequence[Mapping[str, float]], labels: Sequence[Mapping[str, str]]) -> None:
        """Ask for bundles with the labels of their nodes, in place of what was asked for before."""
        self._name = f"metagen-{ray.get_runtime_context().get_job_id()}"
        self._wanted = [dict(each) for each in resources], [{**each, NOWHERE_KEY: NOWHERE} for each in labels]
        patiently(lambda: ray.get(self._send(), timeout=START_S))
        self._over.set()
        self._over = threading.Event()
        threading.Thread(target=self._renew, args=(self._over,), name="demand", daemon=True).start()

    def withdraw(self) -> None:
        """Ask for nothing any more."""
        self._over.set()
        if self._name:
            ray.get(_coordinator().cancel_request.remote(self._name), timeout=RPC_S)
            self._name = ""

    def _send(self) -> Any:
        resources, labels = self._wanted
        nowhere = {NOWHERE_KEY: NOWHERE}
        return _coordinator().request_resources.remote(
            self._name, resources, EXPIRES_S, label_selectors=labels, subcluster_selector=nowhere
        )

    def _renew(self, over: threading.Event) -> None:
        while not over.wait(RENEWED_S) and ray.is_initialized():
            with suppress(RayError, RuntimeError):  # a head that is busy is asked again
                self._send()


def state() -> Any:
    """The autoscaler's last report. MachineError where the head does not answer."""
    raylet: Any = importlib.import_module("ray._raylet")  # compiled, as the messages are: no type checker knows them
    messages: Any = importlib.import_module("ray.core.generated.autoscaler_pb2")
    address = ray.get_runtime_context().gcs_address
    told = patiently(lambda: raylet.GcsClient(address=address).get_cluster_status(timeout_s=RPC_S))
    return messages.GetClusterStatusReply.FromString(told).autoscaling_state


def labels_of(request: Any) -> dict[str, str]:
    """Labels that were asked for with a bundle of the report."""
    found = {c.label_key: c.label_values[0] for s in request.label_selectors for c in s.label_constraints}
    found.pop(NOWHERE_KEY, None)
    return found


def patiently(ask: Callable[[], T]) -> T:
    """Ask the head, again where it does not answer; MachineError where it does not for long."""
    for attempt in range(RPC_ATTEMPTS):
        try:
            return ask()
        except RayError as error:
            failure = error
            time.sleep(2**attempt)
    raise MachineError(f"the head does not answer: {' '.join(str(failure).split())[:200]}; look whether it is up")


def _coordinator() -> Any:
    """Ray's actor; started where there is none yet, as Ray Data would, on the driver's node."""
    room: Any = importlib.import_module("ray.data._internal.cluster_autoscaler")
    return room.get_or_create_autoscaling_coordinator()
