"""Asking while adapters train. Owns the order in which work becomes ready; knows neither Ray nor the app.

The truth of an adapter is asked once the adapter is committed, the untrained predictions whenever nothing else is
ready. Meta-SFT begins when the truth is there, beside the rest of the asking and the judging. One thread asks, batch
after batch, each of all that became ready during the last: a batch costs the start of its actors.
"""

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import Any

from metagen_ray.progress import say
from metagen_ray.stages.plan import Ask, Plan
from metagen_ray.stages.status import Status

FREE_PER_ASKER = 16  # shards of a batch that waits for no adapter: for so long the truth may have to wait
STOP_WAIT_S = 30.0  # for a shard that is being asked; what follows takes the app down, which ends it too

Wanted = Callable[[], None]  # raises Stopped where the rest is not wanted any more; called between shards


class Stopped(Exception):
    """The other side failed or was interrupted; the asking ends, and nothing of its own is wrong."""


@dataclass(frozen=True)
class Hands:
    """Who does the work. `train` calls back with the key of each committed adapter; all commit what they do."""

    train: Callable[[Callable[[str], None]], None]
    ask: Callable[[list[Ask], Wanted], None]
    judge: Callable[[str, Wanted], None]  # the pass: truth or untrained
    meta: Callable[[], None]


def run_overlapped(plan: Plan, status: Status, hands: Hands) -> None:
    """Everything up to meta-SFT and the judging of what was asked so far, training and asking side by side.

    What training raises is raised at once, with the batch in hand asked to its next shard; what asking raises, after
    the training that runs. What was committed stays.
    """
    truth = status.missing("ground_truth", plan.truth)
    free = status.missing("predict", plan.untrained)

    def judge(wanted: Wanted) -> None:
        for part in ("truth", "untrained"):
            hands.judge(part, wanted)

    size = FREE_PER_ASKER * plan.study.resources.asked_at_once
    with Arrivals(truth, free, status.present["object_sft"], hands.ask, judge, size) as arrivals:
        hands.train(arrivals.arrived)
        arrivals.all_arrived()
        arrivals.wait_for_truth()
        hands.meta()


class Arrivals:
    """Asks that wait for adapters, and asks that wait for none, done by a thread in batches; `then` follows them."""

    def __init__(
        self,
        waiting: Sequence[Ask],
        free: Sequence[Ask],
        committed: Iterable[str],
        ask: Callable[[list[Ask], Wanted], None],
        then: Callable[[Wanted], None],
        free_size: int,
    ) -> None:
        self._waiting, self._free = list(waiting), list(free)
        self._committed = set(committed)
        self._ask, self._then, self._free_size = ask, then, free_size
        self._unasked = len(self._waiting)
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = ThreadPoolExecutor(1, "asking")
        self._ended: Future[None] = Future()

    def __enter__(self) -> "Arrivals":
        self._ended = self._thread.submit(self._run)
        self._ended.add_done_callback(lambda _: self._tell())
        return self

    def __exit__(self, _: Any, error: BaseException | None, __: Any) -> None:
        """Wait for the asking and raise what it raised; end it where the other side failed."""
        try:
            if error is None:
                self._ended.result()
        except BaseException as late:
            error = late
            raise
        finally:
            if error is not None:
                self._end(error)
            self._thread.shutdown(wait=False)

    def arrived(self, adapter: str) -> None:
        """An adapter stands in the store."""
        with self._changed:
            self._committed.add(adapter)
            self._changed.notify_all()

    def all_arrived(self) -> None:
        """No adapter is waited for any longer."""
        with self._changed:
            self._committed.update(ask.adapter for ask in self._waiting if ask.adapter)
            self._changed.notify_all()

    def wait_for_truth(self) -> None:
        """Return when every ask that waited for an adapter is done; raises what the asking raised."""
        with self._changed:
            self._changed.wait_for(lambda: not self._unasked or self._ended.done())
        if self._ended.done():
            self._ended.result()

    def _end(self, error: BaseException) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        wait([self._ended], STOP_WAIT_S)
        failure = self._ended.exception() if self._ended.done() else None
        if failure is not None and failure is not error:
            say(f"asking failed as well: {failure}")

    def _tell(self) -> None:
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        try:
            for batch in self._batches():
                self._ask(batch, self._wanted)
            self._wanted()
            self._then(self._wanted)
        except Stopped:
            return

    def _batches(self) -> Iterator[list[Ask]]:
        """What is ready, adapters first, until nothing is left."""
        while batch := self._next():
            yield batch
            with self._changed:
                self._unasked -= sum(ask.adapter is not None for ask in batch)
                self._changed.notify_all()

    def _next(self) -> list[Ask]:
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or self._ready() or self._free or not self._waiting)
            self._wanted()
            ready = self._ready()
            if ready:
                self._waiting = [ask for ask in self._waiting if ask.adapter not in self._committed]
                return ready
            batch, self._free = self._free[: self._free_size], self._free[self._free_size :]
            return batch

    def _ready(self) -> list[Ask]:
        return [ask for ask in self._waiting if ask.adapter in self._committed]

    def _wanted(self) -> None:
        if self._stopped:
            raise Stopped
