"""What the child processes of these tests do. Run by multiprocessing's spawn, so that a kill takes a real process."""

import json
import os
import random
import time
from collections.abc import Mapping
from multiprocessing.context import SpawnProcess
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import Any

import pyarrow as pa

from metagen_ray.errors import LeaseError, StoreError
from metagen_ray.store import Store, content_key, open_store

STAGE = "ground_truth"
_MAX_SHARD_BYTES = 2_000_000


def clock() -> float:
    """One clock for all processes of this machine."""
    return time.clock_gettime(time.CLOCK_MONOTONIC)


def shard_key(number: int) -> str:
    return content_key({"shard": number})


def shard_table(number: int) -> pa.Table:
    """The only right content of a shard: incompressible, of a size that differs."""
    rng = random.Random(number)
    blocks = [rng.randbytes(rng.randrange(_MAX_SHARD_BYTES // 4)) for _ in range(4)]
    return pa.table({"number": [number] * 4, "noise": blocks})


def adapter_files(number: int) -> dict[str, bytes]:
    """The only right files of an adapter."""
    rng = random.Random(number)
    return {"config.json": b"{}", "weights": rng.randbytes(rng.randrange(_MAX_SHARD_BYTES))}


def put_forever(root: str) -> None:
    """Commit shards and adapters in order, those that are missing, until killed."""
    store = open_store(root)
    number = 0
    while True:
        if not store.has(STAGE, shard_key(number)):
            store.put_shard(STAGE, shard_key(number), shard_table(number), {"number": number})
            store.put_files("object_sft", shard_key(number), adapter_files(number), {"number": number})
        number += 1


def race(root: str, label: str, rounds: int, barrier: Barrier, results: Path) -> None:
    """Put a shard and an artifact of one's own under each common key; note which were created."""
    store = open_store(root)
    created: list[list[bool]] = []
    for number in range(rounds):
        barrier.wait(200)
        shard = store.put_shard(STAGE, shard_key(number), pa.table({"by": [label]}), {"by": label})
        files = store.put_files("object_sft", shard_key(number), {"by": label.encode()}, {"by": label})
        created.append([shard, files])
    (results / label).write_text(json.dumps(created))


def hold_in_turns(root: str, name: str, turns: int, ttl_s: float, results: Path, seed: int) -> None:
    """Hold a lease again and again; note token, start and end of each time it was surely held."""
    store = open_store(root)
    rng = random.Random(seed)
    with open(results / f"{os.getpid()}", "w") as log:
        while turns:
            try:
                lease = store.lease(name, f"racer-{seed}", ttl_s)
            except LeaseError:
                time.sleep(rng.uniform(0, 0.02))
                continue
            started = clock()
            time.sleep(rng.uniform(0, 0.03))
            turns -= 1
            note(log, {"token": lease.token, "start": started, "end": clock(), "lost": lease.lost})
            lease.release()


def hold(root: str, name: str, ttl_s: float, results: Path) -> None:
    """Hold a lease until it is lost; note when it was got, when it was last held, and when it was found lost."""
    lease = open_store(root).lease(name, "holder", ttl_s)
    with open(results / "holder", "w") as log:
        note(log, {"event": "held", "at": clock(), "token": lease.token})
        now = last = clock()
        while not lease.lost:
            last = now
            time.sleep(0.005)
            now = clock()
        note(log, {"event": "lost", "at": clock(), "last": last})


def fill(root: str) -> None:
    """Commit shards until the disk is full; print what was said and what is left."""
    store = open_store(root)
    said = ""
    number = 0
    while not said:
        try:
            store.put_shard(STAGE, shard_key(number), shard_table(number), {})
            number += 1
        except StoreError as error:
            said = str(error)
    numbers = check_shards(store)
    leftovers = [entry.name for entry in os.scandir(Path(root) / "tmp") if entry.name != "probe"]
    store.drop(STAGE, shard_key(0))
    again = store.put_shard(STAGE, shard_key(0), pa.table({"a": [1]}), {})
    print(json.dumps({"said": said, "committed": number, "whole": len(numbers), "left": leftovers, "again": again}))


def check_shards(store: Store) -> set[int]:
    """Numbers of the committed shards, each verified to be what its writer meant."""
    numbers = set()
    for key in store.keys(STAGE):
        table, record = store.read_shard(STAGE, key)
        number = table["number"][0].as_py()
        assert key == shard_key(number)
        assert table.equals(shard_table(number))
        assert record.get("number", number) == number
        numbers.add(number)
    return numbers


def note(log: Any, event: Mapping[str, Any]) -> None:
    log.write(json.dumps(event) + "\n")
    log.flush()


def end(process: SpawnProcess) -> None:
    """Kill -9 and wait."""
    process.kill()
    process.join()
