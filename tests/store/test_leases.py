"""Leases under races, kills, stops and jumps of the clock: never two holders, never a name held for ever."""

import itertools
import json
import multiprocessing
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from metagen_ray.errors import LeaseError, StoreError
from metagen_ray.store import Lease, Store, open_store
from metagen_ray.store.process import is_gone, process_name
from metagen_ray.store.store import objects_at
from tests.store import workers
from tests.store.test_kills import wait_until

SPAWN = multiprocessing.get_context("spawn")


def _events(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_lease_second_taker_is_told_who_holds_it(store: Store):
    with store.lease("drive-a", "alice: metagen run", 60) as lease:
        assert (lease.token, lease.lost) == (1, False)
        with pytest.raises(LeaseError) as caught:
            store.lease("drive-a", "bob", 60)
        for part in (
            "drive-a",
            "alice: metagen run",
            os.uname().nodename,
            str(os.getpid()),
            "since 2",
            "ends 2",
        ):
            assert part in str(caught.value)
        with store.lease("drive-b", "bob", 60) as other:
            assert other.token == 1


def test_lease_released_is_free_at_once_with_a_higher_token(store: Store):
    tokens = []
    for _ in range(3):
        with store.lease("drive", "alice", 60) as lease:
            tokens.append(lease.token)
        assert lease.lost
        lease.release()
    assert tokens == [1, 2, 3]


def test_lease_is_released_when_the_block_fails(store: Store):
    with pytest.raises(ZeroDivisionError), store.lease("drive", "alice", 60):
        _ = 1 / 0
    store.lease("drive", "bob", 60).release()


def test_lease_renewed_outlives_its_term(store: Store):
    with store.lease("drive", "alice", 2.5) as lease:
        deadline = time.monotonic() + 6  # well past term and margin
        while time.monotonic() < deadline:
            assert not lease.lost
            with pytest.raises(LeaseError):
                store.lease("drive", "bob", 2.5)
            time.sleep(0.2)
        lease.check()


def test_lease_waiter_gets_it_when_the_holder_lets_go(store: Store):
    first = store.lease("drive", "alice", 60)
    threading.Timer(0.5, first.release).start()
    started = time.monotonic()
    with store.lease("drive", "bob", 60, wait_s=30) as lease:
        assert lease.token == 2
    assert time.monotonic() - started < 20


def test_lease_race_of_processes_has_one_holder_at_a_time(root: str, tmp_path: Path):
    open_store(root)
    turns, racers = 8, 4
    processes = [
        SPAWN.Process(target=workers.hold_in_turns, args=(root, "drive", turns, 30.0, tmp_path, seed))
        for seed in range(racers)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    held = sorted((e for p in processes for e in _events(tmp_path / f"{p.pid}")), key=lambda e: e["start"])
    assert [e["token"] for e in held] == list(range(1, turns * racers + 1))
    assert all(before["end"] <= after["start"] for before, after in itertools.pairwise(held))
    assert not any(e["lost"] for e in held)


def test_lease_of_a_killed_holder_is_taken_over(root: str, tmp_path: Path):
    store = open_store(root)
    holder = SPAWN.Process(target=workers.hold, args=(root, "drive", 2.0, tmp_path))
    holder.start()
    wait_until(lambda: _events(tmp_path / "holder"))
    with pytest.raises(LeaseError, match="holder"):
        store.lease("drive", "next", 30)
    workers.end(holder)
    killed = workers.clock()
    with store.lease("drive", "next", 30, wait_s=60) as lease:
        assert lease.token == 2
    assert workers.clock() - killed < 15


def test_lease_of_a_stopped_holder_is_lost_to_it_before_another_has_it(root: str, tmp_path: Path):
    store = open_store(root)
    holder = SPAWN.Process(target=workers.hold, args=(root, "drive", 2.0, tmp_path))
    holder.start()
    wait_until(lambda: _events(tmp_path / "holder"))
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGSTOP)
    try:
        with store.lease("drive", "next", 30, wait_s=60) as lease:
            taken = workers.clock()
            os.kill(holder.pid, signal.SIGCONT)
            holder.join(60)
            _, lost = _events(tmp_path / "holder")
            assert lost["last"] < taken
            assert (lease.token, lease.lost) == (2, False)
    finally:
        workers.end(holder)


def test_lease_taken_although_held_is_noticed_at_the_next_renewal(tmp_path: Path):
    """The clock of the store jumps: the one case in which a challenger can be wrong."""
    store = open_store(str(tmp_path))
    lease = store.lease("drive", "alice", 3.0)
    tenure = tmp_path / "leases" / "drive" / "000000001"
    long_ago = time.time() - 60
    os.utime(tenure, (long_ago, long_ago))
    with store.lease("drive", "bob", 30) as other:
        wait_until(lambda: lease.lost)
        with pytest.raises(LeaseError, match="lost"):
            lease.check()
        lease.release()
        assert not other.lost
        with pytest.raises(LeaseError, match="bob"):
            store.lease("drive", "carol", 30)


def test_lease_damaged_file_is_named(store: Store, root: str):
    store.lease("drive", "alice", 60).release()
    objects_at(root).replace("leases/drive/000000001", b"{")
    with pytest.raises(StoreError, match="leases/drive/000000001 is damaged"):
        store.lease("drive", "bob", 60)


@pytest.mark.parametrize("name", ["", "a/b", "..", "a b"])
def test_lease_name_that_is_no_plain_name_is_refused(tmp_path: Path, name: str):
    with pytest.raises(ValueError, match="name"):
        open_store(str(tmp_path)).lease(name, "alice", 60)


@pytest.mark.slow
def test_lease_race_with_kills_has_one_holder_at_a_time(root: str, tmp_path: Path):
    open_store(root)
    for seed in range(6):
        racers = [
            SPAWN.Process(target=workers.hold_in_turns, args=(root, "drive", 1000, 1.0, tmp_path, 10 * seed + n))
            for n in range(2)
        ]
        for racer in racers:
            racer.start()
        wait_until(lambda racers=racers: any(_events(tmp_path / f"{racer.pid}") for racer in racers))
        for racer in racers:
            workers.end(racer)
    logs = [path for path in tmp_path.iterdir() if path.name.isdigit()]
    events = [event for log in logs for event in _events(log) if not event["lost"]]
    held = sorted(events, key=lambda e: e["start"])
    tokens = [e["token"] for e in held]
    assert tokens == sorted(set(tokens))
    assert all(before["end"] <= after["start"] for before, after in itertools.pairwise(held))


def _hold(root: str, ready: Any) -> None:
    open_store(root).lease("drive", "alice", 600)
    ready.set()
    time.sleep(600)


@pytest.mark.parametrize("reaped", [False, True], ids=["zombie", "reaped"])
def test_lease_of_a_dead_process_of_this_machine_is_free_at_once(tmp_path: Path, reaped: bool):
    ready = SPAWN.Event()
    holder = SPAWN.Process(target=_hold, args=(str(tmp_path), ready), daemon=True)
    holder.start()
    assert ready.wait(60)
    with pytest.raises(LeaseError, match="alice"):
        open_store(str(tmp_path)).lease("drive", "bob", 60)
    assert holder.pid is not None
    os.kill(holder.pid, signal.SIGKILL)
    if reaped:
        holder.join()
    else:
        os.waitid(os.P_PID, holder.pid, os.WEXITED | os.WNOWAIT)
    with open_store(str(tmp_path)).lease("drive", "bob", 60, wait_s=5) as lease:
        assert lease.token == 2


def test_process_of_another_boot_or_namespace_is_never_gone():
    own = process_name(os.getpid())
    assert own and not is_gone(own)
    assert is_gone(own + "0")  # the id was used again: another start
    boot, _, rest = own.partition(" ")
    for foreign in (
        f"{boot[::-1]} {rest}0",
        own.replace("[", "[9") + "0",
        "",
        "nonsense",
        f"{boot} {boot}",
        own + " x",
    ):
        assert not is_gone(foreign)


class Broken:
    """A place that fails while it is told to."""

    def __init__(self, objects: Any) -> None:
        self.objects, self.fails = objects, False

    def __getattr__(self, name: str) -> Any:
        if self.fails:
            raise StoreError("the place is in trouble")
        return getattr(self.objects, name)


def test_lease_that_ran_out_in_trouble_is_taken_back_where_nobody_had_it(root: str):
    open_store(root)
    objects: Any = Broken(objects_at(root))
    with Lease(objects, "drive", "alice", 1.5) as lease:
        objects.fails = True
        wait_until(lambda: lease.lost)
        with pytest.raises(LeaseError, match="was lost"):
            lease.check()
        threading.Timer(1.5, lambda: setattr(objects, "fails", False)).start()
        lease.check(wait_s=30)
        assert (lease.token, lease.lost) == (2, False)
        with pytest.raises(LeaseError, match="alice"):
            open_store(root).lease("drive", "bob", 30)


@pytest.mark.parametrize("released", [False, True])
def test_lease_that_ran_out_and_was_taken_is_lost_for_good(root: str, released: bool):
    store = open_store(root)
    objects: Any = Broken(objects_at(root))
    lease = Lease(objects, "drive", "alice", 1.0)
    objects.fails = True
    wait_until(lambda: lease.lost)
    with store.lease("drive", "bob", 30, wait_s=30) as bob:
        if released:
            bob.release()
        objects.fails = False
        began = time.monotonic()
        with pytest.raises(LeaseError, match="was lost"):
            lease.check(wait_s=30)
        assert time.monotonic() - began < 10 and lease.lost
