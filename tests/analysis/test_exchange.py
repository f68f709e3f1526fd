"""The measure by which fault tests compare two runs: it rarely cries wolf, and sees adapters that were mixed up."""

import numpy as np

from tests.exchange import p_same

RNG = np.random.default_rng(3)
SHAPE = (6, 12, 4, 2)


def scores(share_TE: np.ndarray) -> np.ndarray:
    """Scores of 0 or 100, as judged ones mostly are, with a share of 100 for each cell and one in fifty missing."""
    drawn = 100.0 * (RNG.random(SHAPE) < share_TE[..., None, None])
    return np.where(RNG.random(SHAPE) < 0.02, np.nan, drawn)


def test_runs_of_one_study_differ_by_chance_as_often_as_the_level_says():
    share_TE = RNG.beta(0.5, 0.5, SHAPE[:2])
    found = np.array([p_same(scores(share_TE), scores(share_TE)) for _ in range(10)])
    assert found.min() > 0.001 and 0.2 < found.mean() < 0.8


def test_two_domains_that_changed_places_are_seen():
    share_TE = RNG.beta(0.5, 0.5, SHAPE[:2])
    swapped = share_TE[[1, 0, 2, 3, 4, 5]]
    assert max(p_same(scores(share_TE), scores(swapped)) for _ in range(3)) < 0.01


def test_equal_runs_are_the_same_and_runs_of_nothing_scored_too():
    share_TE = np.full(SHAPE[:2], 0.5)
    one = scores(share_TE)
    assert p_same(one, one) == 1.0
    assert p_same(np.full(SHAPE, np.nan), one) == 1.0
