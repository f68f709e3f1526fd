"""Grading answers: every distinct (question, answer) once over all passes. Owns judge shards; knows no predictors."""

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property
from typing import Any

import pyarrow as pa

from metagen_ray.errors import StageError
from metagen_ray.records import SCORES
from metagen_ray.serving.judge import Judge, Judgement, Options
from metagen_ray.stages.answers import AnswerWorker, AppAddress, worker_arguments
from metagen_ray.stages.growth import Pair, graded_elsewhere, take_grades
from metagen_ray.stages.plan import JudgeShard, Plan
from metagen_ray.stages.shards import Row, run_shards
from metagen_ray.store import Store


def run_judge(
    plan: Plan,
    shards: Sequence[JudgeShard],
    app: AppAddress,
    versions: Mapping[str, str],
    on_outcome: Callable[[Row], None],
) -> None:
    """Grade every shard and commit its scores; StageError where the judge leaves too many answers unscored."""
    arguments, rows = judge_work(plan, shards, app, versions)
    run_shards("judge", JudgeWorker, arguments, rows, plan.study.resources, on_outcome)


def judge_work(
    plan: Plan, shards: Sequence[JudgeShard], app: AppAddress, versions: Mapping[str, str]
) -> tuple[dict[str, Any], list[Row]]:
    """Arguments of JudgeWorker and a row for every shard; one listing finds the shards whose grades are taken over."""
    earlier = graded_elsewhere(shards, plan.context.store.marked("judge"))
    rows = [
        {"key": s.key, "part": s.part, "n": n} for n, s in enumerate(plan.judged[shards[0].part]) if s in set(shards)
    ]
    return worker_arguments(plan, app, versions, earlier), rows


class JudgeWorker(AnswerWorker):
    """Grades shards with the app's base model."""

    async def do(self, row: Row) -> Mapping[str, float]:
        """Read the answers, grade what nobody has graded, commit the scores under the shard's key."""
        shard = self.plan.judged[row["part"]][row["n"]]
        pairs, read = await asyncio.to_thread(self._pairs, shard)
        taken, note = take_grades(self.plan, shard, self.earlier.get(shard.key, ()), pairs)
        left = [p for p in pairs if p not in taken]
        judged = await self._judge.judge(self._scorer(), [(self._question(p), p[2]) for p in left])
        graded = taken | {p: _row(p, j) for p, j in zip(left, judged, strict=True)}
        table = pa.Table.from_pylist([graded[p] for p in pairs], schema=SCORES)
        unscored = table.column("score").null_count
        self._check(shard, unscored, len(pairs))
        record = {
            "part": shard.part,
            "read": read,
            "unscored": unscored,
            "label": shard.label,
            "questions": self.plan.question_digests(shard.block),
            "taken": note,
            "versions": self.versions,
        }
        await asyncio.to_thread(self._commit, shard, table, record)
        figures = {"judged": len(left), "taken": len(taken), "read": read, "unscored": unscored}
        return figures | {"spared": read - len(left)} | self._served()

    def _commit(self, shard: JudgeShard, table: pa.Table, record: Mapping[str, Any]) -> None:
        store = self.plan.context.store
        store.mark("judge", shard.label, shard.key)
        store.put_shard("judge", shard.key, table, record)

    def _pairs(self, shard: JudgeShard) -> tuple[list[Pair], int]:
        """Distinct pairs that no earlier pass has graded, and how many answers they were drawn from."""
        store = self.plan.context.store
        known = {pair for key in shard.known for pair, _ in read_scores(store, key)}
        pairs: dict[Pair, None] = {}
        read = 0
        for stage, key in shard.answers:
            for pair in read_pairs(store, stage, key):
                read += 1
                if pair not in known:
                    pairs[pair] = None
        return sorted(pairs), read

    @cached_property
    def _judge(self) -> Judge:
        """Made once: spelling the numbers takes a tokenizer some thousand calls."""
        renderer = self.plan.context.renderer
        options = Options(min_mass=self.study.judge.min_mass)
        return Judge(self.client, self.app.model(None), self.plan.context.tokenizer, renderer.prompt, options)

    def _scorer(self) -> Any:
        return self.plan.context.suite.scorer

    def _question(self, pair: Pair) -> str:
        return self.plan.context.questions(self.plan.context.domains[pair[0]])[pair[1]]

    def _check(self, shard: JudgeShard, unscored: int, total: int) -> None:
        limit = self.study.judge.max_unscored
        if total and unscored / total > limit:
            raise StageError(
                f"the judge produced no number for {unscored} of {total} answers (limit {limit:.0%}); use a model that "
                "can grade, another rubric, or raise judge.max_unscored"
            )


def read_pairs(store: Store, stage: str, key: str) -> Iterable[Pair]:
    """(eval domain, question, answer) of every answer of a shard."""
    table, _ = store.read_shard(stage, key)
    columns = (table.column(name).to_pylist() for name in ("eval_domain", "question", "answer"))
    return zip(*columns, strict=True)


def read_scores(store: Store, key: str) -> Iterable[tuple[Pair, tuple[float | None, float | None]]]:
    """(pair, (score, coherence)) of every graded pair of a shard."""
    table, _ = store.read_shard("judge", key)
    names = ("eval_domain", "question", "answer", "score", "coherence")
    for domain, question, answer, score, coherence in zip(*(table.column(n).to_pylist() for n in names), strict=True):
        yield (domain, question, answer), (score, coherence)


def _row(pair: Pair, judged: Judgement) -> dict[str, Any]:
    domain, question, answer = pair
    return {
        "eval_domain": domain,
        "question": question,
        "answer": answer,
        "score": judged.score,
        "mass": judged.mass,
        "coherence": judged.coherence,
    }
