"""A pool of many shards: what `plan`, `status` and the first look of a resumed driver cost, on disk and on S3.

The larger study has a shard for every cell, 42,100 of them, the smaller one 8,420; shards of others fill the pool. Of
the study's own shards one in a hundred is missing, as after a driver that was killed.
"""

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

from metagen_ray.records import ANSWERS
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.store import content_key, open_store
from metagen_ray.study import load_study
from tests.store.s3_server import BUCKET, credentials, make_bucket, s3_python, s3_server

STUDIES = {10_000: "block_domains=5", 100_000: "block_domains=1"}
ASKED = ("ground_truth", "predict")
ROUNDS = 3
RESUME = """
import sys
from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.stages.status import Status
from metagen_ray.stages.driver import write_index
from metagen_ray.study import load_study
plan = Plan(StudyContext(load_study("pocket_full", sys.argv[1:])))
status = Status(plan)
assert status.steps_left()
write_index(plan)
print(sum(len(keys) for keys in status.present.values()))
"""


def shards_at_scale(pool: int) -> Mapping[str, object]:
    """Figures for a pool of so many shards in both places."""
    with _places() as places:
        return {name: _figures(root, pool) for name, root in places.items()}


@contextmanager
def _places() -> Iterator[dict[str, str]]:
    with (
        credentials(),
        tempfile.TemporaryDirectory(prefix="metagen-scale-") as folder,
        s3_server(s3_python(), Path(folder) / "server.log") as endpoint,
    ):
        make_bucket(endpoint)
        yield {"disk": f"{folder}/store", "s3": f"s3://{BUCKET}/scale?endpoint={endpoint}"}


def _figures(root: str, pool: int) -> dict[str, object]:
    settings = (STUDIES[pool], f"store={root}")
    began, own = time.monotonic(), _fill(root, pool, settings)
    filled = time.monotonic() - began
    chosen = [a for s in settings for a in ("--set", s)]
    metagen = [sys.executable, "-m", "metagen_ray.cli"]
    run = load_study("pocket_full", settings).run_name()
    open_store(root).write_doc(f"studies/{run}/study.yaml", load_study("pocket_full", settings).to_yaml().encode())
    commands = {
        "plan": [*metagen, "plan", "pocket_full", *chosen],
        "status": [*metagen, "status", run, "--store", root],
        "resume": [sys.executable, "-c", RESUME, *settings],
    }
    costs = {name: [_cost(command) for _ in range(ROUNDS)] for name, command in commands.items()}
    return {
        "pool": pool,
        "of_the_study": own,
        "puts_per_s": round(pool / filled),
        "seconds": {name: sorted(s for s, _ in found) for name, found in costs.items()},
        "peak_mib": {name: max(m for _, m in found) for name, found in costs.items()},
    }


def _fill(root: str, pool: int, settings: tuple[str, ...]) -> int:
    """Commit the study's shards but one in a hundred, and others up to `pool`; how many are the study's."""
    plan, store = Plan(StudyContext(load_study("pocket_full", settings))), open_store(root)
    own = {(a.stage, a.key) for a in (*plan.truth, *plan.untrained, *plan.predictions)}
    kept = [pair for n, pair in enumerate(sorted(own)) if n % 100][:pool]
    others = [(ASKED[n % 2], content_key({"another study's": n})) for n in range(pool - len(kept))]
    table = pa.Table.from_pylist([], schema=ANSWERS)
    with ThreadPoolExecutor(16) as threads:
        for _ in threads.map(lambda pair: store.put_shard(pair[0], pair[1], table, {}), [*kept, *others]):
            pass
    return len(kept)


def _cost(command: list[str]) -> tuple[float, int]:
    """Seconds of a command and its peak of resident memory, MiB."""
    began, peak = time.monotonic(), 0
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=told)
        while process.poll() is None:
            peak = max(peak, _peak_kib(process.pid))
            time.sleep(0.02)
        seconds = round(time.monotonic() - began, 2)
        told.seek(0)
        assert process.returncode == 0, told.read().decode()[-2000:]
    return seconds, peak // 1024


def _peak_kib(pid: int) -> int:
    """The peak so far, of the program alone: what wait4 tells begins with the size of whoever forked it."""
    try:
        status = Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")), 0)
