"""From committed shards to arrays: the truth's grid and the predictions on it. Owns the join; computes no statistic.

Axes: T train domain, E eval domain, Q question, N sample, O coordinate (1 for a judged score).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from metagen_ray.analysis import Grid, Prediction, past_threshold
from metagen_ray.errors import InputError
from metagen_ray.stages.judge import read_scores
from metagen_ray.stages.plan import BASE, TRUTH, Ask, Plan

INCOHERENT_BELOW = 50.0
Score = Callable[
    [str, int, str], tuple[float | None, float | None]
]  # eval domain, question, answer -> score, coherence


@dataclass(frozen=True)
class Answer:
    """One answer with where it belongs and how it was graded; `exact` is the label the world knows, if it does."""

    predictor: str
    train_domain: str
    eval_domain: str
    question: int
    draw: int
    sample: int
    answer: str
    finish: str
    score: float | None
    coherence: float | None
    exact: float | None


def read_answers(plan: Plan) -> list[Answer]:
    """Every answer of the study with its grades. StoreError names a shard that is missing or damaged."""
    graded = {
        pair: grade
        for shards in plan.judged.values()
        for s in shards
        for pair, grade in read_scores(plan.context.store, s.key)
    }
    exact = plan.context.suite.exact_score or (lambda domain, answer: None)
    known: dict[tuple[str, str], float | None] = {}
    found: list[Answer] = []
    for ask in (*plan.truth, *plan.untrained, *plan.predictions):
        for row in _rows(plan, ask):
            domain, answer = row["eval_domain"], row["answer"]
            if (domain, answer) not in known:
                known[domain, answer] = exact(domain, answer)
            score, coherence = graded[domain, row["question"], answer]
            found.append(Answer(ask.predictor, **row, score=score, coherence=coherence, exact=known[domain, answer]))
    return found


def _rows(plan: Plan, ask: Ask) -> list[dict]:
    table, _ = plan.context.store.read_shard(ask.stage, ask.key)
    return [{**row, "train_domain": ask.train_domain} for row in table.drop_columns("tokens").to_pylist()]


@dataclass(frozen=True)
class Arrays:
    """The grid and every sampled predictor."""

    grid: Grid
    predictions: dict[str, Prediction]


def arrays(plan: Plan, answers: Iterable[Answer], exact: bool = False) -> Arrays:
    """Arrange answers by cell. `exact` takes the world's labels in place of the judge's scores.

    Domains of the unused half (while recipes are tuned) are left out altogether.
    """
    ids = tuple(d.id for d in plan.context.active)
    index = {name: n for n, name in enumerate(ids)}
    scores, coherences = _fill(plan, answers, index, exact)
    threshold = plan.context.suite.scorer.threshold
    halves = np.array([i in set(plan.context.halves.meta_train) for i in ids])

    def sides(name: str) -> dict[str, np.ndarray]:
        return {
            "incoherent_TEQN": coherences[name] < INCOHERENT_BELOW,
            "past_TEQN": past_threshold(scores[name], threshold, coherences[name], INCOHERENT_BELOW),
        }

    grid = Grid(ids, ids, halves, halves, scores[TRUTH][..., None], **sides(TRUTH))
    predictions = {
        name: Prediction(score[..., None], min(plan.study.samples, score.shape[3]), **sides(name))
        for name, score in scores.items()
        if name != TRUTH
    }
    return Arrays(grid, predictions)


def _fill(plan: Plan, answers: Iterable[Answer], index: dict[str, int], exact: bool) -> tuple[dict, dict]:
    """Scores and coherences by predictor, TEQN, NaN where nothing was asked or graded."""
    scores: dict[str, np.ndarray] = {}
    coherences: dict[str, np.ndarray] = {}
    sizes = _samples(plan)
    for name, samples in sizes.items():
        shape = (len(index), len(index), plan.study.questions, samples)
        scores[name], coherences[name] = np.full(shape, np.nan), np.full(shape, np.nan)
    for a in answers:
        column = index.get(a.eval_domain)
        if column is None:
            continue
        rows = slice(None) if a.predictor == BASE else index[a.train_domain]
        value = a.exact if exact else a.score
        scores[a.predictor][rows, column, a.question, a.sample] = np.nan if value is None else value
        coherences[a.predictor][rows, column, a.question, a.sample] = np.nan if a.coherence is None else a.coherence
    return scores, coherences


def _samples(plan: Plan) -> dict[str, int]:
    asks = (*plan.truth, *plan.untrained, *plan.predictions)
    if not any(a.predictor == TRUTH for a in asks):
        raise InputError("the plan holds no ground truth; nothing to analyse")
    return {a.predictor: a.samples for a in asks}


def mechanism(plan: Plan, grid: Grid, keys: Callable[[str, str], tuple]) -> Prediction:
    """A table of the world's own mechanism: the mean truth of the meta-train cells that share `keys(i, j)`.

    `keys` gives ever coarser descriptions of a cell, finest first; the finest that any other meta-train cell shares is
    used. No cell sees itself.
    """
    scored_TEQN = ~np.isnan(grid.truth_TEQNO[..., 0])
    count_TE = scored_TEQN.sum(axis=(2, 3))
    truth_TE = np.where(scored_TEQN, grid.truth_TEQNO[..., 0], 0.0).sum(axis=(2, 3)) / np.maximum(count_TE, 1)
    meta_TE = grid.train_meta_T[:, None] & grid.eval_meta_E[None] & (count_TE > 0)
    np.fill_diagonal(meta_TE, False)
    sums: dict[object, list[float]] = {}
    for i, j in zip(*np.nonzero(meta_TE), strict=True):
        for key in keys(grid.train_ids[i], grid.eval_ids[j]):
            total = sums.setdefault(key, [0.0, 0.0])
            total[0] += truth_TE[i, j]
            total[1] += 1
    table_TE = np.full(truth_TE.shape, np.nan)
    for i, j in np.ndindex(table_TE.shape):
        own = (truth_TE[i, j], 1.0) if meta_TE[i, j] else (0.0, 0.0)
        for key in keys(grid.train_ids[i], grid.eval_ids[j]):
            total, count = sums.get(key, (0.0, 0.0))
            if count - own[1] > 0:
                table_TE[i, j] = (total - own[0]) / (count - own[1])
                break
    return Prediction(table_TE[:, :, None, None, None], 1)
