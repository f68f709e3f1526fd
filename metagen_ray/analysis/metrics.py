"""Weighted metrics over the cells of a quadrant: one code for the point value (weights 1) and all resamples.

A cell (i, j) weighs u_i v_j in resample B, so every moment is two matrix products and no resample is ever built.
Shape suffixes: B resample, R training domain, C eval domain, O coordinate, K component that centring removes.
NaN marks a missing cell, and a resample in which a metric does not exist.
"""

from collections.abc import Callable

import numpy as np

from metagen_ray.analysis.grid import Bools, Floats

CORRELATIONS = ("pearson", "pearson_column", "pearson_row", "pearson_double")
# A variance below this share of the mean square is rounding: the predictor is constant along the axis.
CONSTANT = 1e-10
# Lifts the directions that a row and a column effect share; far below CONSTANT, far above rounding.
RIDGE = 1e-12

# Maps values to the components that centring removes, whitened: their inner product is the explained co-moment.
Components = Callable[[Floats], Floats]


def mean_over_cells(value_RC: Floats, weight_BR: Floats, weight_BC: Floats) -> Floats:
    """Weighted mean over the cells that have a value, B."""
    present_RC = ~np.isnan(value_RC)
    total_B = _sum(np.where(present_RC, value_RC, 0.0), weight_BR, weight_BC)
    count_B = _sum(present_RC.astype(float), weight_BR, weight_BC)
    return np.divide(total_B, count_B, out=np.full(total_B.shape, np.nan), where=count_B > 0)


class Correlator:
    """Pearson of predictions with one truth over fixed cells, plain and centred.

    Points are (cell, coordinate) pairs; means of columns, rows or both are taken per coordinate. The double-centred
    form removes the weighted least-squares fit of row + column, so an additive predictor is constant there whatever
    cells are missing. What predictions share (weights, the truth's moments) is computed once.
    """

    def __init__(self, on_RC: Bools, truth_RCO: Floats, weight_BR: Floats, weight_BC: Floats) -> None:
        self._on_RC = on_RC
        self._weights = weight_BR, weight_BC
        self._components: dict[str, Components] = {
            "pearson": _plain(on_RC, weight_BR, weight_BC),
            "pearson_column": _column(on_RC, weight_BR, weight_BC),
            "pearson_row": _row(on_RC, weight_BR, weight_BC),
            "pearson_double": _double(on_RC, weight_BR, weight_BC),
        }
        self._truth_RCO = self._centred(truth_RCO)
        self._truth_BK = {name: removed(self._truth_RCO) for name, removed in self._components.items()}
        self._truth_total_B = self._moment(self._truth_RCO, self._truth_RCO)
        self._truth_scale = float(np.square(truth_RCO[on_RC]).sum())

    def __call__(self, score_RCO: Floats) -> dict[str, Floats]:
        """All four correlations, B each; NaN where the prediction or the truth is constant."""
        p_RCO = self._centred(score_RCO)
        scale = float(np.square(score_RCO[self._on_RC]).sum())
        total_B, cross_B = self._moment(p_RCO, p_RCO), self._moment(p_RCO, self._truth_RCO)
        found = {}
        for name, removed in self._components.items():
            p_BK, s_BK = removed(p_RCO), self._truth_BK[name]
            own_p_B, own_s_B = total_B - _inner(p_BK, p_BK), self._truth_total_B - _inner(s_BK, s_BK)
            varied_B = (own_p_B > CONSTANT * scale) & (own_s_B > CONSTANT * self._truth_scale)
            root_B = np.sqrt(np.where(varied_B, own_p_B * own_s_B, 1.0))
            value_B = np.clip((cross_B - _inner(p_BK, s_BK)) / root_B, -1.0, 1.0)
            found[name] = np.where(varied_B, value_B, np.nan)
        return found

    def _centred(self, x_RCO: Floats) -> Floats:
        """Without the grand mean of the cells: no metric needs it, and sums of squares keep their digits."""
        mean = x_RCO[self._on_RC].mean() if self._on_RC.any() else 0.0
        return np.where(self._on_RC[..., None], x_RCO - mean, 0.0)

    def _moment(self, x_RCO: Floats, y_RCO: Floats) -> Floats:
        return _sum((x_RCO * y_RCO).sum(axis=2), *self._weights)


def _plain(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Components:
    count_B = _sum(on_RC.astype(float), weight_BR, weight_BC)

    def removed(x_RCO: Floats) -> Floats:
        total_B = _sum(x_RCO.sum(axis=2), weight_BR, weight_BC)
        return (total_B * _inverse_root(count_B * x_RCO.shape[2]))[:, None]

    return removed


def _column(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Components:
    scale_BC = np.sqrt(weight_BC) * _inverse_root(weight_BR @ on_RC)

    def removed(x_RCO: Floats) -> Floats:
        return np.hstack([(weight_BR @ x_RCO[..., o]) * scale_BC for o in range(x_RCO.shape[2])])

    return removed


def _row(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Components:
    by_column = _column(on_RC.T, weight_BC, weight_BR)
    return lambda x_RCO: by_column(np.swapaxes(x_RCO, 0, 1))


def _double(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Components:
    """Row components, then column components with the rows' share taken out (the Schur complement, whitened)."""
    if on_RC.shape[1] > on_RC.shape[0]:
        by_other = _double(on_RC.T, weight_BC, weight_BR)
        return lambda x_RCO: by_other(np.swapaxes(x_RCO, 0, 1))
    on = on_RC.astype(float)
    inverse_BR = _inverse_root(weight_BC @ on.T)
    row_scale_BR = np.sqrt(weight_BR) * inverse_BR
    whiten_BCC = _schur_root(on, row_scale_BR, weight_BR, weight_BC)

    def removed(x_RCO: Floats) -> Floats:
        parts = []
        for o in range(x_RCO.shape[2]):
            row_BR = (weight_BC @ x_RCO[..., o].T) * row_scale_BR
            shared_BC = (np.sqrt(weight_BR) * row_BR * inverse_BR) @ on
            column_BC = weight_BC * (weight_BR @ x_RCO[..., o] - shared_BC)
            parts += [row_BR, np.matmul(whiten_BCC, column_BC[..., None])[..., 0]]
        return np.hstack(parts)

    return removed


def _schur_root(on_RC: Floats, row_scale_BR: Floats, weight_BR: Floats, weight_BC: Floats) -> Floats:
    """Inverse Cholesky factor of diag(column weights) - N' diag(1 / row weights) N, N the weights of the cells, BCC."""
    found = []
    for row_scale_R, weight_R, weight_C in zip(row_scale_BR, weight_BR, weight_BC, strict=True):
        mixed_RC = on_RC * row_scale_R[:, None] * weight_C
        schur_CC = -mixed_RC.T @ mixed_RC
        diagonal_C = weight_C * (weight_R @ on_RC)
        schur_CC[np.diag_indices(len(weight_C))] += diagonal_C + RIDGE * max(diagonal_C.max(initial=0.0), 1.0)
        found.append(schur_CC)
    return np.asarray(np.linalg.inv(np.linalg.cholesky(np.stack(found))), float)


def _sum(value_RC: Floats, weight_BR: Floats, weight_BC: Floats) -> Floats:
    return ((weight_BR @ value_RC) * weight_BC).sum(axis=1)


def _inner(x_BK: Floats, y_BK: Floats) -> Floats:
    return np.einsum("bk,bk->b", x_BK, y_BK)


def _inverse_root(count: Floats) -> Floats:
    return np.where(count > 0, 1.0 / np.sqrt(np.where(count > 0, count, 1.0)), 0.0)
