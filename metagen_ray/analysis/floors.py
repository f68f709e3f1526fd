"""What an ideal predictor would get: error and correlation of the truth with itself. Knows nothing of quadrants.

Shape suffixes as in `grid`. Sources: the classical test theory of split halves (Spearman 1910, Brown 1910).
"""

from collections.abc import Iterator
from itertools import combinations
from math import comb

import numpy as np
from numpy.typing import NDArray

from metagen_ray.analysis.fields import spread
from metagen_ray.analysis.grid import Floats, is_scored, propensity, question_means


def question_noise(score_TEQNO: Floats) -> Floats:
    """s^2 / Q of each cell, TE: variance of its propensity over new questions; NaN below two scored questions."""
    mean_TEQO = question_means(score_TEQNO)
    count_TE = (~np.isnan(mean_TEQO[..., 0])).sum(axis=2)
    variance_TEO = _variance(mean_TEQO, axis=2)
    return spread(variance_TEO) / np.where(count_TE > 1, count_TE, np.nan)


def sample_noise(score_TEQNO: Floats) -> Floats:
    """w^2 / (Q n) of each cell, TE: variance of its propensity over new samples for the same questions.

    With unscored answers it is w^2 / Q^2 times the sum of 1 / n_q, w^2 averaged over the questions that have two
    samples; NaN where none has.
    """
    count_TEQ = is_scored(score_TEQNO).sum(axis=3)
    variance_TEQ = spread(_variance(score_TEQNO, axis=3))
    known_TEQ = count_TEQ > 1
    total_TE = np.where(known_TEQ, variance_TEQ, 0.0).sum(axis=2)
    known_TE = known_TEQ.sum(axis=2)
    pooled_TE = total_TE / np.where(known_TE > 0, known_TE, np.nan)
    scored_TEQ = count_TEQ > 0
    inverse_TE = np.where(scored_TEQ, 1.0 / np.maximum(count_TEQ, 1), 0.0).sum(axis=2)
    return pooled_TE * inverse_TE / np.square(np.maximum(scored_TEQ.sum(axis=2), 1))


def question_halves(score_TEQNO: Floats, rng: np.random.Generator, count: int) -> Iterator[tuple[Floats, Floats]]:
    """Propensities from two disjoint halves of the questions, for all ways to halve them or `count` random ones."""
    mean_TEQO = question_means(score_TEQNO)
    for first, second in halvings(score_TEQNO.shape[2], rng, count):
        yield propensity(mean_TEQO[:, :, first]), propensity(mean_TEQO[:, :, second])


def sample_halves(score_TEQNO: Floats, rng: np.random.Generator, count: int) -> Iterator[tuple[Floats, Floats]]:
    """Propensities from two disjoint halves of the samples of every question."""
    for first, second in halvings(score_TEQNO.shape[3], rng, count):
        halves = (question_means(score_TEQNO[:, :, :, chosen]) for chosen in (first, second))
        yield tuple(propensity(half) for half in halves)  # type: ignore[misc]


def halvings(size: int, rng: np.random.Generator, count: int) -> Iterator[tuple[NDArray, NDArray]]:
    """Index pairs of two disjoint sets of size // 2: every such pair if there are at most `count`, else random ones.

    Of an odd number one is left out each time, so that both halves are equally long.
    """
    half = size // 2
    if half == 0:
        return
    if comb(size, half) * comb(size - half, half) // 2 <= count:
        for first in combinations(range(size), half):
            rest = [i for i in range(size) if i not in first]
            for second in combinations(rest, half):
                if first < second:
                    yield np.array(first), np.array(second)
        return
    for _ in range(count):
        order = rng.permutation(size)
        yield order[:half], order[half : 2 * half]


def lengthened(correlation: float, factor: float) -> float | None:
    """Spearman-Brown: the correlation of tests `factor` times as long; None where a half is at or below its pole."""
    below = 1.0 + (factor - 1.0) * correlation
    return factor * correlation / below if below > 1e-9 else None


def _variance(values: Floats, axis: int) -> Floats:
    """Unbiased variance along an axis without its NaN; NaN below two values."""
    present = ~np.isnan(values)
    count = present.sum(axis=axis)
    filled = np.where(present, values, 0.0)
    mean = filled.sum(axis=axis) / np.maximum(count, 1)
    square = np.where(present, np.square(filled - np.expand_dims(mean, axis)), 0.0).sum(axis=axis)
    return square / np.where(count > 1, count - 1, np.nan)
