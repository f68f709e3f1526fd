"""Every metric of every predictor on one quadrant, for given weights. Owns metric names and the reasons for `n/a`.

Shape suffixes: B resample (one row of ones for the point value), R, C, O as in `fields`, N (cell, coordinate) pair.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from metagen_ray.analysis import metrics, ranks
from metagen_ray.analysis.entries import GT, GT_SAME, GT_SEED
from metagen_ray.analysis.fields import Entry, Field
from metagen_ray.analysis.floors import lengthened
from metagen_ray.analysis.grid import Bools, Floats
from metagen_ray.analysis.tables import EXPECTATION, SAMPLED

RMSE, SPEARMAN, WASSERSTEIN, MEAN, FLOOR_RATIO = (
    "rmse",
    "spearman",
    "wasserstein",
    "mean_propensity",
    "floor_ratio",
)
ORDERED = (SPEARMAN, WASSERSTEIN)
COMPARED = (*metrics.CORRELATIONS, *ORDERED)
MIN_CORRELATED = 3
FLOORS = (GT, GT_SAME, GT_SEED)


class Key(NamedTuple):
    """Names one number of a quadrant."""

    predictor: str
    form: str
    metric: str


def measure(field: Field, weight_BR: Floats, weight_BC: Floats) -> dict[Key, Floats]:
    """All metrics that come from cells, B values each; NaN where a metric does not exist."""
    found: dict[Key, Floats] = {}
    compared = [entry for entry in field.entries if entry.score_RCO is not None and entry.pairs is None]
    for entry in field.entries:
        found[_key(entry, RMSE)] = rmse(entry, weight_BR, weight_BC)
        if entry.score_RCO is not None and entry.score_RCO.shape[2] == 1:
            shown_RC = np.where(np.isnan(field.truth_RCO), np.nan, entry.score_RCO)[..., 0]
            found[_key(entry, MEAN)] = metrics.mean_over_cells(shown_RC, weight_BR, weight_BC)
    for on_RC, same_cells in _by_cells(compared):
        found.update(_correlate_group(field.truth_RCO, on_RC, same_cells, weight_BR, weight_BC))
        found.update(_ordered_group(field.truth_RCO, on_RC, same_cells, weight_BR, weight_BC))
    found.update(_floor_ratios(found))
    silent = {_key(entry, metric) for entry in field.entries for metric in _unreported(entry)}
    return {key: value_B for key, value_B in found.items() if key not in silent}


def rmse(entry: Entry, weight_BR: Floats, weight_BC: Floats) -> Floats:
    """Root of the weighted mean squared error, B."""
    return np.sqrt(metrics.mean_over_cells(entry.error2_RC, weight_BR, weight_BC))


def measure_point(field: Field, rng: np.random.Generator, deals: int) -> dict[Key, float]:
    """All metrics of the quadrant as it is; for deals and split halves correlations are means over up to `deals`."""
    ones = field.ones()
    found = {key: float(value_B[0]) for key, value_B in measure(field, *ones).items()}
    for entry in field.entries:
        if entry.pairs is not None:
            found.update(_mean_over_pairs(field, entry, entry.pairs(rng, deals)))
    return found


def why_missing(field: Field, entry: Entry, metric: str) -> str:
    """Why this metric has no value."""
    if metric in entry.silent:
        return entry.silent[metric]
    if np.isnan(field.truth_RCO).all():
        return "no cell of this quadrant has a scored truth"
    cells = counted_cells(entry)
    if not cells:
        return entry.absent
    if metric == FLOOR_RATIO:
        return "the floor GT-same has no value here"
    if cells < MIN_CORRELATED:
        return f"{cells} cells; a correlation needs {MIN_CORRELATED}"
    if entry.lengthen is not None or entry.pairs is not None:
        return "too few answers to correlate, or nothing varies along that axis"
    itself = Entry(entry.predictor, entry.form, entry.error2_RC, field.truth_RCO)
    own = _correlate_group(field.truth_RCO, ~np.isnan(entry.error2_RC), [itself], *field.ones())
    truth_varies = metric not in metrics.CORRELATIONS or not np.isnan(own[_key(entry, metric)][0])
    constant = "the predictor" if truth_varies else "the truth"
    return f"{constant} is constant along that axis"


def counted_cells(entry: Entry) -> int:
    """Cells with a squared error."""
    return int((~np.isnan(entry.error2_RC)).sum())


def clusters(entry: Entry, crossed: bool) -> int:
    """Domains on the shorter side of the cells an entry has; on the diagonal there is one side."""
    present_RC = ~np.isnan(entry.error2_RC)
    rows, columns = present_RC.any(axis=1).sum(), present_RC.any(axis=0).sum()
    return int(min(rows, columns) if crossed else rows)


def metrics_of(entry: Entry) -> Iterable[str]:
    """The metrics reported for an entry, with or without a value, in the order of the report."""
    yield RMSE
    if entry.score_RCO is not None or entry.pairs is not None or (entry.silent and entry.form == SAMPLED):
        yield from COMPARED
    if entry.score_RCO is not None and entry.score_RCO.shape[2] == 1:
        yield MEAN
    if entry.form == SAMPLED and entry.predictor not in FLOORS:
        yield FLOOR_RATIO


def metric_name(form: str, metric: str, prefix: str = "") -> str:
    """The metric's name in the tables; the mean of the rate is the emergent-misalignment rate itself."""
    if prefix and metric == MEAN:
        return "past_threshold_rate" + ("_expectation" if form == EXPECTATION else "")
    return prefix + metric + ("_expectation" if form == EXPECTATION else "")


