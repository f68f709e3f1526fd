"""Is one predictor better than another? Owns the two-way clustered t, Holm's correction and the claim test.

A difference D of squared errors has effects of the training and of the eval domain, so its cells are no independent
draws: the variance of its mean is summed over both kinds of cluster, V_row + V_col. The noise of single cells is in
both terms; it stays there twice, which costs a little power and keeps the level without row or column effects.
Shape suffixes: R training domain, C eval domain. NaN is a missing cell.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metagen_ray.analysis.entries import GT, GT_SAME, GT_SEED
from metagen_ray.analysis.fields import Field
from metagen_ray.analysis.grid import Bools, Floats
from metagen_ray.analysis.student import t_quantile, t_upper
from metagen_ray.analysis.tables import EVALUATION, FORMS, ClaimRow, ContrastRow


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
    p_joint: float | None
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
    joint = 2.0 * t_upper(abs(difference) / (variance + _covariance(row, column)) ** 0.5, df)
    return Test(difference, difference - reach, difference + reach, t, df, p, t_upper(-t, df), joint, cells, None)


def holm(p: Sequence[float | None]) -> list[float | None]:
    """Holm's step-down adjustment over those that exist."""
    order = sorted((value, i) for i, value in enumerate(p) if value is not None)
    adjusted: list[float | None] = [None] * len(p)
    reached = 0.0
    for rank, (value, i) in enumerate(order):
        reached = max(reached, min(1.0, (len(order) - rank) * value))
        adjusted[i] = reached
    return adjusted


def contrast_rows(splits: Sequence[Sequence[Field]], subject: str, level: float, min_domains: int) -> list[ContrastRow]:
    """The subject against every other predictor that all splits have, in each evaluation quadrant and form.

    Floors are no rivals and get no row; Holm's family is all rows of one form.
    """
    rows: list[ContrastRow] = []
    for form in FORMS:
        own = []
        for quadrant in EVALUATION:
            fields = [f for split in splits for f in split if f.region.quadrant == quadrant]
            own += [_contrast(fields, subject, rival, form, level, min_domains) for rival in _rivals(fields, subject)]
        adjusted = holm([row.p for row in own])
        rows += [replace(row, p_holm=p) for row, p in zip(own, adjusted, strict=True)]
    return rows


def claims(
    rows: Sequence[ContrastRow], subject: str, rivals: Sequence[tuple[str, ...]], alpha: float = 0.05
) -> list[ClaimRow]:
    """Claims of beating all of a set of rivals everywhere, once per set and form.

    One holds if all its one-sided tests reject at `alpha`.
    """
    by_form = {form: [row for row in rows if row.form == form] for form in FORMS}
    return [_claim(by_form[form], subject, against, form, alpha) for against in rivals for form in FORMS]


def _claim(rows: Sequence[ContrastRow], subject: str, against: tuple[str, ...], form: str, alpha: float) -> ClaimRow:
    place = (subject, against, EVALUATION, form)
    by_pair = {(row.against, row.quadrant): row for row in rows}
    tests = {(rival, quadrant): by_pair.get((rival, quadrant)) for rival in against for quadrant in EVALUATION}
    for (rival, quadrant), row in tests.items():
        if row is None or row.p_better is None:
            why = "no such predictor" if row is None else row.reason
            return ClaimRow(*place, None, None, None, f"no test against {rival} in {quadrant}: {why}")
    p, rival, quadrant = max((row.p_better or 0.0, *pair) for pair, row in tests.items() if row is not None)
    return ClaimRow(*place, p, p < alpha, f"{rival} in {quadrant}", None)


def _rivals(fields: Sequence[Field], subject: str) -> list[str]:
    """Predictors of all splits but the subject and the floors; none where a split lacks the subject."""
    if not fields or any(field.find(subject, "") is None for field in fields):
        return []
    names = list(dict.fromkeys(entry.predictor for entry in fields[0].entries))
    shared = [name for name in names if all(field.find(name, "") for field in fields)]
    return [name for name in shared if name not in (subject, GT, GT_SAME, GT_SEED)]


def _contrast(
    fields: Sequence[Field], subject: str, rival: str, form: str, level: float, min_domains: int
) -> ContrastRow:
    parts = [_differences(field, subject, rival, form) for field in fields]
    test = clustered_test(parts, level, min_domains)
    means = [float(np.nanmean(part.value_RC)) for part in parts if not np.isnan(part.value_RC).all()]
    complete = len(means) == len(parts)
    return ContrastRow(
        subject, rival, fields[0].region.quadrant, form, test.difference, test.low, test.high, test.t, test.df, test.p,
        None, test.p_better, test.p_joint, test.cells, len(parts),
        sum(mean < 0 for mean in means) if complete else None,
        float(np.std(means, ddof=1)) if complete and len(means) > 1 else None, test.reason,
    )  # fmt: skip


def _differences(field: Field, subject: str, rival: str, form: str) -> Differences:
    own, other = field.find(subject, form), field.find(rival, form)
    assert own is not None and other is not None
    return Differences(own.error2_RC - other.error2_RC, field.row_ids, field.col_ids, field.region.crossed)


def _cluster_sums(parts: Sequence[Differences], axis: int) -> dict[Hashable, float]:
    """Each domain's share in the deviation of the mean, summed over its cells and over all splits."""
    sums: dict[Hashable, float] = {}
    for part in parts:
        present: Bools = ~np.isnan(part.value_RC)
        scale = present.sum() * len(parts)
        centred = np.where(present, part.value_RC - np.nanmean(part.value_RC), 0.0).sum(axis=axis) / scale
        ids = part.row_ids if axis == 1 else part.col_ids
        for name, value, there in zip(ids, centred, np.any(present, axis=axis), strict=True):
            if there:
                sums[name] = sums.get(name, 0.0) + float(value)
    return sums


def _covariance(row: dict[Hashable, float], column: dict[Hashable, float]) -> float:
    """What a domain's two roles add to the variance when they go wrong together; never below 0."""
    both = row.keys() & column.keys()
    if len(both) < 2:
        return 0.0
    return max(0.0, 2.0 * len(both) / (len(both) - 1.0) * sum(row[name] * column[name] for name in both))


def _missing(difference: float | None, cells: int, reason: str) -> Test:
    return Test(difference, None, None, None, None, None, None, None, cells, reason)
