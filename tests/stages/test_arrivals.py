"""Asking beside training, with a real store and plain functions in the place of Ray: order, counts, and failures."""

import threading
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest

from metagen_ray.errors import StageError
from metagen_ray.stages.arrivals import Hands, Wanted, run_overlapped
from metagen_ray.stages.plan import Ask, Plan
from metagen_ray.stages.status import Status
from tests.stages.filled import fill_answers, fill_scores

PATIENCE_S = 20.0


@dataclass
class Works:
    """Does the work of a small study at once, in the order it is told, and writes down what happened."""

    plan: Plan
    log: list[tuple[str, str]] = field(default_factory=list)
    first_asked: threading.Event = field(default_factory=threading.Event)

    def hands(self) -> Hands:
        return Hands(self.train, self.ask, self.judge, self.meta)

    def train(self, arrived: Callable[[str], None]) -> None:
        """Commit one adapter after the other; the last only once an answer of another has been committed."""
        shards = Status(self.plan).missing("object_sft", self.plan.adapters)
        for shard in shards:
            if shard is shards[-1] and len(shards) > 1:
                assert self.first_asked.wait(PATIENCE_S), "no truth was asked while adapters trained"
            self.commit(shard.key)
            arrived(shard.key)

    def commit(self, key: str) -> None:
        self.plan.context.store.put_files("object_sft", key, {"adapter_config.json": b"{}"}, {})
        self.log.append(("adapter", key))

    def ask(self, batch: list[Ask], wanted: Wanted) -> None:
        for ask in batch:
            assert ask.adapter is None or self.plan.context.store.has("object_sft", ask.adapter)
            fill_answers(self.plan, ask)
            self.log.append(("ask", ask.key))
            if ask.adapter:
                self.first_asked.set()
            wanted()

    def judge(self, part: str, wanted: Wanted) -> None:
        for shard in Status(self.plan).missing("judge", self.plan.judged[part]):
            fill_scores(self.plan, shard)
            self.log.append(("judge", part))
            wanted()

    def meta(self) -> None:
        assert not Status(self.plan).missing("ground_truth", self.plan.truth)
        self.log.append(("meta", ""))

    def at(self, kind: str, *keys: str) -> list[int]:
        return [n for n, (k, key) in enumerate(self.log) if k == kind and (not keys or key in keys)]


def run(works: Works, **changed) -> None:
    run_overlapped(works.plan, Status(works.plan), replace(works.hands(), **changed))


def no_asking_thread_is_left() -> bool:
    asking = [t for t in threading.enumerate() if t.name.startswith("asking")]
    for thread in asking:
        thread.join(PATIENCE_S)
    return not any(t.is_alive() for t in asking)


def test_overlap_asks_begin_before_the_last_adapter_is_committed_and_each_is_asked_once(plan_of):
    works = Works(plan_of())
    run(works)
    plan = works.plan
    asked = Counter(key for kind, key in works.log if kind == "ask")
    assert set(asked.values()) == {1} and set(asked) == {a.key for a in (*plan.truth, *plan.untrained)}
    truth = works.at("ask", *(a.key for a in plan.truth))
    assert min(truth) < max(works.at("adapter"))
    for ask in plan.truth:
        assert works.at("adapter", ask.adapter)[0] < works.at("ask", ask.key)[0]
    assert max(truth) < works.at("meta")[0]
    assert min(works.at("judge")) > max(works.at("ask")) and no_asking_thread_is_left()
    lines = {line.stage: line.missing for line in Status(plan).lines()}
    assert lines["judge truth"] == lines["judge untrained"] == lines["predict untrained"] == 0


def test_overlap_judging_runs_while_meta_trains(plan_of):
    works, judged = Works(plan_of()), threading.Event()

    def judge(part: str, wanted: Wanted) -> None:
        works.judge(part, wanted)
        judged.set()

    def meta() -> None:
        works.meta()
        assert judged.wait(PATIENCE_S), "nothing was judged while meta-SFT trained"

    run(works, judge=judge, meta=meta)


def test_overlap_untrained_predictions_are_asked_while_the_first_adapter_trains(plan_of):
    works, asked = Works(plan_of()), threading.Event()

    def ask(batch: list[Ask], wanted: Wanted) -> None:
        works.ask(batch, wanted)
        asked.set()

    def train(arrived: Callable[[str], None]) -> None:
        assert asked.wait(PATIENCE_S), "nothing was asked before the first adapter"
        works.train(arrived)

    run(works, ask=ask, train=train)
    assert works.log[0] == ("ask", works.plan.untrained[0].key)


def test_overlap_truth_that_is_ready_comes_before_untrained_predictions(plan_of):
    works = Works(plan_of())
    for shard in works.plan.adapters:
        works.commit(shard.key)
    run(works)
    truth, free = ([a.key for a in asks] for asks in (works.plan.truth, works.plan.untrained))
    assert max(works.at("ask", *truth)) < min(works.at("ask", *free))


def test_overlap_run_again_does_what_is_missing_alone(plan_of):
    works = Works(plan_of())
    run(works)
    dropped = works.plan.truth[5]
    works.plan.context.store.drop("ground_truth", dropped.key)
    again = Works(works.plan)
    run(again)
    assert again.log[:1] == [("ask", dropped.key)] and {k for k, _ in again.log} == {"ask", "meta"}


def test_overlap_failed_adapter_raises_and_keeps_what_was_committed(plan_of):
    works = Works(plan_of())

    def train(arrived: Callable[[str], None]) -> None:
        for shard in works.plan.adapters[:3]:
            works.commit(shard.key)
            arrived(shard.key)
        assert works.first_asked.wait(PATIENCE_S)
        raise StageError("object_sft: 5 of 8 adapters failed")

    with pytest.raises(StageError, match="5 of 8"):
        run(works, train=train)
    assert no_asking_thread_is_left() and not works.at("meta") and not works.at("judge")
    committed = {s.key for s in works.plan.adapters[:3]}
    asked = works.plan.context.store.keys("ground_truth")
    assert asked and asked <= {a.key for a in works.plan.truth if a.adapter in committed}


def test_overlap_asking_that_fails_is_raised_after_training_has_ended(plan_of):
    works = Works(plan_of())

    def ask(batch: list[Ask], wanted: Wanted) -> None:
        works.ask(batch[:1], wanted)
        works.first_asked.set()
        raise StageError("answers: 1 of 2 shards failed")

    with pytest.raises(StageError, match="answers"):
        run(works, ask=ask)
    assert len(works.at("adapter")) == len(works.plan.adapters) and len(works.at("ask")) == 1
    assert not works.at("meta") and no_asking_thread_is_left()


def test_overlap_judging_that_fails_is_raised_after_meta(plan_of):
    works, begun = Works(plan_of()), threading.Event()

    def judge(part: str, wanted: Wanted) -> None:
        assert begun.wait(PATIENCE_S)
        raise StageError("judge: no numbers")

    def meta() -> None:
        begun.set()
        works.meta()

    with pytest.raises(StageError, match="no numbers"):
        run(works, judge=judge, meta=meta)
    assert works.at("meta") and no_asking_thread_is_left()


def test_overlap_interrupt_ends_the_asking_between_two_shards(plan_of):
    works = Works(plan_of())

    def ask(batch: list[Ask], wanted: Wanted) -> None:
        works.first_asked.set()
        while True:  # a batch without end: only `wanted` ends it
            wanted()

    def train(arrived: Callable[[str], None]) -> None:
        assert works.first_asked.wait(PATIENCE_S)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(works, ask=ask, train=train)
    assert no_asking_thread_is_left()
