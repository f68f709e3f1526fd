"""What of a plan is done and what is missing, from one listing per stage; and the end of what is damaged or stale."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from metagen_ray.errors import StoreError
from metagen_ray.stages.growth import answered_domains, graded_elsewhere
from metagen_ray.stages.plan import Ask, JudgeShard, Plan


@dataclass(frozen=True)
class StageStatus:
    """One line of `metagen plan`: shards of a stage, those in the store, and the tokens of the missing ones.

    `taken`: cells (a model x an eval domain) that missing answer shards take over from a smaller study, or the earlier
    judge shards whose grades missing ones look through.
    """

    stage: str
    shards: int
    done: int
    tokens: int
    waits_for: str
    taken: int = 0

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
            self._asked("ground_truth", "ground_truth", plan.truth, "object_sft"),
            self._asked("predict untrained", "predict", plan.untrained, ""),
            self._graded("judge truth", judged["truth"], "ground_truth"),
            self._graded("judge untrained", judged["untrained"], "predict untrained"),
            StageStatus("meta_sft", 1, meta_done, 0, "ground_truth"),
            self._asked("predict meta", "predict", plan.predictions, "meta_sft"),
            self._graded("judge meta", judged["meta"], "predict meta"),
        ]

    def steps_left(self) -> list[str]:
        """The driver's steps that have something missing, in their order."""
        plan, judged = self.plan, self.plan.judged
        meta_sft = [] if plan.meta in self.present["meta_sft"] else [plan.meta]
        left = {
            "object_sft": self.missing("object_sft", (*plan.adapters, *plan.second_adapters)),
            "ground_truth": self.missing("ground_truth", plan.truth) + self.missing("judge", judged["truth"]),
            "untrained": self.missing("predict", plan.untrained) + self.missing("judge", judged["untrained"]),
            "meta_sft": meta_sft,
            "predict": self.missing("predict", plan.predictions) + self.missing("judge", judged["meta"]),
        }
        return [step for step, shards in left.items() if shards]

    def complete(self) -> bool:
        """Whether nothing is missing before the figures."""
        return not self.steps_left()

    @cached_property
    def _marked(self) -> dict[str, set[str]]:
        return self.plan.context.store.marked("judge")

    def _line(self, name: str, stage: str, shards: Sequence, waits: str) -> StageStatus:
        keys = {s.key for s in shards}
        return StageStatus(name, len(keys), len(keys & self.present[stage]), 0, waits)

    def _asked(self, name: str, stage: str, asks: Sequence[Ask], waits: str) -> StageStatus:
        missing = self.missing(stage, asks)
        earlier = answered_domains(self.plan, missing, self.present)
        tokens = sum(self._tokens_left(a, earlier.get(a.key, 0)) for a in missing)
        return replace(self._line(name, stage, asks, waits), tokens=tokens, taken=sum(earlier.values()))

    def _graded(self, name: str, shards: Sequence[JudgeShard], waits: str) -> StageStatus:
        missing = self.missing("judge", shards)
        others = graded_elsewhere(missing, self._marked) if missing else {}
        keys = {key for found in others.values() for key in found} & self.present["judge"]
        return replace(self._line(name, "judge", shards, waits), taken=len(keys))

    def _tokens_left(self, ask: Ask, taken: int) -> int:
        """Prompt tokens of what is asked, and answer tokens at their limit."""
        limit = ask.samples * self.plan.study.max_answer_tokens
        known = {d.id for d in self.plan.context.blocks[ask.block].domains[:taken]}
        return sum(len(tokens) + limit for domain, *_, tokens in self.plan.prompts(ask) if domain.id not in known)


def repair(plan: Plan) -> list[str]:
    """Drop every damaged shard of the plan and the judge shards that read one; return what was dropped, in words."""
    store, status = plan.context.store, Status(plan)
    dropped: list[str] = []
    stages = [("object_sft", [a.key for a in (*plan.adapters, *plan.second_adapters)]), ("meta_sft", [plan.meta])]
    stages += [
        ("ground_truth", [a.key for a in plan.truth]),
        ("predict", [a.key for a in (*plan.untrained, *plan.predictions)]),
        ("judge", [s.key for shards in plan.judged.values() for s in shards]),
    ]
    for stage, keys in stages:
        for key in sorted(set(keys) & status.present[stage]):
            if reason := _damage(plan, stage, key):
                status.present[stage].discard(key)
                store.drop(stage, key)
                dropped.append(f"{stage} {key[:12]}: {reason}")
    return dropped + drop_stale(plan, status.present)


def drop_stale(plan: Plan, present: dict[str, set[str]]) -> list[str]:
    """Drop the judge shards that read one which is gone: asked anew, its answers are others. Returns it in words.

    `present`: keys in the pool by stage, here without what is dropped. Another study may have committed since.
    """
    store, dropped = plan.context.store, list[str]()
    for shards in plan.judged.values():  # in their order: a pass reads earlier ones
        for shard in (s for s in shards if s.key in present["judge"]):
            read = [*shard.answers, *(("judge", key) for key in shard.known)]
            gone = [key for stage, key in read if key not in present[stage] and not store.has(stage, key)]
            if gone:
                present["judge"].discard(shard.key)
                store.drop("judge", shard.key)
                dropped.append(f"judge {shard.key[:12]}: reads {gone[0][:12]}, which is gone and will be made anew")
    return dropped


def _damage(plan: Plan, stage: str, key: str) -> str:
    try:
        plan.context.store.verify(stage, key)
    except StoreError as error:
        return str(error)
    return ""
