"""Judging through the real worker against a scripted server: what equal answers spared is counted."""

import asyncio

from metagen_ray.stages.judge import JudgeWorker, judge_work, read_pairs
from tests.stages.counting import CountingModel, ask_all, serving


def test_judge_counts_the_answers_that_needed_no_judging(plan_of, tmp_path):
    plan = plan_of("domains=4", "questions=1", "predict.samples=2")
    model, store = CountingModel(plan.context.tokenizer), plan.context.store

    async def judged(part: str) -> dict[str, float]:
        arguments, rows = judge_work(plan, plan.judged[part], app, {})
        worker = JudgeWorker(**arguments)
        figures = dict(await worker.do(rows[0]))
        await worker.client.aclose()
        return figures

    with serving(model, tmp_path, plan.context.base.name) as app:
        ask_all(plan, plan.truth, app)
        ask_all(plan, plan.untrained, app)
        first, second = (asyncio.run(judged(part)) for part in ("truth", "untrained"))
    truth, untrained = (
        [p for a in asks for p in read_pairs(store, a.stage, a.key)] for asks in (plan.truth, plan.untrained)
    )
    assert first["spared"] == len(truth) - len(set(truth)) > 0
    assert second["spared"] == len(untrained) - len(set(untrained) - set(truth)) > 0
