"""All predictors on all quadrants: floors, baselines of the truth and the predictions given. Owns their names.

Shape suffixes as in `grid` and `fields`.
"""

from collections.abc import Callable, Iterator, Mapping
from functools import partial

import numpy as np

from metagen_ray.analysis import baselines, floors
from metagen_ray.analysis.fields import Entry, Field, Region, regions, same_domain, squared_error
from metagen_ray.analysis.grid import Bools, Floats, Grid, Prediction, propensity, question_means
from metagen_ray.analysis.tables import EXPECTATION, SAMPLED

GT, GT_SAME, GT_SEED = "GT", "GT-same", "GT-seed"
EVAL_ONLY, TRAIN_ONLY, ADDITIVE = "GT-EvalOnly", "GT-TrainOnly", "GT-Additive"
DERIVED = frozenset(
    [GT, GT_SAME, ADDITIVE] + [f"{b}/{f}" for b in (EVAL_ONLY, TRAIN_ONLY) for f in ("dealt", "loo", "one", "known")]
)

_NO_COLUMN = "knows only the eval domain: nothing is left of it when columns are centred"
_NO_ROW = "knows only the training domain: nothing is left of it when rows are centred"
_NO_BOTH = "is a row plus a column: nothing is left of it when both are centred"
_SILENT = {
    EVAL_ONLY: {"pearson_column": _NO_COLUMN, "pearson_double": _NO_COLUMN},
    TRAIN_ONLY: {"pearson_row": _NO_ROW, "pearson_double": _NO_ROW},
    ADDITIVE: {"pearson_double": _NO_BOTH},
}
_FLOOR_SILENT = {"wasserstein": "a floor has no distribution of its own"}
_AXIS = {EVAL_ONLY: baselines.COLUMN, TRAIN_ONLY: baselines.ROW}
_POOL = "its pool holds no other scored cell of this quadrant"

Halves = Callable[[Floats, np.random.Generator, int], Iterator[tuple[Floats, Floats]]]


def build_fields(grid: Grid, predictions: Mapping[str, Prediction], keep_TE: Bools) -> list[Field]:
    """Every quadrant with every predictor on it; cells outside `keep_TE` count as missing, in the pools as well."""
    score_TEQNO = np.where(keep_TE[:, :, None, None, None], grid.truth_TEQNO, np.nan)
    truth_TEO = propensity(question_means(score_TEQNO))
    known = _known_means(grid, truth_TEO)
    forms = {name: _forms(prediction) for name, prediction in predictions.items()}
    fields = []
    for region in regions(grid):
        truth_RCO = np.where(region.inside_RC[..., None], region.take(truth_TEO), np.nan)
        entries = _floor_entries(region, score_TEQNO, truth_RCO)
        entries += _pool_entries(region, truth_RCO)
        entries += _known_entries(region, known, truth_RCO)
        entries += _given_entries(region, forms, truth_RCO)
        row_ids = tuple(grid.train_ids[i] for i in region.rows_R)
        col_ids = tuple(grid.eval_ids[j] for j in region.cols_C)
        fields.append(Field(region, row_ids, col_ids, truth_RCO, tuple(entries)))
    return fields


def _forms(prediction: Prediction) -> dict[str, Floats]:
    """Propensities as sampled and as expectation, TEO each."""
    sampled_TEQNO = prediction.score_TEQNO[:, :, :, : prediction.sampled_n]
    expected_TEQO = prediction.expected_TEQO
    if expected_TEQO is None:
        expected_TEQO = question_means(prediction.score_TEQNO)
    return {SAMPLED: propensity(question_means(sampled_TEQNO)), EXPECTATION: propensity(expected_TEQO)}


def _given_entries(region: Region, forms: Mapping[str, Mapping[str, Floats]], truth_RCO: Floats) -> list[Entry]:
    found = []
    for name, by_form in forms.items():
        for form, score_TEO in by_form.items():
            found.append(_entry(name, form, region.take(score_TEO), truth_RCO, oracle=name == GT_SEED))
    return found


def _entry(name: str, form: str, score_RCO: Floats, truth_RCO: Floats, **more) -> Entry:
    return Entry(name, form, squared_error(score_RCO, truth_RCO), score_RCO, **more)


