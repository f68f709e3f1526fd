"""How long a set of tasks takes on N GPUs: one queue, exact event simulation, and workers that really sleep.

Both use the same `Queue`. A task may wait for others, may be bound to one worker (a lane's bank), and may need all
workers at once (data-parallel meta-SFT). Time is in seconds; the start of engines is not in it.
"""

import heapq
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter


@dataclass(frozen=True, slots=True)
class Task:
    """One piece of work. `after` names what must be finished; a task of 0 seconds only joins others.

    Among ready tasks the smallest `order` goes first, then the longest. `worker` binds a task to one worker,
    `everyone` makes all workers do it together.
    """

    name: str
    seconds: float
    after: tuple[str, ...] = ()
    order: float = 0.0
    worker: int | None = None
    everyone: bool = False


@dataclass(frozen=True, slots=True)
class Bound:
    """What no schedule of these tasks on these workers can beat."""

    work_s: float  # of all workers together
    chain_s: float  # the longest chain of tasks that wait for each other
    workers: int

    @property
    def seconds(self) -> float:
        """max(work / N, longest chain)."""
        return max(self.work_s / self.workers, self.chain_s)

    @property
    def loss(self) -> float:
        """By how much the bound exceeds work / N, as a share of it."""
        return self.seconds * self.workers / self.work_s - 1 if self.work_s else 0.0


class Queue:
    """What is ready, for workers that come and ask. Threads must take turns at it.

    A task for everyone begins when no worker is busy any more: once it is ready, nothing else is handed out.
    """

    def __init__(self, tasks: Sequence[Task], workers: int) -> None:
        _check(tasks, workers)
        self.workers = workers
        self.left = len(tasks)
        self._open = {task.name: len(task.after) for task in tasks}
        self._followers: dict[str, list[Task]] = {}
        self._ready: dict[int | None, list[tuple]] = {None: []}  # by the worker a task is bound to
        self._everyone: list[Task] = []
        self._here: set[int] = set()  # workers that have come for the task for everyone
        self._owed: set[int] = set()  # those that have yet to be given it
        self._at_it = 0
        for task in tasks:
            for name in task.after:
                self._followers.setdefault(name, []).append(task)
        for task in [t for t in tasks if not t.after]:
            self._release(task)

    def take(self, worker: int) -> Task | None:
        """The next task of a free worker, None where it has to wait."""
        if self._everyone:
            return self._join(worker)
        heaps = [heap for heap in (self._ready[None], self._ready.get(worker)) if heap]
        return heapq.heappop(min(heaps, key=lambda heap: heap[0]))[-1] if heaps else None

    def finish(self, task: Task) -> bool:
        """Note that a worker has done a task; whether those who wait should ask again."""
        if task.everyone:
            self._at_it -= 1
            if self._at_it:
                return False
            self._everyone.pop(0)
            self._here.clear()
        self._done(task)
        return task.everyone or task.name in self._followers or not self.left

    def _join(self, worker: int) -> Task | None:
        """Wait for all; the last to come begins, the others find the task when they ask again."""
        if not self._at_it:
            self._here.add(worker)
            if len(self._here) < self.workers:
                return None
            self._at_it, self._owed = self.workers, set(self._here)
        if worker not in self._owed:
            return None
        self._owed.remove(worker)
        return self._everyone[0]

    def _done(self, task: Task) -> None:
        self.left -= 1
        for follower in self._followers.get(task.name, ()):
            self._open[follower.name] -= 1
            if not self._open[follower.name]:
                self._release(follower)

    def _release(self, task: Task) -> None:
        if not task.seconds:
            self._done(task)
        elif task.everyone:
            self._everyone.append(task)
        else:
            heap = self._ready.setdefault(task.worker, [])
            heapq.heappush(heap, (task.order, -task.seconds, task.name, task))


def simulate(tasks: Sequence[Task], workers: int) -> float:
    """Seconds until the last task ends, exactly."""
    queue, now = Queue(tasks, workers), 0.0
    busy: list[tuple[float, int, Task]] = []
    idle = set(range(workers))
    while queue.left:
        while started := [(worker, task) for worker in sorted(idle) if (task := queue.take(worker))]:
            for worker, task in started:
                idle.remove(worker)
                heapq.heappush(busy, (now + task.seconds, worker, task))
        now = busy[0][0]
        while busy and busy[0][0] == now:
            _, worker, task = heapq.heappop(busy)
            queue.finish(task)
            idle.add(worker)
    return now


def sleep_through(tasks: Sequence[Task], workers: int, scale: float) -> float:
    """The same with threads that sleep `scale` times each task's seconds; the seconds it took, divided by `scale`."""
    queue, changed = Queue(tasks, workers), threading.Condition()

    def next_task(worker: int, done: Task | None) -> Task | None:
        with changed:
            if done and queue.finish(done):
                changed.notify_all()
            while not (task := queue.take(worker)) and queue.left:
                changed.wait()
            if task and task.everyone:
                changed.notify_all()
            return task

    def work(worker: int) -> None:
        task = None
        while task := next_task(worker, task):
            time.sleep(task.seconds * scale)

    threads = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(workers)]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return (time.perf_counter() - began) / scale


def bound_of(tasks: Sequence[Task], workers: int) -> Bound:
    """The lower bound; a task for everyone is work for all workers."""
    work = sum(task.seconds * (workers if task.everyone else 1) for task in tasks)
    return Bound(work, max(chains(tasks).values(), default=0.0), workers)


def chains(tasks: Sequence[Task]) -> dict[str, float]:
    """For each task the longest chain that begins with it, itself included."""
    by_name = {task.name: task for task in tasks}
    found = dict.fromkeys(by_name, 0.0)
    for name in reversed(_in_order(tasks)):
        task = by_name[name]
        found[name] += task.seconds
        for before in task.after:
            found[before] = max(found[before], found[name])
    return found


def _in_order(tasks: Sequence[Task]) -> list[str]:
    return list(TopologicalSorter({task.name: task.after for task in tasks}).static_order())


def _check(tasks: Sequence[Task], workers: int) -> None:
    names = {task.name for task in tasks}
    if len(names) < len(tasks):
        raise ValueError("two tasks have the same name")
    for task in tasks:
        unknown = [name for name in task.after if name not in names]
        if unknown:
            raise ValueError(f"{task.name} waits for {unknown[0]}, which is no task")
        if task.worker is not None and task.worker >= workers:
            raise ValueError(f"{task.name} is bound to worker {task.worker} of {workers}")
    _in_order(tasks)  # raises for tasks that wait for each other in a circle
