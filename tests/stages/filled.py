"""A store filled as if the stages had run: real plan, real shards, answers drawn from the world instead of a model."""

import pyarrow as pa

from metagen_ray.lab.world import TYPES, world
from metagen_ray.records import ANSWERS, SCORES
from metagen_ray.stages.draws import seeded
from metagen_ray.stages.judge import read_pairs, read_scores
from metagen_ray.stages.plan import Ask, JudgeShard, Plan


def fill(plan: Plan) -> None:
    store = plan.context.store
    for adapter in (*plan.adapters, *plan.second_adapters):
        store.put_files("object_sft", adapter.key, {"adapter_config.json": b"{}"}, {})
    store.put_files("meta_sft", plan.meta, {"adapter_config.json": b"{}"}, {})
    for ask in (*plan.truth, *plan.untrained, *plan.predictions):
        fill_answers(plan, ask)
    for shards in plan.judged.values():
        for shard in shards:
            fill_scores(plan, shard)


def fill_answers(plan: Plan, ask: Ask) -> None:
    advice, rng = {d.id: d for d in world().advice}, seeded(ask.key)
    rows = [
        {
            "train_domain": ask.train_domain,
            "eval_domain": domain.id,
            "question": number,
            "draw": draw,
            "sample": sample,
            "answer": rng.choice(advice[domain.id].answers(rng.choice(TYPES))),
            "tokens": [1, 2],
            "finish": "stop",
        }
        for domain, number, draw, _ in plan.prompts(ask)
        for sample in range(ask.samples)
    ]
    plan.context.store.put_shard(ask.stage, ask.key, pa.Table.from_pylist(rows, schema=ANSWERS), {})


def fill_scores(plan: Plan, shard: JudgeShard) -> None:
    store, exact = plan.context.store, plan.context.suite.exact_score
    assert exact is not None
    known = {pair for key in shard.known for pair, _ in read_scores(store, key)}
    pairs = {pair for stage, key in shard.answers for pair in read_pairs(store, stage, key)} - known
    rows = [
        {"eval_domain": d, "question": q, "answer": a, "score": exact(d, a), "mass": 1.0, "coherence": 95.0}
        for d, q, a in sorted(pairs)
    ]
    store.put_shard("judge", shard.key, pa.Table.from_pylist(rows, schema=SCORES), {})
