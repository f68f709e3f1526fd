"""The table of several splits: every predictor, every evaluation quadrant, blocks and the claim."""

import numpy as np

from metagen_ray.analysis import combine
from metagen_ray.view.pooled import pooled_table
from tests.analysis.test_analyse import QUICK, splits_of_one_world


def test_pooled_table_tells_contrasts_with_p_blocks_and_the_claim():
    analyses, _ = splits_of_one_world()
    pooled = combine(analyses, QUICK, np.random.default_rng(0))
    text = pooled_table(pooled)
    for quadrant in ("train-eval", "eval-train", "eval-eval"):
        assert f"{quadrant}, MetaSFT minus the other, squared error (sampled)" in text
    assert "p_joint" in text and "wins 3 of 3" in text
    assert "even rows" in text
    assert "MetaSFT beats" in text and "yes, p = " in text
