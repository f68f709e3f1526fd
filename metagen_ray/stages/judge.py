"""Grading answers: every distinct (question, answer) once over all passes. Owns judge shards; knows no predictors."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

import pyarrow as pa

from metagen_ray.errors import StageError
from metagen_ray.records import SCORES
from metagen_ray.serving.judge import Judge, Judgement, Options
from metagen_ray.stages.answers import AnswerWorker
from metagen_ray.stages.plan import JudgeShard, Plan
from metagen_ray.stages.shards import Row, run_shards
from metagen_ray.store import Store

Pair = tuple[str, int, str]  # eval domain, question number, answer


def run_judge(
    plan: Plan,
    shards: Sequence[JudgeShard],
    app: Any,
    versions: Mapping[str, str],
    on_outcome: Callable[[Row], None],
) -> None:
    """Grade every shard and commit its scores; StageError where the judge leaves too many answers unscored."""
    arguments = {"study": plan.study.model_dump(mode="json"), "app": asdict(app), "versions": dict(versions)}
    rows = [
        {"key": s.key, "part": s.part, "n": n} for n, s in enumerate(plan.judged[shards[0].part]) if s in set(shards)
    ]
    run_shards("judge", JudgeWorker, arguments, rows, plan.study.resources.clients, on_outcome)


class JudgeWorker(AnswerWorker):
    """Grades one shard at a time with the app's base model."""

    async def do(self, row: Row) -> Mapping[str, float]:
        """Read the answers, grade what is new, commit the scores under the shard's key."""
        shard = self.plan.judged[row["part"]][row["n"]]
        pairs, read = self._pairs(shard)
        judged = await self._judge().judge(self._scorer(), [(self._question(p), p[2]) for p in pairs])
        unscored = sum(j.score is None for j in judged)
        self._check(shard, unscored, len(pairs))
        record = {"part": shard.part, "read": read, "unscored": unscored, "versions": self.versions}
        self.plan.context.store.put_shard("judge", shard.key, _table(pairs, judged), record)
        return {"judged": len(pairs), "read": read, "unscored": unscored}

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

    def _judge(self) -> Judge:
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


def _table(pairs: Sequence[Pair], judged: Sequence[Judgement]) -> pa.Table:
    rows = [
        {"eval_domain": d, "question": q, "answer": a, "score": j.score, "mass": j.mass, "coherence": j.coherence}
        for (d, q, a), j in zip(pairs, judged, strict=True)
    ]
    return pa.Table.from_pylist(rows, schema=SCORES)
