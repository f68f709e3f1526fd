"""Three real nodes: the study is spread over both workers, nobody without the token gets in, and no log has it; what
the doctor sees of them, and what `down` ends.
"""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from metagen_ray.study import load_study
from tests.cluster.local import JOBS_PORT, LocalCluster, missing
from tests.cluster.study_apart import APP_PORT, ON_TWO_WORKERS, Ran, submission

pytestmark = [
    pytest.mark.slow,
    pytest.mark.machine,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(missing()), reason=missing() or "namespaces are at hand"),
]
SMALL = ("domains=4", "block_domains=2", "predict.samples=2", "analysis.resamples=100")
ASK = """
import sys, urllib.request, urllib.error
try:
    request = urllib.request.Request(sys.argv[1], headers=dict(h.split(":", 1) for h in sys.argv[2:]))
    print(urllib.request.urlopen(request, timeout=10).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""
JOIN = """
import os, sys
os.environ["RAY_AUTH_MODE"] = sys.argv[2]
os.environ.pop("RAY_AUTH_TOKEN_PATH")
os.environ["HOME"] = "/nowhere"
if sys.argv[2] == "token":
    os.environ["RAY_AUTH_TOKEN"] = "0" * 64
import ray
ray.init(address=sys.argv[1])
"""
STAY = """
import sys, ray
@ray.remote(num_cpus=0, lifetime="detached", name="sampler", namespace="metagen")
class Stays:
    def here(self):
        return True
ray.init(address=sys.argv[1])
assert ray.get(Stays.remote().here.remote())
"""


@pytest.fixture(scope="module")
def cluster():
    with LocalCluster() as up:
        yield up


def status(cluster: LocalCluster, url: str, *headers: str) -> str:
    return cluster.run("out", sys.executable, "-c", ASK, url, *headers).stdout.strip()


def test_study_uses_both_workers_and_lets_nobody_in(cluster: LocalCluster, tmp_path: Path):
    settings, log = (*SMALL, *ON_TWO_WORKERS), tmp_path / "submit.log"
    began = time.monotonic()
    follower = cluster.start("out", *submission(cluster, settings), log=log)
    app, seen = f"http://{cluster.net}.10:{APP_PORT}/v1/models", ""
    while follower.poll() is None and seen in ("", "404"):  # nothing listens, then the proxy does without an app
        answer = cluster.run("out", sys.executable, "-c", ASK, app)
        seen = answer.stdout.strip()
        time.sleep(2)
    assert seen == "401", log.read_text()[-3000:]
    assert status(cluster, app, "Authorization:Bearer 0000") == "401"
    assert status(cluster, app, f"Authorization:Bearer {cluster.token}") == "200"
    assert follower.wait(900) == 0, log.read_text()[-4000:]
    ran = Ran(load_study("pocket", [*settings, f"store={cluster.store}"]), log.read_text(), time.monotonic() - began)
    workers = {cluster.address("w1"), cluster.address("w2")}
    assert set(ran.meta_record()["nodes"]) == workers
    requests, shards = ran.figures("requests to "), ran.figures("shards on ")
    assert set(requests) == set(shards) == workers
    # A study so small has 38 requests, which go by their sessions, and 32 shards, most of them soon done: how even the
    # shares are is for the proof piece to say, which has 16 domains.
    assert all(count / requests.total() >= 0.1 for count in requests.values()), requests
    assert all(count / shards.total() >= 0.1 for count in shards.values()), shards
    _no_secret(cluster, log)


def _no_secret(cluster: LocalCluster, log: Path) -> None:
    """The token stands in no log, no record and no listing of jobs."""
    token = cluster.token.encode()
    files = [log, *cluster.logs(), *(p for p in cluster.store.rglob("*") if p.is_file())]
    assert len(files) > 100
    assert [p for p in files if token in p.read_bytes()] == []
    listed = cluster.run("out", str(Path(sys.executable).parent / "ray"), "job", "list")
    assert "metagen-pocket" in listed.stdout and cluster.token not in listed.stdout


@pytest.mark.parametrize("path", ["/", "/api/jobs/", "/api/version", "/nodes?view=summary", "/logical/actors"])
def test_dashboard_and_jobs_are_refused_without_the_token(cluster: LocalCluster, path: str):
    url = f"http://{cluster.net}.10:{JOBS_PORT}{path}"
    without, wrong = status(cluster, url), status(cluster, url, "Authorization:Bearer 0000")
    if path == "/":  # the page itself is empty without what it asks for
        assert without in ("200", "401")
        return
    assert (without, wrong) in {("401", "403"), ("401", "401")}
    assert status(cluster, url, f"Authorization:Bearer {cluster.token}") == "200"


@pytest.mark.parametrize("mode", ["disabled", "token"])
def test_gcs_is_refused_without_the_token(cluster: LocalCluster, mode: str):
    done: subprocess.CompletedProcess = cluster.run("out", sys.executable, "-c", JOIN, f"{cluster.net}.10:6379", mode)
    assert done.returncode != 0 and "uthenticat" in done.stderr, done.stderr[-1500:]


def metagen(cluster: LocalCluster, *arguments: str) -> subprocess.CompletedProcess:
    there = ("--address", f"{cluster.net}.10:6379")
    return cluster.run("head", sys.executable, "-m", "metagen_ray.cli", *arguments, *there)


def test_doctor_sees_every_node(cluster: LocalCluster):
    settings = [a for s in (*ON_TWO_WORKERS, f"store={cluster.store}") for a in ("--set", s)]
    done = metagen(cluster, "doctor", "pocket", *settings, "--json")
    found = json.loads(done.stdout[done.stdout.index("{") :])
    assert {n["name"] for n in found["nodes"]} == {f"{cluster.net}.10", cluster.address("w1"), cluster.address("w2")}
    for node in found["nodes"]:
        assert node["store"] is not None and node["auth"] == "token" and node["token"] == "private", node
        assert node["listens"], node
    assert {n["labels"].get("metagen/market") for n in found["nodes"]} == {None, "on-demand"}
    assert [f for f in found["findings"] if f["level"] == "wrong"] == [] and done.returncode == 0, done.stdout
    too_many = metagen(cluster, "doctor", "pocket", *settings, "--set", "resources.replicas=5")
    assert "5 times a serving replica of 0.55 CPU are wanted, nodes that are up hold 2" in too_many.stdout
    assert too_many.returncode == 0, "a cluster may grow"


def test_down_ends_what_outlives_a_job(cluster: LocalCluster):
    stays = cluster.run("head", sys.executable, "-c", STAY, f"{cluster.net}.10:6379")
    assert stays.returncode == 0, stays.stderr
    assert "actor sampler: ended" in metagen(cluster, "down").stdout
    assert "nothing of metagen was left" in metagen(cluster, "down").stdout