def _key(entry: Entry, metric: str) -> Key:
    return Key(entry.predictor, entry.form, metric)


def _unreported(entry: Entry) -> Iterable[str]:
    few = (*metrics.CORRELATIONS, SPEARMAN) if counted_cells(entry) < MIN_CORRELATED else ()
    return (*entry.silent, *few)


def _floor_ratios(found: dict[Key, Floats]) -> dict[Key, Floats]:
    """RMSE over the larger of GT-same and GT-seed, for predictors as sampled."""
    same_B = found[Key(GT_SAME, SAMPLED, RMSE)]
    floor_B = np.fmax(same_B, found.get(Key(GT_SEED, SAMPLED, RMSE), same_B))
    floor_B = np.where((floor_B > 0) & ~np.isnan(same_B), floor_B, np.nan)
    return {
        Key(key.predictor, key.form, FLOOR_RATIO): value_B / floor_B
        for key, value_B in found.items()
        if key.metric == RMSE and key.form == SAMPLED and key.predictor not in FLOORS
    }


def _by_cells(entries: Sequence[Entry]) -> list[tuple[Bools, list[Entry]]]:
    """Entries with the same cells together: they share the weights and all that is computed of the truth."""
    groups: dict[bytes, list[Entry]] = defaultdict(list)
    for entry in entries:
        groups[(~np.isnan(entry.error2_RC)).tobytes()].append(entry)
    masked = [(~np.isnan(same[0].error2_RC), same) for same in groups.values()]
    return [(on_RC, same) for on_RC, same in masked if on_RC.any()]


def _correlate_group(
    truth_RCO: Floats, on_RC: Bools, entries: Sequence[Entry], weight_BR: Floats, weight_BC: Floats
) -> dict[Key, Floats]:
    correlate = metrics.Correlator(on_RC, truth_RCO, weight_BR, weight_BC)
    scored = [(entry, entry.score_RCO) for entry in entries if entry.score_RCO is not None]
    return {_key(entry, name): value_B for entry, score in scored for name, value_B in correlate(score).items()}


def _ordered_group(
    truth_RCO: Floats, on_RC: Bools, entries: Sequence[Entry], weight_BR: Floats, weight_BC: Floats
) -> dict[Key, Floats]:
    row_N, column_N = np.nonzero(on_RC)
    coordinates, resamples = truth_RCO.shape[2], len(weight_BR)
    scores = [entry.score_RCO[on_RC] for entry in entries if entry.score_RCO is not None]
    truth_NO = truth_RCO[on_RC]
    truth_ranks = ranks.Ranks(truth_NO.ravel())
    score_ranks = [ranks.Ranks(score_NO.ravel()) for score_NO in scores]
    distances = [[ranks.Distance(s[:, o], truth_NO[:, o]) for o in range(coordinates)] for s in scores]
    found = {_key(entry, metric): np.full(resamples, np.nan) for entry in entries for metric in ORDERED}
    for start in range(0, resamples, ranks.CHUNK):
        chunk = slice(start, start + ranks.CHUNK)
        weight_BN = ranks.cell_weights(row_N, column_N, weight_BR[chunk], weight_BC[chunk])
        pair_BN = np.repeat(weight_BN, coordinates, axis=1) if coordinates > 1 else weight_BN
        truth_BN = truth_ranks.centred(pair_BN)
        for entry, own, by_coordinate in zip(entries, score_ranks, distances, strict=True):
            found[_key(entry, SPEARMAN)][chunk] = ranks.spearman(own, truth_BN, pair_BN)
            found[_key(entry, WASSERSTEIN)][chunk] = np.mean([d.weighted(weight_BN) for d in by_coordinate], axis=0)
    return found


def _mean_over_pairs(field: Field, entry: Entry, pairs: Iterable[tuple[Floats, Floats]]) -> dict[Key, float]:
    values: dict[str, list[float]] = defaultdict(list)
    for truth_RCO, shown in _by_truth(pairs):
        for on_RC, same_cells in _by_cells(shown):
            for group in (_correlate_group, _ordered_group):
                for key, value_B in group(truth_RCO, on_RC, same_cells, *field.ones()).items():
                    values[key.metric].append(float(value_B[0]))
    wanted = {name: v for name, v in values.items() if name not in _unreported(entry)}
    return {_key(entry, name): _over_pairs(name, v, entry.lengthen) for name, v in wanted.items()}


def _by_truth(pairs: Iterable[tuple[Floats, Floats]]) -> Iterable[tuple[Floats, list[Entry]]]:
    """Pairs as predictions by number, those of one truth together: all deals of labels are compared with the same."""
    whole = list(pairs)  # alive as long as their identities are compared
    groups: dict[int, tuple[Floats, list[Entry]]] = {}
    for number, (score_RCO, truth_RCO) in enumerate(whole):
        both_RC = np.where(np.isnan(score_RCO + truth_RCO).any(axis=2), np.nan, 0.0)
        _, shown = groups.setdefault(id(truth_RCO), (truth_RCO, []))
        shown.append(Entry(str(number), SAMPLED, both_RC, score_RCO))
    return groups.values()


def _over_pairs(metric: str, values: Sequence[float], lengthen: float | None) -> float:
    mean = float(np.mean(values))
    if lengthen is None or np.isnan(mean) or metric == WASSERSTEIN:
        return mean
    full = lengthened(mean, lengthen)
    return np.nan if full is None else full
