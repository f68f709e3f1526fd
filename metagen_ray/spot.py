"""A cloud's notice that it takes this machine back, passed on to Ray: no new work comes here, and trainings save.

`metagen spot CLOUD` runs beside `ray start` on the nodes of the launcher files; Ray's launcher itself watches for no
notice. Sources: "Spot Instance interruption notices" of the Amazon EC2 User Guide (two minutes; 404 until then) and
"Preemptible VM instances" of Google's Compute Engine documentation (30 s).
"""

import http.client
import logging
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from metagen_ray.errors import InputError, MachineError
from metagen_ray.progress import say

POLL_S = 5.0
ASK_S = 5.0
SILENT_S = 300.0  # a machine's metadata service is never away for so long
LOCAL_ONLY = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # a link-local address, never behind a proxy


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where a cloud keeps its notice. `told` gets the service's address and says whether the notice is there."""

    metadata: str
    told: Callable[[str], bool]
    notice_s: int


def watch(name: str, metadata: str = "", poll_s: float = POLL_S) -> None:
    """Wait for the notice, then have Ray drain this node.

    InputError for a cloud that is not known; MachineError where no metadata service answers, or Ray does not.
    """
    if name not in CLOUDS:
        raise InputError(f"no cloud {name!r}; there are {', '.join(CLOUDS)}")
    cloud, heard = CLOUDS[name], time.monotonic()
    where = metadata or cloud.metadata
    while True:
        try:
            if cloud.told(where):
                break
            heard = time.monotonic()
        except (OSError, http.client.HTTPException) as error:
            if time.monotonic() - heard > SILENT_S:
                raise MachineError(
                    f"{where}: no metadata service has answered for {SILENT_S:.0f} s ({error}); `metagen spot {name}` "
                    "runs on a machine of that cloud, and its containers must reach the service (on AWS: hop limit 2)"
                ) from None
        time.sleep(poll_s)
    say(f"{name} takes this machine back; Ray is told")
    drain(*_here(), cloud.notice_s)


def drain(address: str, node_id: str, seconds: int) -> None:
    """Tell Ray at `address` that a node ends in so many seconds. MachineError where it refuses."""
    command = [str(Path(sys.executable).parent / "ray"), "drain-node", "--address", address, "--node-id", node_id]
    why = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "the cloud takes the machine back"]
    until = ["--deadline-remaining-seconds", str(seconds)]
    done = subprocess.run([*command, *why, *until], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MachineError(f"Ray does not drain node {node_id}: {(done.stderr or done.stdout).strip()[-500:]}")


def _here() -> tuple[str, str]:
    """Where Ray's head listens, and this node's id."""
    import ray

    try:
        ray.init(address="auto", logging_level=logging.ERROR, log_to_driver=False)
    except ConnectionError as error:
        raise MachineError(f"no Ray runs on this machine ({error}); `metagen spot` stands beside `ray start`") from None
    try:
        here = ray.get_runtime_context()
        return here.gcs_address, here.get_node_id()
    finally:
        ray.shutdown()


def _told_by_aws(metadata: str) -> bool:
    token = _ask(f"{metadata}/latest/api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "60"}, "PUT")
    return bool(_ask(f"{metadata}/latest/meta-data/spot/instance-action", {"X-aws-ec2-metadata-token": token}))


def _told_by_gcp(metadata: str) -> bool:
    return _ask(f"{metadata}/computeMetadata/v1/instance/preempted", {"Metadata-Flavor": "Google"}) == "TRUE"


def _ask(url: str, headers: Mapping[str, str], method: str = "GET") -> str:
    """The answer; empty where there is none (404)."""
    try:
        with LOCAL_ONLY.open(
            urllib.request.Request(url, headers=dict(headers), method=method), timeout=ASK_S
        ) as answer:
            return answer.read(10_000).decode("utf-8", "replace").strip()
    except urllib.error.HTTPError as error:
        if error.code == 404:
            return ""
        raise


CLOUDS: Mapping[str, Cloud] = {
    "aws": Cloud("http://169.254.169.254", _told_by_aws, notice_s=110),
    "gcp": Cloud("http://metadata.google.internal", _told_by_gcp, notice_s=25),
}
