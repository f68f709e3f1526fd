"""Two-way cluster bootstrap as weights. Owns the resampling and the percentiles; knows nothing of metrics.

Training and eval domains are resampled independently; a cell weighs the product of the counts of its two domains
(Owen 2007, "The pigeonhole bootstrap"), which errs on the wide side where cells carry noise of their own.
Shape suffixes: B resample, D domain.
"""

import numpy as np
from numpy.typing import NDArray

from metagen_ray.analysis.grid import Floats
from metagen_ray.analysis.student import normal_upper, t_quantile

# More failed resamples than this and the rest no longer stands for all.
MAX_FAILED = 0.05


def stratified_weights(half_D: NDArray[np.bool_], resamples: int, rng: np.random.Generator) -> Floats:
    """How often each domain is drawn, BD: each half is resampled within itself."""
    weight_BD = np.zeros((resamples, len(half_D)))
    for half in (True, False):
        chosen_D = np.flatnonzero(half_D == half)
        if len(chosen_D):
            weight_BD[:, chosen_D] = whole_weights(len(chosen_D), resamples, rng)
    return weight_BD


def whole_weights(domains: int, resamples: int, rng: np.random.Generator) -> Floats:
    """How often each of `domains` is drawn with replacement, BD."""
    return rng.multinomial(domains, np.full(domains, 1.0 / domains), size=resamples).astype(float)


def interval(value_B: Floats, level: float, clusters: int) -> tuple[float, float] | None:
    """Expanded percentiles of the resamples; None if more than 5 % of them have no value.

    Plain percentiles act as if the variance were known and are short by sqrt(1 - 1/n); with few clusters the tails are
    moved out so that a normal statistic gets Student's interval (Hesterberg 2015, "What Teachers Should Know About
    the Bootstrap", section 5.3).
    """
    valid = value_B[~np.isnan(value_B)]
    if len(valid) < (1.0 - MAX_FAILED) * len(value_B):
        return None
    stretch = (clusters / (clusters - 1.0)) ** 0.5
    tail = normal_upper(stretch * t_quantile(0.5 + level / 2.0, clusters - 1))
    low, high = np.quantile(valid, [tail, 1.0 - tail])
    return float(low), float(high)
