"""Do two runs of one study answer alike? A permutation test: exact for any distribution of scores, so it fails as often
as it is told to and no oftener, where a bound on a table of few cells fails by chance.
"""

from collections.abc import Sequence

import numpy as np

from metagen_ray.stages.grid import arrays, read_answers
from metagen_ray.stages.plan import UNTRAINED, Plan

DRAWS = 4000


def scores_of(plan: Plan, ids: Sequence[str]) -> np.ndarray:
    """Judged scores of the truth beside those of the untrained predictor, TEQN, for these domains on both axes."""
    found = arrays(plan, read_answers(plan))
    chosen = [found.grid.train_ids.index(i) for i in ids]
    both = (found.grid.truth_TEQNO, found.predictions[UNTRAINED].score_TEQNO)
    return np.concatenate([score[chosen][:, chosen] for score in both], axis=1)[..., 0]


def p_same(one_TEQN: np.ndarray, other_TEQN: np.ndarray) -> float:
    """P of gaps between the runs at least so large, were it chance which run an answer of a question came from."""
    both_TEQN, sampled = np.concatenate([one_TEQN, other_TEQN], axis=-1), one_TEQN.shape[-1]
    rng, seen = np.random.default_rng(0), _gap(both_TEQN, sampled)
    as_large = sum(_gap(rng.permuted(both_TEQN, axis=-1), sampled) >= seen for _ in range(DRAWS))
    return (1 + as_large) / (1 + DRAWS)


def _gap(both_TEQN: np.ndarray, sampled: int) -> float:
    """Squared differences between the means of the first so many answers and of the rest, over scored ones."""
    left_TEQ, right_TEQ = _mean(both_TEQN[..., :sampled]), _mean(both_TEQN[..., sampled:])
    return float(np.nansum((left_TEQ - right_TEQ) ** 2))


def _mean(score_TEQN: np.ndarray) -> np.ndarray:
    scored_TEQ = np.isfinite(score_TEQN).sum(axis=-1)
    total_TEQ = np.nansum(score_TEQN, axis=-1)
    return np.divide(total_TEQ, scored_TEQ, out=np.full(total_TEQ.shape, np.nan), where=scored_TEQ > 0)
