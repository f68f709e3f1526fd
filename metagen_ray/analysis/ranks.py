"""Spearman's correlation and Wasserstein-1 under cell weights: metrics that need order, not moments.

Shape suffixes: B resample, N (cell, coordinate) pair or cell. Weights are counts u_i v_j kept as int32: their running
sums are exact and eight times faster than in floats. Resamples (B > 1) feed percentiles and are finished in float32.
"""

import numpy as np
from numpy.typing import NDArray

from metagen_ray.analysis.grid import Floats

CHUNK = 32  # resamples at a time: the weights of 2,500 cells then stay in the cache

Counts = NDArray[np.int32]
Reals = NDArray[np.float32] | NDArray[np.float64]


def cell_weights(row_N: NDArray[np.intp], column_N: NDArray[np.intp], weight_BR: Floats, weight_BC: Floats) -> Counts:
    """u_i v_j of the cells (row, column), BN."""
    return np.take(weight_BR.astype(np.int32), row_N, axis=1) * np.take(weight_BC.astype(np.int32), column_N, axis=1)


class Ranks:
    """Midranks of fixed values under changing weights."""

    def __init__(self, values_N: Floats) -> None:
        self._order_N = np.argsort(values_N, kind="stable")
        ordered_N = values_N[self._order_N]
        self._below_N = np.searchsorted(ordered_N, values_N, "left")
        self._upto_N = np.searchsorted(ordered_N, values_N, "right")

    def centred(self, weight_BN: Counts) -> Reals:
        """Weighted midranks, scaled to a total weight of 1 and with the weighted mean removed, BN."""
        cumulated = np.zeros((len(weight_BN), weight_BN.shape[1] + 1), np.int32)
        np.cumsum(np.take(weight_BN, self._order_N, axis=1), axis=1, out=cumulated[:, 1:])
        doubled_BN = np.take(cumulated, self._below_N, axis=1) + np.take(cumulated, self._upto_N, axis=1)
        # The weighted mean of midranks is half the total weight, whatever the values.
        scale_B1 = (0.5 / np.maximum(cumulated[:, -1:], 1)).astype(_precision(weight_BN))
        return doubled_BN * scale_B1 - scale_B1.dtype.type(0.5)


def spearman(score_N: Ranks, truth_rank_BN: Reals, weight_BN: Counts) -> Floats:
    """Pearson of the weighted midranks, B; NaN where one side has a single value."""
    rank_BN = score_N.centred(weight_BN)
    weighted_BN = weight_BN.astype(rank_BN.dtype) * rank_BN
    cross_B = _dot(weighted_BN, truth_rank_BN)
    own_B = _dot(weighted_BN, rank_BN)
    truth_B = _dot(weight_BN.astype(rank_BN.dtype) * truth_rank_BN, truth_rank_BN)
    total_B = np.maximum(weight_BN.sum(axis=1), 1)
    varied_B = (own_B > 1e-9 * total_B) & (truth_B > 1e-9 * total_B)
    scale_B = np.sqrt(np.where(varied_B, own_B * truth_B, 1.0))
    return np.where(varied_B, np.clip(cross_B / scale_B, -1.0, 1.0), np.nan)


class Distance:
    """Wasserstein-1 between two fixed sets of values under shared cell weights."""

    def __init__(self, score_N: Floats, truth_N: Floats) -> None:
        both = np.concatenate([score_N, truth_N])
        order = np.argsort(both, kind="stable")
        self._cell = (order % len(score_N))[:-1]
        self._sign = np.where(order < len(score_N), 1, -1).astype(np.int32)[:-1]
        self._gap = np.diff(both[order])

    def weighted(self, weight_BN: Counts) -> Floats:
        """Area between the two weighted distribution functions, B; NaN without weight."""
        difference = np.take(weight_BN, self._cell, axis=1) * self._sign
        np.cumsum(difference, axis=1, out=difference)
        precision = _precision(weight_BN)
        area_B = np.abs(difference, out=difference).astype(precision) @ self._gap.astype(precision)
        total_B = weight_BN.sum(axis=1)
        return np.divide(area_B, total_B, out=np.full(len(total_B), np.nan), where=total_B > 0, casting="unsafe")


def _precision(weight_BN: Counts) -> type[np.float32] | type[np.float64]:
    return np.float32 if len(weight_BN) > 1 else np.float64


def _dot(x_BN: Reals, y_BN: Reals) -> Floats:
    return np.einsum("bn,bn->b", x_BN, y_BN).astype(float)
