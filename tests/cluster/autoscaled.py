"""A study on a cluster that grows from nothing and shrinks again: Ray's own autoscaler over its fake node provider.

Run as a program inside namespaces of its own (`inside` does that): everything it starts ends with it. Prints one JSON
object: when nodes came, when the study ended and when they were gone, in seconds from the submission; and what came of
a study that no node type can hold.
"""

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import yaml

from tests.cluster.study_apart import ON_TWO_WORKERS

BIN = Path(sys.executable).parent
ROOT = Path(__file__).parents[2]
HEAD_ID = "f" * 51 + "00000"
HEAD_TYPE = "ray.head.default"  # the fake provider knows no other
IDLE_MINUTES = 0.25
SMALL = (
    "domains=4", "block_domains=4", "predict.samples=2", "object_sft.epochs=1", "analysis.resamples=100",
    "analysis.deals=5",
)  # fmt: skip
# Two nodes with room to spare: Ray's way of packing, smallest first or not, must find them enough, and one too few.
NODE_CPUS = 3
SETTINGS = (
    *(s for s in ON_TWO_WORKERS if not s.startswith(("resources.port", "resources.cpus"))),
    "resources.cpus_per_worker=1.2",
    "resources.cpus_per_replica=1.2",
)


def inside(folder: Path) -> dict:
    """Run this program in network and process namespaces of its own; its result."""
    command = ["unshare", "-n", "-p", "-f", "--mount-proc", sys.executable, "-m", "tests.cluster.autoscaled", folder]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def main(folder: Path) -> None:
    """Bring the head up, run the studies, watch the nodes."""
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RAY_USAGE_STATS_ENABLED": "0"}
    _start_head(folder)
    watch = Watch()
    watch.until(1, 120)
    before, began = watch.seen[-1][1], time.monotonic()
    ran = _study(folder)
    ended = time.monotonic()
    gone = watch.until(1, 240)
    with ThreadPoolExecutor() as both:  # two studies that are not there yet; nobody waits for nodes to go again
        no_type = both.submit(
            _study, folder, "resources.gpus_per_worker=8", "resources.wait_for_nodes_s=120", "domains=6"
        )
        no_time = both.submit(_study, folder, "resources.meta_workers=2", "resources.wait_for_nodes_s=0", "domains=8")
    refused, late = no_type.result(), no_time.result()
    result = {
        "refused": refused,
        "late": late,
        "ran": ran,
        "nodes_at_submission": before,
        "nodes_at_most": max(count for _, count in watch.seen),
        "all_nodes_up_s": watch.after(3, began),
        "study_s": round(ended - began, 1),
        "gone_after_end_s": round(gone - ended, 1),
    }
    print(json.dumps(result), flush=True)
    os._exit(0)  # the namespace ends with its first process


class Watch(threading.Thread):
    """How many nodes are alive, looked at twice a second."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        import ray

        ray.init(address="127.0.0.1:6379", logging_level="ERROR", log_to_driver=False)
        self._nodes = ray.nodes
        self.seen: list[tuple[float, int]] = []
        self.start()

    def run(self) -> None:
        """Look, for as long as the program runs."""
        while True:
            self.seen.append((time.monotonic(), sum(node["Alive"] for node in self._nodes())))
            time.sleep(0.5)

    def after(self, count: int, since: float) -> float | None:
        """Seconds until there were first so many; None where there never were."""
        return next((round(at - since, 1) for at, found in self.seen if at >= since and found >= count), None)

    def until(self, count: int, limit_s: float) -> float:
        """Wait until there are no more than so many; when that was."""
        end = time.monotonic() + limit_s
        while not self.seen or self.seen[-1][1] > count:
            assert time.monotonic() < end, f"still {self.seen[-1:]} nodes after {limit_s} s"
            time.sleep(0.5)
        return self.seen[-1][0]


def _start_head(folder: Path) -> None:
    (folder / "cluster.yaml").write_text(yaml.safe_dump(cluster()))
    environment = {
        **os.environ,
        "RAY_enable_autoscaler_v2": "1",
        "RAY_FAKE_CLUSTER": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "PYTHONPATH": str(ROOT),
    }
    command = [
        BIN / "ray", "start", "--head", "--block", "--port=6379", "--node-ip-address=127.0.0.1", "--num-cpus=0",
        f"--autoscaling-config={folder}/cluster.yaml", f"--temp-dir={folder}/r", "--object-store-memory=200000000",
    ]  # fmt: skip
    with open(folder / "head.log", "wb") as log:
        subprocess.Popen(command, env=environment, stdout=log, stderr=log)
    end = time.monotonic() + 90
    while "Ray runtime started" not in (folder / "head.log").read_text():
        assert time.monotonic() < end, (folder / "head.log").read_text()[-2000:]
        time.sleep(0.5)


def cluster() -> dict:
    """The cluster's file: a head without work, and up to two workers of one CPU."""
    lists = (
        "file_mounts_sync_continuously", "cluster_synced_files", "rsync_exclude", "rsync_filter",
        "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands",
    )  # fmt: skip
    return {
        "cluster_name": "fake",
        "max_workers": 2,
        "upscaling_speed": 1.0,
        "idle_timeout_minutes": IDLE_MINUTES,
        "docker": {},
        "provider": {
            "type": "external",
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "launch_multiple": True,
            "head_node_id": HEAD_ID,
        },
        "auth": {},
        "available_node_types": {
            HEAD_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "min_workers": 0, "max_workers": 0},
            "cpu": {"resources": {"CPU": NODE_CPUS}, "node_config": {}, "min_workers": 0, "max_workers": 2},
        },
        "head_node_type": HEAD_TYPE,
        "file_mounts": {},
        **{name: False if name == "file_mounts_sync_continuously" else [] for name in lists},
    }


def _study(folder: Path, *more: str) -> dict:
    chosen = [a for s in (*SMALL, *SETTINGS, *more, f"store={folder}/store") for a in ("--set", s)]
    command = [sys.executable, "-m", "metagen_ray.cli", "run", "pocket", "--address", "127.0.0.1:6379", *chosen]
    began = time.monotonic()
    done = subprocess.run(command, cwd="/", capture_output=True, text=True, timeout=600)
    return {
        "code": done.returncode,
        "seconds": round(time.monotonic() - began, 1),
        "error": done.stderr[-3000:] if done.returncode else "",
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]))
