"""The kill table: one study on three workers, struck once at a seeded random moment; does it end whole, and when?

Processes are found by their names among those of a node's network namespace. A driver or a head that was killed is
followed by the same submission again, as its user would. A store in trouble is one on S3, served from `out`.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from metagen_ray.errors import StoreError
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.stages.status import Status
from metagen_ray.store import open_store
from metagen_ray.store.store import objects_at
from metagen_ray.study import Study, load_study
from tests.cluster.local import LocalCluster
from tests.cluster.study_apart import ON_TWO_WORKERS, submission
from tests.disk import fill
from tests.store.s3_server import BUCKET, CREDENTIALS, credentials, make_bucket, s3_python

WORKERS = 3  # one to spare
SMALL = ("domains=8", "block_domains=2", "predict.samples=2", "analysis.resamples=100", "resources.overlap=off")
SETTINGS = (*SMALL, *ON_TWO_WORKERS)
TRAINING, ASKING = ("object_sft", "meta_sft"), ("ground_truth", "predict untrained", "predict meta")
ANY = (*TRAINING, *ASKING)
LIMIT_S = 900
LINK_DOWN_S = 30
DISK_MIB, DISK_FULL_S = 512, 30
S3_TROUBLE_S = 60
S3_PORT = 9000  # without trouble; the one after it is what the cluster is told
METADATA, METADATA_PORT = Path(__file__).parents[1] / "metadata_service.py", 8099
SERVE_S3 = Path(__file__).parents[1] / "store" / "serve_s3.py"
# Ray's own hook: of each of these calls the first few fail at random, on the way there, under way or on the way back.
CALLS = (
    "NodeManagerService.grpc_client.RequestWorkerLease",
    "NodeManagerService.grpc_client.ReturnWorkerLease",
    "NodeManagerService.grpc_client.PrepareBundleResources",
    "NodeManagerService.grpc_client.CommitBundleResources",
    "NodeManagerService.grpc_client.PinObjectIDs",
    "CoreWorkerService.grpc_client.GetObjectStatus",
    "ObjectManagerService.grpc_client.Pull",
    "ObjectManagerService.grpc_client.Push",
    "ray::rpc::ActorInfoGcsService.grpc_client.GetActorInfo",
    "ray::rpc::InternalKVGcsService.grpc_client.InternalKVGet",
    "ray::rpc::PlacementGroupInfoGcsService.grpc_client.CreatePlacementGroup",
)
# A call to an actor or a task: Ray sends it again where it is told to, which Ray Train's controller does not.
ACTOR_CALLS = ("CoreWorkerService.grpc_client.PushTask",)
CALL_FAILS = {
    "num_failures": 5,
    "req_failure_prob": 4,
    "in_flight_failure_prob": 2,
    "resp_failure_prob": 4,
}  # percent, in each process
NOTICE_S = 25  # what a cloud gives a node that it takes back
TITLES = {
    "driver": "metagen_ray.cli run study.yaml",
    "lane worker": "ray::RayTrainWorker",
    "controller": "ray::TrainController",
    "replica": "ray::ServeReplica:metagen:engine",
    "engine": "VLLM::EngineCore",
    "data actor": "ray::MapWorker",
}


@dataclass(frozen=True)
class Fault:
    """What is struck, in which stages; whether the study must, or may have to be, submitted again."""

    strike: Callable[["Struck"], None]
    stages: tuple[str, ...]
    again: bool = False
    again_if_failed: bool = False
    on_s3: bool = False
    calls_fail: tuple[str, ...] = ()


class Struck:
    """A study under way on a cluster, and what can be done to it."""

    def __init__(self, cluster: LocalCluster, rng: random.Random, room: Path, fault: Fault | None = None) -> None:
        self.cluster, self.rng, self.log = cluster, rng, room / "submit.log"
        self.trouble = cluster.room / "trouble"
        self.store = _serve_s3(cluster, self.trouble) if fault and fault.on_s3 else str(cluster.store)
        # The driver's and its workers' calls: Ray's own job manager does not survive it.
        fails = {call: CALL_FAILS for call in (fault.calls_fail if fault else ())}
        self.env = ["--env", f"RAY_testing_rpc_failure={json.dumps(fails)}"] if fails else []
        # The way past the trouble, for whoever looks on.
        self.study: Study = load_study("pocket", [*SETTINGS, f"store={_past_trouble(self.store)}"])
        self.cut_off: list[str] = []  # workers whose network is gone for good
        self.follower = self.submit()

    def submit(self) -> subprocess.Popen:
        """Submit the study from outside."""
        command = [*submission(self.cluster, SETTINGS, self.store), "--env", "METAGEN_LOG=json", *self.env]
        return self.cluster.start("out", *command, log=self.log)

    def wait_for(self, stages: tuple[str, ...]) -> str:
        """Return in the middle of one of the stages, a seeded random one, or soon after a short one; its name."""
        stage, end = self.rng.choice(stages), time.monotonic() + LIMIT_S
        while not self._begun(stage):
            assert time.monotonic() < end and self.follower.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.2)
        time.sleep(self.rng.uniform(0, 3))
        return stage

    def _begun(self, stage: str) -> bool:
        try:
            pulse = open_store(self.study.store).read_doc(f"studies/{self.study.run_name()}/pulse.json")
            return stage in json.loads(pulse)["stages"]
        except (StoreError, ValueError):  # none yet
            return False

    def kill(self, what: str) -> None:
        """SIGKILL to one process of a kind, a seeded random one."""
        end = time.monotonic() + 180
        while not (found := self.cluster.processes(TITLES[what], ["head", *self.reachable()])):
            assert time.monotonic() < end, f"no {what} ({TITLES[what]}) on any node"
            time.sleep(0.1)
        os.kill(self.rng.choice(found), signal.SIGKILL)

    def store_fails(self, what: str, seconds: float) -> None:
        """The store's service fails for a while: `500`, `503` or `slow`."""
        self.trouble.write_text(what)
        time.sleep(seconds)
        self.trouble.unlink()

    def ended(self, within_s: float) -> int | None:
        """Exit code of the submission; None where it still runs after so long."""
        with suppress(subprocess.TimeoutExpired):
            self.follower.wait(within_s)
        return self.follower.poll()

    def worker(self) -> str:
        """A worker that holds a replica, a seeded random one."""
        holding = [n for n in self.reachable() if self.cluster.processes(TITLES["replica"], [n])]
        return self.rng.choice(holding or self.reachable())

    def reachable(self) -> list[str]:
        """Workers that are not cut off."""
        return [n for n in self.cluster.workers if n not in self.cut_off]

    def replace_cut_off(self) -> None:
        """Start a node anew in place of each that was cut off; it comes up while the study goes on."""
        for node in self.cut_off:
            self.cluster.kill(node)
            self.cluster.link(node, "up")
            self.cluster.restart(node)
        self.cut_off.clear()

    def committed(self) -> int:
        """Objects in the pool."""
        return sum(1 for _ in objects_at(self.study.store).list("pool"))


