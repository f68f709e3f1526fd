"""Predictors made of the truth itself: they know only the question, only the training, or both without their interplay.

Pools are the cells of one column (or row) in one quadrant; `known` pools run over meta-train alone.
Shape suffixes: R training domain and C eval domain of a quadrant, T and E of the grid, O coordinate; NaN = no cell.
"""

import numpy as np

from metagen_ray.analysis.fields import spread
from metagen_ray.analysis.grid import Bools, Floats

# Axis of a pool: along it, the cells of a column (fixed eval domain) or of a row (fixed training domain).
COLUMN, ROW = 0, 1


def left_out_mean(truth_RCO: Floats, axis: int) -> Floats:
    """`loo`: mean of the pool without the cell itself; NaN in a pool of one cell."""
    filled, count = _filled(truth_RCO)
    total = filled.sum(axis=axis, keepdims=True) - filled
    others = count.sum(axis=axis, keepdims=True) - count
    return _ratio(total, others, truth_RCO)


def left_out_additive(truth_RCO: Floats) -> Floats:
    """Row mean + column mean - grand mean, the cell itself left out of all three."""
    filled, count = _filled(truth_RCO)
    total = filled.sum(axis=(0, 1), keepdims=True) - filled
    others = count.sum(axis=(0, 1), keepdims=True) - count
    grand = _ratio(total, others, truth_RCO)
    return left_out_mean(truth_RCO, ROW) + left_out_mean(truth_RCO, COLUMN) - grand


def dealt_error(truth_RCO: Floats, axis: int) -> Floats:
    """`dealt`: squared error of each cell, averaged over all permutations of its pool, RC."""
    filled, count = _filled(truth_RCO)
    total = count.sum(axis=axis, keepdims=True)
    mean = filled.sum(axis=axis, keepdims=True) / np.maximum(total, 1)
    square = np.square(truth_RCO - mean)
    mean_square = np.where(count, square, 0.0).sum(axis=axis, keepdims=True) / np.maximum(total, 1)
    return spread(np.where(total > 1, square + mean_square, np.nan))


def other_error(truth_RCO: Floats, axis: int) -> Floats:
    """`one`: squared error of each cell, averaged over all other cells of its pool, RC."""
    total = _filled(truth_RCO)[1].sum(axis=axis, keepdims=True)[..., 0]
    # A cell deals itself one time in `total`, with error 0.
    return dealt_error(truth_RCO, axis) * total / np.where(total > 1, total - 1, np.nan)


def deal(truth_RCO: Floats, axis: int, rng: np.random.Generator) -> Floats:
    """The pool's labels, shuffled and dealt to its own cells: one deal."""
    return _permuted(truth_RCO, axis, rng, shift=False)


def deal_others(truth_RCO: Floats, axis: int, rng: np.random.Generator) -> Floats:
    """To each cell the label of another cell of its pool; all others equally likely."""
    return _permuted(truth_RCO, axis, rng, shift=True)


def known_mean(truth_TEO: Floats, pool_TE: Bools, axis: int) -> Floats:
    """`known`: mean over the pool's scored cells in the same column (or row) without the cell itself, TEO."""
    filled, count = _filled(truth_TEO)
    inside = count & pool_TE[..., None]
    own = np.where(inside, filled, 0.0)
    total = own.sum(axis=axis, keepdims=True) - own
    others = inside.sum(axis=axis, keepdims=True) - inside
    return np.divide(total, others, out=np.full(total.shape, np.nan), where=others > 0)


def _permuted(truth_RCO: Floats, axis: int, rng: np.random.Generator, shift: bool) -> Floats:
    lanes = np.moveaxis(truth_RCO, axis, 0)
    dealt = np.full(lanes.shape, np.nan)
    for lane in range(lanes.shape[1]):
        present = np.flatnonzero(~np.isnan(lanes[:, lane, 0]))
        if len(present) < 2:
            continue
        order = rng.permutation(present)
        # A random cycle gives every cell another's label: marginally any of the others.
        source = order[np.arange(-1, len(order) - 1)] if shift else present
        dealt[order, lane] = lanes[source, lane]
    return np.moveaxis(dealt, 0, axis)


def _filled(truth: Floats) -> tuple[Floats, Bools]:
    present = ~np.isnan(truth)
    return np.where(present, truth, 0.0), present


def _ratio(total: Floats, count: Floats, like: Floats) -> Floats:
    valid = (count > 0) & ~np.isnan(like)
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=valid)
