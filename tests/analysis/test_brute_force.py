"""`analyse` against plain loops: every number of tiny grids, to 1e-9."""

from functools import lru_cache

import numpy as np
import pytest

from metagen_ray.analysis import Options, analyse
from metagen_ray.analysis.fields import regions
from metagen_ray.analysis.measures import Key, measure
from metagen_ray.analysis.tables import EVALUATION, QUADRANTS
from tests.analysis import brute
from tests.analysis.worlds import prediction, world

OPTIONS = Options(resamples=100, deals=5, min_domains=3)
SHAPES = [
    pytest.param({"domains": 7, "extra": 2}, id="scalar"),
    pytest.param({"domains": 7, "coordinates": 3}, id="options"),
    pytest.param({"domains": 8, "missing": 0.25}, id="unscored"),
]


def analysed(shape):
    return analysed_once(tuple(shape.items()))


@lru_cache
def analysed_once(items):
    shape, rng = dict(items), np.random.default_rng(0)
    grid, mean = world(rng, **shape)
    missing = shape.get("missing", 0.0)
    given = {
        "MetaSFT": prediction(rng, mean, off=3.0, missing=missing),
        "UntrainedICL": prediction(rng, mean, off=9.0, missing=missing),
    }
    return grid, given, analyse(grid, given, OPTIONS, rng)


def value_of(analysis, predictor, quadrant, metric):
    rows = analysis.quadrants
    found = [r for r in rows if (r.predictor, r.quadrant, r.metric) == (predictor, quadrant, metric)]
    assert len(found) == 1, (predictor, quadrant, metric)
    return found[0].value


def split(cells, grid):
    """Cells by quadrant."""
    return {q: {c: v for c, v in cells.items() if brute.quadrant_of(grid, *c) == q} for q in QUADRANTS}


def assert_metrics(analysis, predictor, quadrant, suffix, predicted, truth):
    assert value_of(analysis, predictor, quadrant, f"rmse{suffix}") == pytest.approx(
        brute.rmse(predicted, truth), abs=1e-9
    )
    for metric, expected in brute.correlations(predicted, truth).items():
        found = value_of(analysis, predictor, quadrant, f"{metric}{suffix}")
        assert found == (None if expected is None else pytest.approx(expected, abs=1e-9)), metric