def _serve_s3(cluster: LocalCluster, trouble: Path) -> str:
    """Start a service on `out`; the store's address for the cluster, in trouble as the file says."""
    host, log = f"{cluster.net}.9", cluster.room / "s3.log"
    cluster.start("out", str(s3_python()), str(SERVE_S3), host, str(S3_PORT), str(trouble), log=log)
    end = time.monotonic() + 60
    while not log.read_text().startswith(str(S3_PORT)):
        assert time.monotonic() < end, log.read_text()
        time.sleep(0.2)
    make_bucket(f"http://{host}:{S3_PORT}")
    return f"s3://{BUCKET}/kills?endpoint=http://{host}:{S3_PORT + 1}"


def _past_trouble(store: str) -> str:
    return store.replace(f":{S3_PORT + 1}", f":{S3_PORT}")


def _kills(what: str) -> Callable[[Struck], None]:
    return lambda struck: struck.kill(what)


def _cut_power(struck: Struck) -> None:
    struck.cluster.kill(struck.worker())


def _unplug(struck: Struck) -> None:
    node = struck.worker()
    struck.cluster.link(node, "down")
    time.sleep(LINK_DOWN_S)
    struck.cluster.link(node, "up")


def _unplug_for_good(struck: Struck) -> None:
    node = struck.worker()
    struck.cluster.link(node, "down")
    struck.cut_off.append(node)


def _fill_disk(struck: Struck) -> None:
    fill(struck.cluster.store, DISK_FULL_S)


def _troubles(what: str) -> Callable[[Struck], None]:
    return lambda struck: struck.store_fails(what, S3_TROUBLE_S)


