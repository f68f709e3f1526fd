"""Spearman's correlation and Wasserstein-1 under cell weights: metrics that need order, not moments.

Shape suffixes: B resample, N (cell, coordinate) pair or cell. Everything is computed in the precision of the weights:
resamples come in float32, in which sums of counts u_i v_j are exact, the point value in float64.
"""

import numpy as np
from numpy.typing import NDArray

from metagen_ray.analysis.grid import Floats

Weights = NDArray[np.float32] | NDArray[np.float64]

CHUNK = 32  # resamples at a time: the weights of 2,500 cells then stay in the cache


def cell_weights(
    row_N: NDArray[np.intp], column_N: NDArray[np.intp], weight_BR: Floats, weight_BC: Floats
) -> Weights:
    """u_i v_j of the cells (row, column), BN."""
    precision = np.float32 if len(weight_BR) > 1 else np.float64
    return weight_BR.astype(precision)[:, row_N] * weight_BC.astype(precision)[:, column_N]


class Ranks:
    """Midranks of fixed values under changing weights."""

    def __init__(self, values_N: Floats) -> None:
        self._order_N = np.argsort(values_N, kind="stable")
        ordered_N = values_N[self._order_N]
        self._below_N = np.searchsorted(ordered_N, values_N, "left")
        self._upto_N = np.searchsorted(ordered_N, values_N, "right")

    def centred(self, weight_BN: Weights) -> Floats:
        """Weighted midranks, scaled to a total weight of 1 and with the weighted mean removed, BN."""
        cumulated = np.zeros((len(weight_BN), weight_BN.shape[1] + 1), weight_BN.dtype)
        np.cumsum(weight_BN[:, self._order_N], axis=1, out=cumulated[:, 1:])
        total_B1 = np.maximum(cumulated[:, -1:], 1e-30)
        # The weighted mean of midranks is half the total weight, whatever the values.
        return (cumulated[:, self._below_N] + cumulated[:, self._upto_N]) / (2 * total_B1) - weight_BN.dtype.type(0.5)


def spearman(score_N: Ranks, truth_rank_BN: Floats, weight_BN: Weights) -> Floats:
    """Pearson of the weighted midranks, B; NaN where one side has a single value."""
    rank_BN = score_N.centred(weight_BN)
    weighted_BN = weight_BN * rank_BN
    cross_B = _dot(weighted_BN, truth_rank_BN)
    own_B = _dot(weighted_BN, rank_BN)
    truth_B = _dot(weight_BN * truth_rank_BN, truth_rank_BN)
    total_B = np.maximum(weight_BN.sum(axis=1, dtype=float), 1e-30)
    varied_B = (own_B > 1e-9 * total_B) & (truth_B > 1e-9 * total_B)
    scale_B = np.sqrt(np.where(varied_B, own_B * truth_B, 1.0))
    return np.where(varied_B, np.clip(cross_B / scale_B, -1.0, 1.0), np.nan)


class Distance:
    """Wasserstein-1 between two fixed sets of values under shared cell weights."""

    def __init__(self, score_N: Floats, truth_N: Floats) -> None:
        both = np.concatenate([score_N, truth_N])
        order = np.argsort(both, kind="stable")
        self._cell = order % len(score_N)
        self._sign = np.where(order < len(score_N), 1.0, -1.0).astype(np.float32)
        self._gap = np.diff(both[order])

    def weighted(self, weight_BN: Weights) -> Floats:
        """Area between the two weighted distribution functions, B; NaN without weight."""
        difference = np.cumsum(weight_BN[:, self._cell[:-1]] * self._sign[:-1], axis=1)
        total_B = weight_BN.sum(axis=1, dtype=float)
        area_B = np.abs(difference, out=difference).astype(float) @ self._gap
        return np.divide(area_B, total_B, out=np.full(len(total_B), np.nan), where=total_B > 0)


def _dot(x_BN: Floats, y_BN: Floats) -> Floats:
    return np.einsum("bn,bn->b", x_BN, y_BN, dtype=float, casting="unsafe")
