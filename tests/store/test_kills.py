"""Real kills, races and full disks: nothing half-written is ever seen, and one writer wins."""

import json
import multiprocessing
import os
import random
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from metagen_ray.errors import StoreError
from metagen_ray.store import open_store
from metagen_ray.store.keys import is_key
from metagen_ray.store.store import objects_at
from tests.store import workers

SPAWN = multiprocessing.get_context("spawn")
REPOSITORY = Path(__file__).parents[2]


def wait_until(condition: Callable[[], Any], limit_s: float = 120.0) -> Any:
    deadline = time.monotonic() + limit_s
    while not (found := condition()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return found


def _kill_writers(root: str, kills: int) -> None:
    store = open_store(root)
    rng = random.Random(11)
    done: set[int] = set()
    for _ in range(kills):
        writer = SPAWN.Process(target=workers.put_forever, args=(root,))
        writer.start()
        before = len(done)
        wait_until(lambda before=before: len(store.keys(workers.STAGE)) > before)
        time.sleep(rng.uniform(0, 0.2))
        workers.end(writer)
        now = workers.check_shards(store)
        assert done < now
        done = now
        for key in store.keys("object_sft"):
            store.verify("object_sft", key)
    listed = [path.rpartition("/")[2] for path in objects_at(root).list("pool")]
    assert all(is_key(name) for name in listed)
    assert done == set(range(len(done)))


def test_kill_of_a_writer_at_random_moments_leaves_whole_shards(root: str):
    _kill_writers(root, 3)


def test_kill_of_a_writer_as_a_file_appears_leaves_whole_shards(tmp_path: Path):
    store = open_store(str(tmp_path))
    for folder in ("tmp", f"pool/{workers.STAGE}") * 2:
        writer = SPAWN.Process(target=workers.put_forever, args=(str(tmp_path),))
        writer.start()
        committed = len(store.keys(workers.STAGE))
        wait_until(lambda committed=committed: len(store.keys(workers.STAGE)) > committed)
        before = os.listdir(tmp_path / folder)
        while set(os.listdir(tmp_path / folder)) <= set(before):
            pass
        workers.end(writer)
        workers.check_shards(store)
    assert len(os.listdir(tmp_path / "tmp")) > 1, "no kill came while a file was being written"


@pytest.mark.slow
def test_kill_of_a_writer_many_times_leaves_whole_shards(root: str):
    _kill_writers(root, 15)


def test_race_for_one_key_has_one_creator(root: str, tmp_path: Path):
    racers, rounds = 3, 20
    store = open_store(root)
    barrier = SPAWN.Barrier(racers)
    arguments = [(root, f"racer-{n}", rounds, barrier, tmp_path) for n in range(racers)]
    processes = [SPAWN.Process(target=workers.race, args=args) for args in arguments]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    created = {f"racer-{n}": json.loads((tmp_path / f"racer-{n}").read_text()) for n in range(racers)}
    for number in range(rounds):
        key = workers.shard_key(number)
        shard, record = store.read_shard(workers.STAGE, key)
        assert [label for label in created if created[label][number][0]] == [record["by"]]
        assert shard["by"].to_pylist() == [record["by"]]
        manifest = store.fetch_files("object_sft", key, tmp_path / key)
        assert [label for label in created if created[label][number][1]] == [manifest["by"]]
        assert (tmp_path / key / "by").read_text() == manifest["by"]


def test_full_disk_ends_in_one_line_and_leaves_whole_shards(tmp_path: Path):
    script = f'mount -t tmpfs -o size=9m none \'{tmp_path}\' && exec "$0" -c "$1"'
    code = f"from tests.store.workers import fill; fill({str(tmp_path / 'store')!r})"
    probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "none", str(tmp_path)]
    try:
        subprocess.run(probe, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no file system can be mounted here: {error}")
    command = ["unshare", "-rm", "sh", "-c", script, sys.executable, code]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert "the disk is full; free space" in found["said"]
    assert found["committed"] == found["whole"] > 1
    assert found["left"] == []
    assert found["again"]


def test_write_cut_short_by_the_system_commits_nothing(tmp_path: Path):
    store = open_store(str(tmp_path))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
    try:
        with pytest.raises(StoreError, match="File too large"):
            store.put_shard(workers.STAGE, workers.shard_key(0), workers.shard_table(0), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert store.keys(workers.STAGE) == set()
    assert os.listdir(tmp_path / "tmp") == ["probe"]