def _take_back(struck: Struck) -> None:
    """A notice, and the end of the node when its time is up, as spot nodes have it."""
    node = struck.worker()
    struck.cluster.start(node, sys.executable, str(METADATA), str(METADATA_PORT))
    there = f"http://127.0.0.1:{METADATA_PORT}"
    spot = [sys.executable, "-m", "metagen_ray.cli", "spot", "gcp", "--metadata", there]
    told = struck.cluster.run(node, *spot)
    assert told.returncode == 0, told.stdout + told.stderr
    time.sleep(NOTICE_S)
    struck.cluster.kill(node)


def _lose_head(struck: Struck) -> None:
    struck.cluster.kill("head")
    struck.follower.kill()
    struck.follower.wait()
    for node in struck.cluster.workers:
        struck.cluster.kill(node)
    for node in ("head", *struck.cluster.workers):
        struck.cluster.restart(node)
    struck.cluster.wait_up(1 + WORKERS)


FAULTS: Mapping[str, Fault] = {
    "driver": Fault(_kills("driver"), ANY, again=True),
    "lane worker": Fault(_kills("lane worker"), TRAINING),
    "controller": Fault(_kills("controller"), TRAINING),
    "replica": Fault(_kills("replica"), ASKING),
    "engine": Fault(_kills("engine"), ASKING),
    "data actor": Fault(_kills("data actor"), ASKING),
    "node": Fault(_cut_power, ANY),
    "network 30 s": Fault(_unplug, ANY),
    "network for good": Fault(_unplug_for_good, ANY),
    "disk full": Fault(_fill_disk, ANY, again_if_failed=True),
    "s3 500": Fault(_troubles("500"), ANY, on_s3=True),
    "s3 503": Fault(_troubles("503"), ANY, on_s3=True),
    "s3 slow": Fault(_troubles("slow"), ANY, on_s3=True),
    "rpc failures": Fault(lambda _: None, ANY, calls_fail=CALLS),
    "actor calls fail": Fault(lambda _: None, ANY, calls_fail=ACTOR_CALLS),
    "preemption": Fault(_take_back, ("meta_sft",)),
    "head": Fault(_lose_head, ANY, again=True),
}


def strike(kind: str, seed: int, room: Path) -> dict[str, object]:
    """One run: figures of how it went. AssertionError where it does not end whole."""
    fault, rng = FAULTS[kind], random.Random(f"{kind} {seed}")
    with LocalCluster(WORKERS, store_mib=DISK_MIB, env=CREDENTIALS) as cluster, credentials():
        struck, began = Struck(cluster, rng, room, fault), time.monotonic()
        stage = struck.wait_for(fault.stages)
        fault.strike(struck)
        before, at = struck.committed(), time.monotonic()
        if fault.again:
            if struck.follower.poll() is None:
                struck.follower.wait(120)
            struck.follower = struck.submit()
        recovered = _next_commit(struck, before, at)
        code, resubmitted = struck.follower.wait(LIMIT_S), fault.again
        if code and fault.again_if_failed:
            struck.follower, resubmitted = struck.submit(), True
            code = struck.follower.wait(LIMIT_S)
        assert code == 0, f"{kind} in {stage}: exit code {code}: {_last_words(struck.log.read_text())}"
        return {
            "stage": stage,
            "seconds": round(time.monotonic() - began, 1),
            "recovered_s": recovered,
            "submitted_again": resubmitted,
            "failed_shards": struck.log.read_text().count('"shard failed"'),
            **whole(struck.study),
        }


def _last_words(log: str) -> str:
    """The error that ended the study, which Ray's own last words may stand behind; else the end of the log."""
    return "\n".join(line for line in log.splitlines() if '"exit_code"' in line) or log[-3000:]


def _next_commit(struck: Struck, before: int, at: float) -> float | None:
    """Seconds from the strike to the next commit; None where the study ended without one."""
    while struck.committed() <= before:
        if struck.follower.poll() is not None:
            return None
        time.sleep(0.2)
    return round(time.monotonic() - at, 1)


def whole(study: Study) -> dict[str, int]:
    """Counts, of artifacts that all read back. AssertionError for one that is missing, StoreError for a damaged one."""
    plan = Plan(StudyContext(study))
    status, store = Status(plan), plan.context.store
    assert status.complete(), status.steps_left()
    for stage, keys in status.present.items():
        for key in keys:
            store.verify(stage, key)
    missing = sum(line.missing for line in status.lines())
    assert missing == 0
    return {"artifacts": sum(map(len, status.present.values())), "missing": missing}
