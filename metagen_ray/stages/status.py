"""What of a plan is done and what is missing, from one listing per stage. Computes nothing; only `repair` changes."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from metagen_ray.errors import StoreError
from metagen_ray.stages.plan import Ask, Plan


@dataclass(frozen=True)
class StageStatus:
    """One line of `metagen plan`: shards of a stage, those in the store, and the tokens of the missing ones."""

    stage: str
    shards: int
    done: int
    tokens: int
    waits_for: str

    @property
    def missing(self) -> int:
        """Shards still to do."""
        return self.shards - self.done


class Status:
    """The plan held against the store as it is now."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    @cached_property
    def present(self) -> dict[str, set[str]]:
        """Keys in the pool by stage."""
        stages = ("object_sft", "ground_truth", "judge", "predict", "meta_sft")
        return {stage: self.plan.context.store.keys(stage) for stage in stages}

    def missing(self, stage: str, shards: Iterable) -> list:
        """Shards of a stage whose key is not in the pool; equal keys once."""
        have = self.present[stage]
        return list({s.key: s for s in shards if s.key not in have}.values())

    def lines(self) -> list[StageStatus]:
        """Every stage in the order it runs."""
        plan, judged = self.plan, self.plan.judged
        adapters = (*plan.adapters, *plan.second_adapters)
        meta_done = int(plan.meta in self.present["meta_sft"])
        return [
            self._line("object_sft", "object_sft", adapters, ""),
            self._line("ground_truth", "ground_truth", plan.truth, "object_sft", self._ask_tokens),
            self._line("predict untrained", "predict", plan.untrained, "", self._ask_tokens),
            self._line("judge truth", "judge", judged["truth"], "ground_truth"),
            self._line("judge untrained", "judge", judged["untrained"], "predict untrained"),
            StageStatus("meta_sft", 1, meta_done, 0, "ground_truth"),
            self._line("predict meta", "predict", plan.predictions, "meta_sft", self._ask_tokens),
            self._line("judge meta", "judge", judged["meta"], "predict meta"),
        ]

    def complete(self) -> bool:
        """Whether nothing is missing before the figures."""
        return not any(line.missing for line in self.lines())

    def _line(self, name: str, stage: str, shards: Sequence, waits: str, tokens=lambda missing: 0) -> StageStatus:
        keys = {s.key for s in shards}
        missing = self.missing(stage, shards)
        return StageStatus(name, len(keys), len(keys) - len(missing), tokens(missing), waits)

    def _ask_tokens(self, asks: Sequence[Ask]) -> int:
        """Prompt tokens, and answer tokens at their limit."""
        limit = self.plan.study.max_answer_tokens
        return sum(len(tokens) + a.samples * limit for a in asks for *_, tokens in self.plan.prompts(a))


def repair(plan: Plan) -> list[str]:
    """Drop every damaged shard of the plan and the judge shards that read one; return what was dropped, in words."""
    store, status = plan.context.store, Status(plan)
    dropped: list[str] = []

    def drop(stage: str, key: str, why: str) -> None:
        store.drop(stage, key)
        dropped.append(f"{stage} {key[:12]}: {why}")

    lost: set[str] = set()
    stages = [("object_sft", [a.key for a in (*plan.adapters, *plan.second_adapters)]), ("meta_sft", [plan.meta])]
    stages += [
        ("ground_truth", [a.key for a in plan.truth]),
        ("predict", [a.key for a in (*plan.untrained, *plan.predictions)]),
    ]
    for stage, keys in stages:
        for key in sorted(set(keys) & status.present[stage]):
            reason = _damage(plan, stage, key)
            if reason:
                drop(stage, key, reason)
                lost.add(key)
    for shards in plan.judged.values():
        for shard in (s for s in shards if s.key in status.present["judge"]):
            stale = lost & ({key for _, key in shard.answers} | set(shard.known))
            reason = "reads a rebuilt shard" if stale else _damage(plan, "judge", shard.key)
            if reason:
                drop("judge", shard.key, reason)
                lost.add(shard.key)
    return dropped


def _damage(plan: Plan, stage: str, key: str) -> str:
    try:
        plan.context.store.verify(stage, key)
    except StoreError as error:
        return str(error)
    return ""
