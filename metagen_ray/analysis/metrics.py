"""Weighted metrics over the cells of a quadrant: one code for the point value (weights 1) and all resamples.

A cell (i, j) weighs u_i v_j in resample B, so every moment is two matrix products and no resample is ever built.
Shape suffixes: B resample, R training domain, C eval domain, O coordinate. NaN marks a missing cell, and a resample in
which a metric does not exist.
"""

from collections.abc import Callable

import numpy as np

from metagen_ray.analysis.grid import Bools, Floats

CORRELATIONS = ("pearson", "pearson_column", "pearson_row", "pearson_double")
# A variance below this share of the mean square is rounding: the predictor is constant along the axis.
CONSTANT = 1e-12
FIT_ROUNDS = 500

Product = Callable[[Floats, Floats], Floats]


def mean_over_cells(value_RC: Floats, weight_BR: Floats, weight_BC: Floats) -> Floats:
    """Weighted mean over the cells that have a value, B."""
    present_RC = ~np.isnan(value_RC)
    total_B = _sum(np.where(present_RC, value_RC, 0.0), weight_BR, weight_BC)
    count_B = _sum(present_RC.astype(float), weight_BR, weight_BC)
    return np.divide(total_B, count_B, out=np.full(total_B.shape, np.nan), where=count_B > 0)


def correlations(
    score_RCO: Floats, truth_RCO: Floats, weight_BR: Floats, weight_BC: Floats
) -> dict[str, Floats]:
    """Pearson over (cell, coordinate) pairs: plain, and after each column's, row's or both means are removed, B each.

    Means are taken per coordinate. With missing cells the double-centred form removes the weighted least-squares fit
    of row + column, so an additive predictor is constant there whatever is missing.
    """
    on_RC = ~np.isnan(score_RCO[..., 0]) & ~np.isnan(truth_RCO[..., 0])
    p_RCO, s_RCO = (np.where(on_RC[..., None], x, 0.0) for x in (score_RCO, truth_RCO))
    return {
        "pearson": _correlate(_plain(on_RC, weight_BR, weight_BC), p_RCO, s_RCO),
        "pearson_column": _correlate(_by_column(on_RC, weight_BR, weight_BC), p_RCO, s_RCO),
        "pearson_row": _correlate(_by_row(on_RC, weight_BR, weight_BC), p_RCO, s_RCO),
        "pearson_double": _correlate(_by_both(on_RC, weight_BR, weight_BC), p_RCO, s_RCO),
    }


def _correlate(product: Product, p_RCO: Floats, s_RCO: Floats) -> Floats:
    cross_B, own_p_B, own_s_B = product(p_RCO, s_RCO), product(p_RCO, p_RCO), product(s_RCO, s_RCO)
    varied_B = (own_p_B > CONSTANT * np.square(p_RCO).sum()) & (own_s_B > CONSTANT * np.square(s_RCO).sum())
    scale_B = np.sqrt(np.where(varied_B, own_p_B * own_s_B, 1.0))
    return np.where(varied_B, np.clip(cross_B / scale_B, -1.0, 1.0), np.nan)


def _sum(value_RC: Floats, weight_BR: Floats, weight_BC: Floats) -> Floats:
    return ((weight_BR @ value_RC) * weight_BC).sum(axis=1)


