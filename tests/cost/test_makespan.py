"""Scheduling: exact cases, bounds against an exhaustive search, and workers that really sleep."""

import random
from itertools import combinations

import pytest

from metagen_ray.cost.makespan import Queue, Task, bound_of, chains, simulate, sleep_through


def shortest(tasks: list[Task], workers: int) -> float:
    """The best schedule there is, waiting included: tries every choice of ready tasks at every event."""
    by_name = {task.name: task for task in tasks}

    def best(now: float, done: frozenset, running: tuple) -> float:
        if len(done) == len(tasks):
            return now
        started = done | {name for _, name in running}
        ready = [n for n, t in by_name.items() if n not in started and set(t.after) <= done]
        found = float("inf")
        for count in range(min(len(ready), workers - len(running)) + 1):
            for chosen in combinations(ready, count):
                busy = sorted([*running, *((now + by_name[n].seconds, n) for n in chosen)])
                if busy:
                    ended = [n for end, n in busy if end == busy[0][0]]
                    found = min(found, best(busy[0][0], done | set(ended), tuple(busy[len(ended) :])))
        return found

    return best(0, frozenset(), ())


def random_tasks(seed: int, count: int = 6) -> list[Task]:
    rng = random.Random(seed)
    names = [f"t{n}" for n in range(count)]
    return [
        Task(name, rng.randrange(1, 9), tuple(rng.sample(names[:n], rng.randrange(0, min(n, 2) + 1))))
        for n, name in enumerate(names)
    ]


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("seed", range(12))
def test_simulation_lies_between_the_best_schedule_and_grahams_bound(seed, workers):
    tasks = random_tasks(seed)
    best, span = shortest(tasks, workers), simulate(tasks, workers)
    assert bound_of(tasks, workers).seconds <= best <= span <= (2 - 1 / workers) * best + 1e-9
    if workers == 1:
        assert span == sum(task.seconds for task in tasks)


def test_simulation_takes_the_smallest_order_first_then_the_longest():
    tasks = [Task("long", 4, order=1), Task("short", 1), Task("middle", 2), Task("after", 6, ("middle",))]
    assert simulate(tasks, 1) == 13
    assert simulate(tasks, 2) == 8  # middle 0-2, after 2-8; short 0-1, long 1-5
    first = [Queue(tasks, 1).take(0), Queue(tasks[:2], 1).take(0)]
    assert [task and task.name for task in first] == ["middle", "short"]


def test_simulation_bound_tasks_stay_with_their_worker():
    tasks = [Task("a", 3, worker=0), Task("b", 3, worker=0), Task("c", 1), Task("d", 1)]
    assert simulate(tasks, 2) == 6
    assert simulate([Task("a", 3), Task("b", 3), *tasks[2:]], 2) == 4


def test_simulation_a_task_for_everyone_waits_for_all_workers_and_holds_them():
    tasks = [Task("a", 1), Task("b", 4), Task("all", 2, ("a",), everyone=True), Task("filler", 3, order=1)]
    # all waits for b until 4 and keeps filler from starting at 1.
    assert simulate(tasks, 2) == 9
    assert bound_of(tasks, 2).work_s == 1 + 4 + 2 * 2 + 3
    twice = [*tasks, Task("again", 1, ("all",), everyone=True)]
    assert simulate(twice, 2) == 10
    assert simulate(tasks, 1) == 10


def test_simulation_joins_cost_nothing():
    parts = [Task(f"part {n}", 1) for n in range(4)]
    tasks = [*parts, Task("whole", 0, tuple(p.name for p in parts)), Task("next", 5, ("whole",))]
    assert simulate(tasks, 2) == 7
    assert chains(tasks)["part 0"] == 6 and chains(tasks)["whole"] == 5
    assert simulate([], 3) == 0


def test_bound_is_the_longest_chain_where_workers_are_many():
    tasks = [Task("a", 5), Task("b", 5, ("a",)), Task("c", 1)]
    assert bound_of(tasks, 8).seconds == 10 and bound_of(tasks, 1).seconds == 11
    assert bound_of(tasks, 8).loss == pytest.approx(10 * 8 / 11 - 1)
    assert bound_of(tasks, 1).loss == 0


@pytest.mark.parametrize(
    ("tasks", "words"),
    [
        ([Task("a", 1, ("b",)), Task("b", 1, ("a",))], "cycle"),
        ([Task("a", 1, ("c",))], "waits for c"),
        ([Task("a", 1), Task("a", 2)], "same name"),
        ([Task("a", 1, worker=2)], "bound to worker 2 of 2"),
    ],
)
def test_tasks_that_cannot_be_done_are_refused(tasks, words):
    with pytest.raises(ValueError, match=words):
        simulate(tasks, 2)


@pytest.mark.parametrize("workers", [4, 8])
def test_sleeping_workers_work_side_by_side_and_in_order(workers):
    tasks = [Task(f"a{n}", 1 + n % 3, worker=n % workers) for n in range(8)]
    tasks += [Task(f"b{n}", 2, (f"a{n}",)) for n in range(8)]
    tasks += [Task("all", 1, tuple(f"b{n}" for n in range(4)), everyone=True), Task("end", 1, ("all",))]
    alone = sum(task.seconds for task in tasks)
    assert bound_of(tasks, workers).seconds <= simulate(tasks, workers) < alone / 2
    assert bound_of(tasks, workers).seconds <= sleep_through(tasks, workers, scale=0.02) < alone