@pytest.mark.parametrize("shape", SHAPES)
def test_predictions_all_metrics_equal_loops(shape):
    grid, given, analysis = analysed(shape)
    truth = split(brute.cells_of(grid.truth_TEQNO), grid)
    for name, own in given.items():
        forms = {"": own.score_TEQNO[:, :, :, : own.sampled_n], "_expectation": own.score_TEQNO}
        for suffix, score in forms.items():
            predicted = brute.cells_of(score)
            for quadrant in (q for q in QUADRANTS if q != "diagonal"):
                assert_metrics(analysis, name, quadrant, suffix, predicted, truth[quadrant])
            found = value_of(analysis, name, "diagonal", f"rmse{suffix}")
            assert found == pytest.approx(brute.rmse(predicted, truth["diagonal"]), abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_pool_baselines_equal_loops_and_all_permutations(shape):
    grid, _, analysis = analysed(shape)
    truth = split(brute.cells_of(grid.truth_TEQNO), grid)
    for quadrant in (q for q in QUADRANTS if q != "diagonal"):
        own = truth[quadrant]
        for name, axis in (("GT-EvalOnly", 1), ("GT-TrainOnly", 0)):
            loo = brute.left_out(own, axis)
            assert value_of(analysis, f"{name}/loo", quadrant, "rmse") == pytest.approx(brute.rmse(loo, own))
            assert value_of(analysis, f"{name}/dealt", quadrant, "rmse") == pytest.approx(
                brute.dealt_rmse(own, axis), abs=1e-9
            )
            assert value_of(analysis, f"{name}/one", quadrant, "rmse") == pytest.approx(
                brute.one_rmse(own, axis), abs=1e-9
            )
            plain = brute.correlations(loo, own)["pearson"]
            assert value_of(analysis, f"{name}/loo", quadrant, "pearson") == pytest.approx(plain, abs=1e-9)
        both = brute.additive(own)
        assert value_of(analysis, "GT-Additive", quadrant, "rmse") == pytest.approx(brute.rmse(both, own), abs=1e-9)


def test_known_baselines_use_meta_train_alone():
    grid, _, analysis = analysed({"domains": 7, "extra": 2})
    cells = brute.cells_of(grid.truth_TEQNO)
    apart = {c: v for c, v in cells.items() if brute.quadrant_of(grid, *c) != "diagonal"}
    for quadrant, own in split(cells, grid).items():
        column = {
            (i, j): [
                brute.mean(apart[k, j][0] for k in range(7) if (k, j) in apart and grid.train_meta_T[k] and k != i)
            ]
            for i, j in own
        }
        row = {
            (i, j): [brute.mean(apart[i, k][0] for k in range(9) if (i, k) in apart and grid.eval_meta_E[k] and k != j)]
            for i, j in own
            if grid.train_meta_T[i]
        }
        assert value_of(analysis, "GT-EvalOnly/known", quadrant, "rmse") == pytest.approx(brute.rmse(column, own))
        found = value_of(analysis, "GT-TrainOnly/known", quadrant, "rmse")
        if quadrant in ("train-train", "train-eval", "diagonal"):
            assert found == pytest.approx(brute.rmse(row, own), abs=1e-9)
        else:
            assert found is None


@pytest.mark.parametrize("shape", SHAPES)
def test_floor_new_questions_equals_loops(shape):
    grid, _, analysis = analysed(shape)
    truth = split(brute.cells_of(grid.truth_TEQNO), grid)
    for quadrant, own in truth.items():
        expected = brute.floor_new_questions(grid, own)
        assert value_of(analysis, "GT", quadrant, "rmse") == pytest.approx(expected, abs=1e-9)
        assert value_of(analysis, "GT", quadrant, "rmse_expectation") == pytest.approx(expected / 2**0.5, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_floor_same_questions_equals_loops(shape):
    grid, _, analysis = analysed(shape)
    for quadrant, own in split(brute.cells_of(grid.truth_TEQNO), grid).items():
        expected = brute.floor_same_questions(grid, own)
        assert value_of(analysis, "GT-same", quadrant, "rmse") == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("shape", SHAPES[:2])
def test_floor_correlation_equals_all_split_halves(shape):
    grid, _, analysis = analysed(shape)
    for quadrant in EVALUATION:
        for metric, expected in brute.split_half(grid, quadrant).items():
            assert value_of(analysis, "GT", quadrant, metric) == pytest.approx(expected, abs=1e-9), metric


@pytest.mark.parametrize("shape", SHAPES)
def test_contrast_equals_loops(shape):
    grid, given, analysis = analysed(shape)
    truth = split(brute.cells_of(grid.truth_TEQNO), grid)
    rivals = {
        "UntrainedICL": lambda own: brute.cells_of(given["UntrainedICL"].score_TEQNO),
        "GT-EvalOnly/loo": lambda own: brute.left_out(own, 1),
    }
    subject = brute.cells_of(given["MetaSFT"].score_TEQNO)
    for quadrant in EVALUATION:
        for name, predict in rivals.items():
            m, t, df, p = brute.contrast(subject, predict(truth[quadrant]), truth[quadrant])
            row = next(
                r for r in analysis.contrasts if (r.against, r.quadrant, r.form) == (name, quadrant, "expectation")
            )
            assert (row.difference, row.t, row.p) == pytest.approx((m, t, p), abs=1e-9)
            assert row.df == df


@pytest.mark.parametrize("shape", SHAPES)
def test_resamples_equal_replicated_cells(shape):
    """The weighted metrics are those of a list in which each cell stands as often as it was drawn."""
    rng = np.random.default_rng(5)
    grid, given, analysis = analysed(shape)
    truth = split(brute.cells_of(grid.truth_TEQNO), grid)
    predicted = brute.cells_of(given["UntrainedICL"].score_TEQNO)
    for region, field in zip(regions(grid)[:4], analysis.fields[""][:4], strict=True):
        own = truth[region.quadrant]
        draws = [rng.multinomial(n, np.full(n, 1 / n), size=4).astype(float) for n in region.inside_RC.shape]
        measured = measure(field, *draws)
        for b in range(4):
            times = {
                (i, j): int(draws[0][b, r] * draws[1][b, c])
                for r, i in enumerate(region.rows_R)
                for c, j in enumerate(region.cols_C)
            }
            for metric, expected in brute.correlations(predicted, own, {c: times[c] for c in own}).items():
                found = measured[Key("UntrainedICL", "expectation", metric)][b]
                if expected is None or np.isnan(expected):
                    assert np.isnan(found), metric
                else:
                    # Resamples are finished in float32 where they need ranks.
                    assert found == pytest.approx(expected, rel=2e-6, abs=2e-6), metric
            drawn = [brute.squared(predicted[c], own[c]) for c in own if c in predicted for _ in range(times[c])]
            assert measured[Key("UntrainedICL", "expectation", "rmse")][b] == pytest.approx(brute.mean(drawn) ** 0.5)
