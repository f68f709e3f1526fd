"""The driver killed with -9 at a random moment: nothing is lost, nothing is computed twice, the figures stay."""

import csv
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from metagen_ray.stages.context import StudyContext
from metagen_ray.stages.plan import Plan
from metagen_ray.stages.status import Status
from metagen_ray.study import Study, load_study

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1200)]
SMALL = ("domains=8", "block_domains=4", "predict.samples=2", "analysis.resamples=200")
LIMIT_S = 420
MARK = f"METAGEN_TEST_MARK={os.getpid()}-{time.time_ns()}"  # in the environment of everything that is started here


def study_in(store: Path) -> Study:
    return load_study("pocket", [*SMALL, f"store={store}"])


def start(store: Path, log: Path) -> subprocess.Popen:
    arguments = [a for s in (*SMALL, f"store={store}") for a in ("--set", s)]
    command = [sys.executable, "-m", "metagen_ray.cli", "run", "pocket", *arguments]
    name, _, value = MARK.partition("=")
    with log.open("ab") as out:
        return subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, name: value}
        )


def left_behind() -> list[str]:
    """Commands that carry our mark."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if MARK.encode() in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:80])
        except OSError:  # it has ended
            continue
    return found


def finish(store: Path, log: Path) -> None:
    assert start(store, log).wait(LIMIT_S) == 0, log.read_text()[-3000:]


def kill_at(count: float, store: Path, log: Path) -> None:
    """Start a driver and kill it once the store holds so many artifacts."""
    driver, plan, began = start(store, log), Plan(StudyContext(study_in(store))), time.monotonic()
    while sum(map(len, Status(plan).present.values())) < count:
        assert driver.poll() is None and time.monotonic() - began < LIMIT_S, log.read_text()[-3000:]
        time.sleep(0.2)
    os.kill(driver.pid, signal.SIGKILL)
    assert driver.wait() == -signal.SIGKILL


def committed(study: Study) -> dict[tuple[str, str], str]:
    """When each artifact of the plan was committed."""
    plan = Plan(StudyContext(study))
    present = Status(plan).present
    store = plan.context.store
    return {(s, k): store.record(s, k)["created"] for s, ks in present.items() for k in ks}


def rmse(study: Study) -> dict[tuple[str, str], float]:
    """The sampled RMSE by predictor and quadrant."""
    path = Path(study.store) / "studies" / study.run_name() / "report" / "quadrants.csv"
    with path.open() as file:
        rows = [r for r in csv.DictReader(file) if r["metric"] == "rmse" and r["value"]]
    return {(r["predictor"], r["quadrant"]): float(r["value"]) for r in rows}


def test_driver_killed_at_a_random_moment_resumes(tmp_path):
    calm, rough = study_in(tmp_path / "calm"), study_in(tmp_path / "rough")
    finish(tmp_path / "calm", tmp_path / "calm.log")
    share = random.Random(8).uniform(0.05, 0.9)
    kill_at(share * len(committed(calm)), tmp_path / "rough", tmp_path / "rough.log")
    seen = committed(rough)
    end = time.monotonic() + 60
    while (left := left_behind()) and time.monotonic() < end:
        time.sleep(1)
    assert left == []  # a replica's engine holds gigabytes
    finish(tmp_path / "rough", tmp_path / "rough.log")
    after = committed(rough)
    assert all(after[k] == created for k, created in seen.items())
    assert len(after) == len(committed(calm))
    assert Status(Plan(StudyContext(rough))).complete()
    one, other = rmse(calm), rmse(rough)
    shared = [k for k in one if k in other and k[1] != "diagonal"]
    gaps = np.array([one[k] - other[k] for k in shared])
    # 8 answers a cell: an RMSE over the 12-16 cells of a quadrant has a standard error of about 3 points.
    assert len(shared) > 20 and np.abs(gaps).mean() < 6.0