def _plain(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Product:
    cells_B = _sum(on_RC.astype(float), weight_BR, weight_BC)

    def product(x_RCO: Floats, y_RCO: Floats) -> Floats:
        # Centring before the sums keeps digits: propensities near 100 with small spread lose none.
        pairs = max(on_RC.sum() * x_RCO.shape[2], 1)
        x_RCO = np.where(on_RC[..., None], x_RCO - x_RCO.sum() / pairs, 0.0)
        y_RCO = np.where(on_RC[..., None], y_RCO - y_RCO.sum() / pairs, 0.0)
        x_B, y_B = (_sum(z.sum(axis=2), weight_BR, weight_BC) for z in (x_RCO, y_RCO))
        return _sum((x_RCO * y_RCO).sum(axis=2), weight_BR, weight_BC) - _share(
            x_B * y_B, cells_B * x_RCO.shape[2]
        )

    return product


def _by_column(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Product:
    count_BC = weight_BR @ on_RC

    def product(x_RCO: Floats, y_RCO: Floats) -> Floats:
        x_RCO, y_RCO = (_centred(z, on_RC, 0) for z in (x_RCO, y_RCO))
        within_BC = weight_BR @ (x_RCO * y_RCO).sum(axis=2)
        for o in range(x_RCO.shape[2]):
            within_BC -= _share((weight_BR @ x_RCO[..., o]) * (weight_BR @ y_RCO[..., o]), count_BC)
        return (within_BC * weight_BC).sum(axis=1)

    return product


def _by_row(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Product:
    by_column = _by_column(on_RC.T, weight_BC, weight_BR)
    return lambda x_RCO, y_RCO: by_column(np.swapaxes(x_RCO, 0, 1), np.swapaxes(y_RCO, 0, 1))


def _by_both(on_RC: Bools, weight_BR: Floats, weight_BC: Floats) -> Product:
    def product(x_RCO: Floats, y_RCO: Floats) -> Floats:
        total_B = np.zeros(len(weight_BR))
        for o in range(x_RCO.shape[2]):
            x_RC, y_RC = (_residual(z[..., o], on_RC) for z in (x_RCO, y_RCO))
            row_BR, column_BC = _two_way_fit(x_RC, on_RC, weight_BR, weight_BC)
            total_B += _sum(x_RC * y_RC, weight_BR, weight_BC)
            total_B -= (weight_BR * row_BR * (weight_BC @ y_RC.T)).sum(axis=1)
            total_B -= (weight_BC * column_BC * (weight_BR @ y_RC)).sum(axis=1)
        return total_B

    return product


def _residual(x_RC: Floats, on_RC: Bools) -> Floats:
    """What no sum of a row and a column explains; weighted fits of it start near 0 and keep their digits."""
    row_BR, column_BC = _two_way_fit(x_RC, on_RC, np.ones((1, on_RC.shape[0])), np.ones((1, on_RC.shape[1])))
    return np.where(on_RC, x_RC - row_BR[0][:, None] - column_BC[0][None, :], 0.0)


def _two_way_fit(
    x_RC: Floats, on_RC: Bools, weight_BR: Floats, weight_BC: Floats
) -> tuple[Floats, Floats]:
    """Weighted least-squares row and column effects by alternating projection; exact in one round if no cell is missing."""
    on = on_RC.astype(float)
    row_total_BR, column_total_BC = weight_BC @ x_RC.T, weight_BR @ x_RC
    row_count_BR, column_count_BC = weight_BC @ on.T, weight_BR @ on
    column_BC = np.zeros(column_total_BC.shape)
    # Resamples feed percentiles: there six digits are plenty and spare half of the rounds.
    tolerance = (1e-13 if len(weight_BR) == 1 else 1e-6) * (np.abs(x_RC).max(initial=0.0) + 1e-300)
    for _ in range(FIT_ROUNDS):
        row_BR = _share(row_total_BR - (weight_BC * column_BC) @ on.T, row_count_BR)
        before_BC = column_BC
        column_BC = _share(column_total_BC - (weight_BR * row_BR) @ on, column_count_BC)
        if np.abs(column_BC - before_BC).max(initial=0.0) <= tolerance:
            break
    return row_BR, column_BC


def _centred(x_RCO: Floats, on_RC: Bools, axis: int) -> Floats:
    on = on_RC[..., None]
    return np.where(on, x_RCO - _share(x_RCO.sum(axis=axis, keepdims=True), on.sum(axis=axis, keepdims=True)), 0.0)


def _share(total: Floats, count: Floats) -> Floats:
    return np.divide(total, count, out=np.zeros(np.broadcast_shapes(total.shape, np.shape(count))), where=count > 0)
