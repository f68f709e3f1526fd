"""Is one predictor better than another? Owns the two-way clustered t, Holm's correction and the claim test.

A difference D of squared errors has effects of the training and of the eval domain, so its cells are no independent
draws: the variance of its mean is summed over both kinds of cluster, V_row + V_col. The noise of single cells is in
both terms; it stays there twice, which costs a little power and keeps the level without row or column effects.
Shape suffixes: R training domain, C eval domain. NaN is a missing cell.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from metagen_ray.analysis.grid import Floats
from metagen_ray.analysis.student import t_quantile, t_upper


@dataclass(frozen=True, eq=False)
class Differences:
    """Cellwise differences of one split, with the domains they belong to. `crossed` is False on the diagonal."""

    value_RC: Floats
    row_ids: Sequence[Hashable]
    col_ids: Sequence[Hashable]
    crossed: bool = True


@dataclass(frozen=True)
class Test:
    """Mean difference with its interval; `reason` says why the rest is missing."""

    __test__ = False  # not a test case for pytest

    difference: float | None
    low: float | None
    high: float | None
    t: float | None
    df: int | None
    p: float | None
    p_better: float | None
    cells: int
    reason: str | None


def clustered_test(parts: Sequence[Differences], level: float, min_domains: int) -> Test:
    """Two-way clustered t over the splits in `parts`; a domain is one cluster, however many splits it appears in.

    The difference is the mean over splits of the mean over cells.
    t = mean(D) / sqrt(V_row + V_col), df = min(R, C) - 1; one complete split gives V_row = var(row means) / R.
    """
    cells = int(sum((~np.isnan(part.value_RC)).sum() for part in parts))
    if not parts or any(np.isnan(part.value_RC).all() for part in parts):
        return _missing(None, cells, "no cell has a value of both predictors")
    difference = float(np.mean([np.nanmean(part.value_RC) for part in parts]))
    row, column = _cluster_sums(parts, axis=1), _cluster_sums(parts, axis=0)
    used = [row, column] if all(part.crossed for part in parts) else [row]
    clusters = min(len(sums) for sums in used)
    if clusters < min_domains:
        return _missing(difference, cells, f"{clusters} domains on one side; a test needs {min_domains}")
    variance = sum(len(sums) / (len(sums) - 1.0) * float(np.square(list(sums.values())).sum()) for sums in used)
    if variance <= 1e-24 * max(difference * difference, 1e-300):
        return _missing(difference, cells, "the difference is the same in all cells; nothing to test")
    error, df = variance**0.5, clusters - 1
    t, reach = difference / error, t_quantile(0.5 + level / 2.0, df) * error
    p = 2.0 * t_upper(abs(t), df)
    return Test(difference, difference - reach, difference + reach, t, df, p, t_upper(-t, df), cells, None)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over those that exist."""
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    reached = 0.0
    for rank, (value, i) in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * value))
        adjusted[i] = reached
    return adjusted


def _cluster_sums(parts: Sequence[Differences], axis: int) -> dict[Hashable, float]:
    """Each domain's share in the deviation of the mean, summed over its cells and over all splits."""
    sums: dict[Hashable, float] = {}
    for part in parts:
        present = ~np.isnan(part.value_RC)
        scale = present.sum() * len(parts)
        centred = np.where(present, part.value_RC - np.nanmean(part.value_RC), 0.0).sum(axis=axis) / scale
        ids = part.row_ids if axis == 1 else part.col_ids
        for name, value, there in zip(ids, centred, present.any(axis=axis), strict=True):
            if there:
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def _missing(difference: float | None, cells: int, reason: str) -> Test:
    return Test(difference, None, None, None, None, None, None, cells, reason)
