"""Serve's first proxy ended before it is ready, as Serve does where the node is too busy to start it within 5 s."""

import json
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.machine, pytest.mark.timeout(300)]
START = """
import json, sys, threading, time, urllib.error, urllib.request
import ray
from metagen_ray.errors import MachineError
from metagen_ray.serving import app

def end_the_first_proxy():
    while True:
        for actor in ray.util.list_named_actors(all_namespaces=True):
            if actor["name"].startswith("SERVE_PROXY_ACTOR"):
                return ray.kill(ray.get_actor(**actor))
        time.sleep(0.005)

def listens(url):
    try:
        urllib.request.urlopen(url + "/-/routes", timeout=30)
    except urllib.error.HTTPError:
        return True
    except urllib.error.URLError:
        return False
    return True

ray.init(num_cpus=2, log_to_driver=False, logging_level="ERROR")
killer = threading.Thread(target=end_the_first_proxy)
killer.start()
spec = app.ServingSpec("/nowhere", "base", "/nowhere", start_timeout_s=float(sys.argv[1]))
try:
    told = {"listens": listens(app._listen(spec))}
except MachineError as error:
    told = {"error": str(error)}
killer.join()
print(json.dumps(told))
app.undeploy()
"""


def start(limit_s: float) -> dict:
    done = subprocess.run([sys.executable, "-c", START, str(limit_s)], capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr[-3000:]
    (told,) = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(told)


def test_proxy_that_is_replaced_is_waited_for():
    assert start(120) == {"listens": True}


def test_proxy_that_does_not_come_in_time_is_an_error_that_says_where_to_look():
    assert "is not ready after 0 s; the logs of Serve's controller and proxy on the head" in start(0)["error"]