def _floor_entries(region: Region, score_TEQNO: Floats, truth_RCO: Floats) -> list[Entry]:
    """GT and GT-same; their expectation form is an ideal predictor without noise of its own, half the variance."""
    questions, samples = score_TEQNO.shape[2:4]
    inside = region.inside_RC[:, :, None, None, None]
    score_RCQNO = np.where(inside, region.take(score_TEQNO), np.nan)
    found = []
    for name, noise, halves, size, what in (
        (GT, floors.question_noise, floors.question_halves, questions, "scored questions"),
        (GT_SAME, floors.sample_noise, floors.sample_halves, samples, "scored samples of a question"),
    ):
        noise_RC = noise(score_RCQNO)
        more = {"oracle": True, "silent": _FLOOR_SILENT, "absent": f"a floor needs cells with two {what}"}
        shown = truth_RCO if name == GT else None
        lengthen = size / (size // 2) if size > 1 else None
        pairs = partial(_halved, score_RCQNO, halves)
        found.append(Entry(name, SAMPLED, 2.0 * noise_RC, shown, pairs=pairs, lengthen=lengthen, **more))
        found.append(Entry(name, EXPECTATION, noise_RC, None, **more))
    return found


def _halved(score_RCQNO: Floats, halves: Halves, rng: np.random.Generator, count: int):
    return halves(score_RCQNO, rng, count)


def _pool_entries(region: Region, truth_RCO: Floats) -> list[Entry]:
    """What pools of the quadrant give; on the diagonal every pool is a single cell."""
    nothing = None if region.crossed else np.full(truth_RCO.shape, np.nan)
    found = []
    for name, axis in _AXIS.items():
        more = {"oracle": True, "silent": _SILENT[name], "absent": _POOL}
        for form, error, deal in (
            ("dealt", baselines.dealt_error, baselines.deal),
            ("one", baselines.other_error, baselines.deal_others),
        ):
            error2_RC = error(truth_RCO, axis) if nothing is None else nothing[..., 0]
            pairs = partial(_deals, truth_RCO, axis, deal) if nothing is None else None
            found.append(Entry(f"{name}/{form}", SAMPLED, error2_RC, pairs=pairs, **more))
        loo_RCO = baselines.left_out_mean(truth_RCO, axis) if nothing is None else nothing
        found.append(_entry(f"{name}/loo", SAMPLED, loo_RCO, truth_RCO, **more))
    both_RCO = baselines.left_out_additive(truth_RCO) if nothing is None else nothing
    more = {"oracle": True, "silent": _SILENT[ADDITIVE], "absent": _POOL}
    return [*found, _entry(ADDITIVE, SAMPLED, both_RCO, truth_RCO, **more)]


def _deals(truth_RCO: Floats, axis: int, deal: Callable, rng: np.random.Generator, count: int):
    for _ in range(count):
        yield deal(truth_RCO, axis, rng), truth_RCO


def _known_means(grid: Grid, truth_TEO: Floats) -> dict[str, Floats]:
    """Means over meta-train alone. A row mean needs the model itself, so it is known for meta-train models only."""
    apart_TE = ~same_domain(grid)
    column_TEO = baselines.known_mean(truth_TEO, apart_TE & grid.train_meta_T[:, None], baselines.COLUMN)
    row_TEO = baselines.known_mean(truth_TEO, apart_TE & grid.eval_meta_E[None, :], baselines.ROW)
    row_TEO[~grid.train_meta_T] = np.nan
    return {EVAL_ONLY: column_TEO, TRAIN_ONLY: row_TEO}


def _known_entries(region: Region, known: Mapping[str, Floats], truth_RCO: Floats) -> list[Entry]:
    absent = {
        EVAL_ONLY: "no meta-train model has a scored answer there",
        TRAIN_ONLY: "its row mean needs the new fine-tune: known for meta-train models alone",
    }
    found = []
    for name, mean_TEO in known.items():
        more = {"silent": _SILENT[name], "absent": absent[name]}
        found.append(_entry(f"{name}/known", SAMPLED, region.take(mean_TEO), truth_RCO, **more))
    return found
