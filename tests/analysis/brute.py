"""The statistics once more with plain loops over lists, as independent of the package as it gets."""

from itertools import combinations, permutations, product
from math import sqrt

import numpy as np
from scipy import stats


def mean(values):
    values = list(values)
    return sum(values) / len(values)


def cell_mean(score_QNO):
    """Mean over questions of the mean over samples, per coordinate; None without a scored answer."""
    questions = []
    for score_NO in score_QNO:
        scored = [answer for answer in score_NO if not any(np.isnan(answer))]
        if scored:
            questions.append([mean(answer[o] for answer in scored) for o in range(len(scored[0]))])
    if not questions:
        return None
    return [mean(question[o] for question in questions) for o in range(len(questions[0]))]


def cells_of(score_TEQNO):
    """{(i, j): propensity per coordinate} of all cells that have one."""
    pairs = product(range(score_TEQNO.shape[0]), range(score_TEQNO.shape[1]))
    found = {(i, j): cell_mean(score_TEQNO[i, j]) for i, j in pairs}
    return {cell: value for cell, value in found.items() if value is not None}


def quadrant_of(grid, i, j):
    if grid.train_ids[i] == grid.eval_ids[j]:
        return "diagonal"
    half = {True: "train", False: "eval"}
    return f"{half[bool(grid.train_meta_T[i])]}-{half[bool(grid.eval_meta_E[j])]}"


def squared(p, s):
    return sum((a - b) ** 2 for a, b in zip(p, s, strict=True)) * (1.0 if len(s) == 1 else 0.5)


def rmse(predicted, truth):
    return sqrt(mean(squared(predicted[c], truth[c]) for c in truth if c in predicted))


def pearson(x, y):
    mx, my = mean(x), mean(y)
    cross = sum((a - mx) * (b - my) for a, b in zip(x, y, strict=True))
    return cross / sqrt(sum((a - mx) ** 2 for a in x) * sum((b - my) ** 2 for b in y))


def centred(values, axis, weight=None):
    """{cell: value} without the weighted mean of each row (axis 0) or column (axis 1) of every coordinate."""
    weight = weight or dict.fromkeys(values, 1)
    removed = {}
    for cell, own in values.items():
        lane = [c for c in values if c[axis] == cell[axis] and weight[c]]
        total = sum(weight[c] for c in lane)
        means = [sum(weight[c] * values[c][o] for c in lane) / total for o in range(len(own))] if total else own
        removed[cell] = [v - m for v, m in zip(own, means, strict=True)]
    return removed


def double_centred(values, weight=None):
    """Residuals of a least-squares fit with one dummy per row and per column, per coordinate."""
    cells = [c for c in values if weight is None or weight[c]]
    rows, columns = sorted({i for i, _ in cells}), sorted({j for _, j in cells})
    design = np.zeros((len(cells), len(rows) + len(columns)))
    for k, (i, j) in enumerate(cells):
        design[k, rows.index(i)] = design[k, len(rows) + columns.index(j)] = 1.0
    root = np.sqrt([1.0 if weight is None else weight[c] for c in cells])[:, None]
    target = np.array([values[c] for c in cells])
    fit = np.linalg.lstsq(design * root, target * root, rcond=None)[0]
    return dict(zip(cells, (target - design @ fit).tolist(), strict=True))


def listed(values, order, weight=None):
    """Values of all coordinates in one list, each cell as often as it weighs."""
    return [v for c in order for v in values[c] for _ in range(1 if weight is None else weight[c])]


def correlations(predicted, truth, weight=None):
    """Every metric of the comparison of two {cell: values}; a cell may count `weight` times."""
    order = sorted(c for c in truth if c in predicted and (weight is None or weight[c]))
    p, s = {c: predicted[c] for c in order}, {c: truth[c] for c in order}
    flat_p, flat_s = listed(p, order, weight), listed(s, order, weight)
    found = {"pearson": pearson(flat_p, flat_s), "spearman": stats.spearmanr(flat_p, flat_s)[0]}
    for name, remove in (
        ("pearson_column", lambda x: centred(x, 1, weight)),
        ("pearson_row", lambda x: centred(x, 0, weight)),
        ("pearson_double", lambda x: double_centred(x, weight)),
    ):
        found[name] = zero_mean_correlation(listed(remove(p), order, weight), listed(remove(s), order, weight))
    coordinates = len(next(iter(truth.values())))
    repeat = [1 if weight is None else weight[c] for c in order]
    found["wasserstein"] = mean(
        stats.wasserstein_distance([p[c][o] for c in order], [s[c][o] for c in order], repeat, repeat)
        for o in range(coordinates)
    )
    return found


def zero_mean_correlation(x, y):
    """Correlation of what centring left; None if nothing was."""
    own_x, own_y = sum(a * a for a in x), sum(b * b for b in y)
    if own_x < 1e-9 or own_y < 1e-9:
        return None
    return sum(a * b for a, b in zip(x, y, strict=True)) / sqrt(own_x * own_y)


def pool(truth, cell, axis):
    """The other cells of the cell's column (axis 1) or row (axis 0)."""
    return [c for c in truth if c != cell and c[axis] == cell[axis]]


def left_out(truth, axis):
    found = {}
    for cell, own in truth.items():
        others = pool(truth, cell, axis)
        if others:
            found[cell] = [mean(truth[c][o] for c in others) for o in range(len(own))]
    return found


def additive(truth):
    row, column = left_out(truth, 0), left_out(truth, 1)
    found = {}
    for cell in truth:
        if cell in row and cell in column:
            rest = [truth[c] for c in truth if c != cell]
            grand = [mean(v[o] for v in rest) for o in range(len(truth[cell]))]
            found[cell] = [r + c - g for r, c, g in zip(row[cell], column[cell], grand, strict=True)]
    return found


def dealt_rmse(truth, axis):
    """Root of the mean squared error over all permutations of all pools; pools are independent of each other."""
    errors = []
    for lane in {c[axis] for c in truth}:
        own = sorted(c for c in truth if c[axis] == lane)
        if len(own) < 2:
            continue
        deals = list(permutations(own))
        for k, cell in enumerate(own):
            errors.append(mean(squared(truth[deal[k]], truth[cell]) for deal in deals))
    return sqrt(mean(errors))


def one_rmse(truth, axis):
    errors = []
    for cell in truth:
        others = pool(truth, cell, axis)
        if others:
            errors.append(mean(squared(truth[c], truth[cell]) for c in others))
    return sqrt(mean(errors))


def variance(values):
    m = mean(values)
    return sum((v - m) ** 2 for v in values) / (len(values) - 1)


def floor_new_questions(grid, cells):
    found = []
    for i, j in cells:
        questions = [cell_mean(score_NO[None]) for score_NO in grid.truth_TEQNO[i, j]]
        questions = [q for q in questions if q is not None]
        if len(questions) > 1:
            spread = sum(variance([q[o] for q in questions]) for o in range(len(questions[0])))
            found.append(2 * spread * (1.0 if len(questions[0]) == 1 else 0.5) / len(questions))
    return sqrt(mean(found))


def floor_same_questions(grid, cells):
    """For complete cells."""
    found = []
    for i, j in cells:
        score_QNO = grid.truth_TEQNO[i, j]
        questions, samples, coordinates = score_QNO.shape
        within = mean(sum(variance(list(q[:, o])) for o in range(coordinates)) for q in score_QNO)
        found.append(2 * within * (1.0 if coordinates == 1 else 0.5) / (questions * samples))
    return sqrt(mean(found))


def split_half(grid, quadrant):
    """Mean over all ways to halve an even number of questions, brought to full length, per metric."""
    questions = grid.truth_TEQNO.shape[2]
    halves = []
    for first in combinations(range(questions), questions // 2):
        second = [q for q in range(questions) if q not in first]
        if 0 in first:
            a, b = (cells_of(grid.truth_TEQNO[:, :, list(half)]) for half in (first, second))
            inside = {c for c in a if c in b and quadrant_of(grid, *c) == quadrant}
            halves.append(correlations({c: a[c] for c in inside}, {c: b[c] for c in inside}))
    means = {name: mean(h[name] for h in halves) for name in halves[0] if name != "wasserstein"}
    return {name: 2 * r / (1 + r) for name, r in means.items()}


def contrast(own, other, truth):
    """(mean difference, t, df, two-sided p) of squared errors over complete rows and columns or with missing cells."""
    differences = {c: squared(own[c], truth[c]) - squared(other[c], truth[c]) for c in truth if c in own and c in other}
    m = mean(differences.values())
    total = 0.0
    sizes = []
    for axis in (0, 1):
        lanes = sorted({c[axis] for c in differences})
        sums = [sum(d - m for c, d in differences.items() if c[axis] == lane) / len(differences) for lane in lanes]
        total += len(lanes) / (len(lanes) - 1) * sum(s * s for s in sums)
        sizes.append(len(lanes))
    t, df = m / sqrt(total), min(sizes) - 1
    return m, t, df, 2 * stats.t.sf(abs(t), df)
