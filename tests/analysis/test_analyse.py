"""What `analyse` and `combine` say beyond single numbers: reasons, marks, blocks, splits, hostile input."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from metagen_ray import analysis as statistics
from metagen_ray.analysis import Grid, Options, Prediction, combine, past_threshold
from metagen_ray.analysis.baselines import deal, deal_others
from metagen_ray.analysis.bootstrap import interval
from metagen_ray.analysis.contrasts import holm
from metagen_ray.analysis.student import t_quantile, t_upper
from metagen_ray.analysis.tables import EVALUATION
from metagen_ray.errors import InputError
from tests.analysis.worlds import names, prediction, world

QUICK = Options(resamples=100, deals=3)


def analyse(*arguments) -> Any:
    """Rows whose missing values the tests look into, so None needs no guard at every use."""
    return statistics.analyse(*arguments)


def study(seed=0, domains=20, off=3.0, **shape):
    rng = np.random.default_rng(seed)
    grid, mean = world(rng, domains, **shape)
    given = {
        "MetaSFT": prediction(rng, mean, off=off),
        "UntrainedICL": prediction(rng, mean, off=9.0),
        "Base": Prediction(np.repeat(prediction(rng, mean).score_TEQNO[:1], domains, axis=0), 3),
    }
    return grid, given, rng


def row_of(analysis, predictor, quadrant, metric):
    found = [r for r in analysis.quadrants if (r.predictor, r.quadrant, r.metric) == (predictor, quadrant, metric)]
    assert len(found) == 1, (predictor, quadrant, metric)
    return found[0]


def test_rows_never_hold_nan_and_missing_values_have_a_reason():
    grid, given, rng = study(domains=10)
    analysis = analyse(grid, given, QUICK, rng, {"none": np.zeros((10, 10), bool)})
    for row in [*analysis.quadrants, *analysis.blocks]:
        numbers = [row.value, row.low, row.high]
        assert all(x is None or np.isfinite(x) for x in numbers), row
        assert (row.reason is None) == (None not in numbers), row
    for row in analysis.contrasts:
        assert (row.reason is None) == (row.p is not None), row


def test_centred_correlation_constant_predictor_is_not_available():
    grid, given, rng = study()
    analysis = analyse(grid, given, QUICK, rng)
    row = row_of(analysis, "Base", "eval-eval", "pearson_column")
    assert row.value is None and "predictor is constant" in row.reason
    assert row_of(analysis, "Base", "eval-eval", "pearson_row").value is not None
    assert "eval domain" in row_of(analysis, "GT-EvalOnly/loo", "eval-eval", "pearson_column").reason
    assert "training domain" in row_of(analysis, "GT-TrainOnly/loo", "eval-eval", "pearson_row").reason


def test_centred_correlation_additive_prediction_is_not_available_with_missing_cells():
    grid, _, rng = study(missing=0.3)
    additive = np.add.outer(np.arange(20.0), np.arange(20.0))[:, :, None, None, None]
    analysis = analyse(grid, {"MetaSFT": Prediction(additive, 1)}, QUICK, rng)
    assert row_of(analysis, "MetaSFT", "eval-eval", "pearson_double").value is None
    assert row_of(analysis, "MetaSFT", "eval-eval", "pearson_column").value is not None


def test_constant_truth_is_named_as_the_reason():
    grid, given, rng = study()
    flat = replace(grid, truth_TEQNO=np.full_like(grid.truth_TEQNO, 50.0))
    analysis = analyse(flat, given, QUICK, rng)
    row = row_of(analysis, "MetaSFT", "eval-eval", "pearson")
    assert row.value is None and "truth is constant" in row.reason
    assert row_of(analysis, "MetaSFT", "eval-eval", "rmse").value > 0


def test_intervals_few_domains_are_not_available():
    grid, given, rng = study(domains=14)
    analysis = analyse(grid, given, QUICK, rng)
    row = row_of(analysis, "MetaSFT", "eval-eval", "rmse")
    assert row.value is not None and row.low is None and "7 domains" in row.reason
    contrast = next(r for r in analysis.contrasts if r.against == "Base")
    assert contrast.p is None and contrast.difference is not None and "7 domains" in contrast.reason
    assert analysis.claims[0].holds is None and "7 domains" in analysis.claims[0].reason


def test_diagonal_pools_of_one_are_not_available():
    grid, given, rng = study()
    analysis = analyse(grid, given, QUICK, rng)
    for name in ("GT-EvalOnly/loo", "GT-EvalOnly/dealt", "GT-TrainOnly/one", "GT-Additive"):
        assert "no other scored cell" in row_of(analysis, name, "diagonal", "rmse").reason
    assert row_of(analysis, "MetaSFT", "diagonal", "rmse").cells == 20


def test_role_grid_without_shared_domains_has_an_empty_diagonal():
    rng = np.random.default_rng(0)
    grid, mean = world(rng, 10)
    apart = replace(grid, eval_ids=names(10, start=100))
    analysis = analyse(apart, {"MetaSFT": prediction(rng, mean)}, QUICK, rng)
    row = row_of(analysis, "MetaSFT", "diagonal", "rmse")
    assert (row.value, row.cells) == (None, 0) and "scored truth" in row.reason
    assert row_of(analysis, "MetaSFT", "eval-eval", "rmse").cells == 25


def test_unscored_cells_are_left_out_and_counted():
    grid, given, rng = study()
    score = grid.truth_TEQNO.copy()
    score[1, 3] = np.nan  # eval-eval, whole cell
    score[1, 5, 0, 0] = np.nan
    analysis = analyse(replace(grid, truth_TEQNO=score), given, QUICK, rng)
    assert row_of(analysis, "MetaSFT", "eval-eval", "rmse").cells == 89
    cell = {(r.train_domain, r.eval_domain): r for r in analysis.cells if r.predictor == "GT"}
    empty, partial = cell["d001", "d003"], cell["d001", "d005"]
    assert (empty.propensity, empty.answers, empty.unscored, empty.marked) == (None, 12, 12, True)
    assert (partial.unscored, partial.marked) == (1, False)
    assert (partial.train_half, partial.eval_half) == ("eval", "eval")
    assert any("1 cells of the truth have no scored answer" in note for note in analysis.notes)


def test_marked_cells_are_left_out_of_clean_rows_only():
    grid, given, rng = study()
    incoherent = np.zeros(grid.truth_TEQNO.shape[:4], bool)
    incoherent[1, 3, :2] = True  # half of the answers of one eval-eval cell
    analysis = analyse(replace(grid, incoherent_TEQN=incoherent), given, QUICK, rng)
    assert row_of(analysis, "MetaSFT", "eval-eval", "rmse").cells == 90
    clean = [r for r in analysis.clean if (r.predictor, r.quadrant) == ("MetaSFT", "eval-eval")]
    assert {r.cells for r in clean} == {89}
    assert analyse(grid, given, QUICK, rng).clean == []


def test_blocks_cover_the_quadrant_they_partition():
    grid, given, rng = study()
    inside = np.add.outer(np.arange(20), np.arange(20)) % 3 == 0
    analysis = analyse(grid, given, QUICK, rng, {"in": inside, "out": ~inside})
    parts = [
        r for r in analysis.blocks if (r.predictor, r.quadrant, r.metric) == ("GT-EvalOnly/loo", "eval-eval", "rmse")
    ]
    whole = row_of(analysis, "GT-EvalOnly/loo", "eval-eval", "rmse")
    assert sum(r.cells for r in parts) == whole.cells
    assert sum(r.cells * r.value**2 for r in parts) == pytest.approx(whole.cells * whole.value**2)


def test_rate_metrics_come_from_answers_past_the_threshold():
    grid, given, rng = study()
    past = past_threshold(grid.truth_TEQNO[..., 0], 60.0)
    rated = {n: replace(p, past_TEQN=past_threshold(p.score_TEQNO[..., 0], 60.0)) for n, p in given.items()}
    analysis = analyse(replace(grid, past_TEQN=past), rated, QUICK, rng)
    rows_R, columns_C = np.flatnonzero(~grid.train_meta_T), np.flatnonzero(~grid.eval_meta_E)
    inside = past[np.ix_(rows_R, columns_C)][~np.eye(10, dtype=bool)]
    found = row_of(analysis, "GT", "eval-eval", "past_threshold_rate").value
    assert found == pytest.approx(inside.mean())
    assert row_of(analysis, "MetaSFT", "eval-eval", "rate_rmse").value > 0


def test_past_threshold_incoherent_is_not_past_and_unscored_stays_unscored():
    past = past_threshold([70.0, 70.0, 30.0, np.nan], 60.0, [90.0, 20.0, 90.0, 90.0])
    np.testing.assert_array_equal(past, [100.0, 0.0, 0.0, np.nan])


def test_second_seed_on_some_rows_gives_a_floor_and_a_note():
    grid, given, rng = study()
    second = np.full_like(grid.truth_TEQNO, np.nan)
    second[:9] = grid.truth_TEQNO[:9] + 20.0
    analysis = analyse(grid, {**given, "GT-seed": Prediction(second, 3)}, QUICK, rng)
    assert row_of(analysis, "GT-seed", "eval-train", "rmse").value == pytest.approx(20.0)
    ratio = row_of(analysis, "MetaSFT", "eval-train", "floor_ratio").value
    assert ratio == pytest.approx(row_of(analysis, "MetaSFT", "eval-train", "rmse").value / 20.0)
    assert any("9 training domains; fewer than 20" in note for note in analysis.notes)
    assert not any(r.against == "GT-seed" for r in analysis.contrasts)


def test_likelihood_expectation_replaces_more_samples():
    grid, given, rng = study()
    exact = grid.truth_TEQNO.mean(axis=3)
    given["MetaSFT"] = replace(given["MetaSFT"], expected_TEQO=exact)
    analysis = analyse(grid, given, QUICK, rng)
    assert row_of(analysis, "MetaSFT", "eval-eval", "rmse_expectation").value == pytest.approx(0.0, abs=1e-12)
    assert row_of(analysis, "MetaSFT", "eval-eval", "rmse").value > 1.0


def test_contrast_identical_predictors_has_a_reason():
    grid, given, rng = study()
    given["UntrainedICL"] = given["MetaSFT"]
    analysis = analyse(grid, given, QUICK, rng)
    row = next(r for r in analysis.contrasts if r.against == "UntrainedICL")
    assert row.difference == 0.0 and row.p is None and "nothing to test" in row.reason


def test_claim_missing_rival_is_named():
    grid, given, rng = study()
    del given["Base"]
    claim = analyse(grid, given, QUICK, rng).claims[0]
    assert claim.holds is None and "Base" in claim.reason


def test_claims_are_the_worst_one_sided_test_of_each_set_of_rivals():
    grid, given, rng = study()
    analysis = analyse(grid, given, QUICK, rng)
    assert [(c.against, c.form) for c in analysis.claims] == [
        (against, form) for against in QUICK.rivals for form in ("sampled", "expectation")
    ]
    for claim in analysis.claims:
        worst = max(
            r.p_better
            for r in analysis.contrasts
            if r.form == claim.form and r.against in claim.against and r.quadrant in EVALUATION
        )
        assert claim.p == worst and claim.holds == (worst < 0.05)


def test_analyse_same_generator_gives_the_same_rows():
    grid, given, _ = study(domains=12)
    first, second = (analyse(grid, given, QUICK, np.random.default_rng(3)).quadrants for _ in range(2))
    assert first == second


def splits_of_one_world(count=3, domains=24):
    grid, given, rng = study(domains=domains)
    blocks = {"even rows": np.broadcast_to(np.arange(domains)[:, None] % 2 == 0, (domains, domains))}
    analyses = []
    for _ in range(count):
        meta = np.zeros(domains, bool)
        meta[rng.permutation(domains)[: domains // 2]] = True
        analyses.append(analyse(replace(grid, train_meta_T=meta, eval_meta_E=meta), given, QUICK, rng, blocks))
    return analyses, rng


def test_combine_pools_splits_and_counts_wins():
    analyses, rng = splits_of_one_world()
    pooled = combine(analyses, QUICK, rng)
    row = next(r for r in pooled.quadrants if (r.predictor, r.quadrant, r.metric) == ("MetaSFT", "eval-eval", "rmse"))
    single = [row_of(a, "MetaSFT", "eval-eval", "rmse").value for a in analyses]
    assert row.value == pytest.approx(np.sqrt(np.mean(np.square(single))))
    assert (row.lowest, row.highest, row.splits) == (min(single), max(single), 3)
    assert row.low is not None and row.value is not None and row.high is not None
    assert row.low < row.value < row.high
    own = [
        r
        for a in analyses
        for r in a.contrasts
        if (r.against, r.quadrant, r.form) == ("UntrainedICL", "eval-eval", "sampled")
    ]
    contrast = next(
        r for r in pooled.contrasts if (r.against, r.quadrant, r.form) == ("UntrainedICL", "eval-eval", "sampled")
    )
    assert contrast.difference == pytest.approx(np.mean([r.difference for r in own]))
    assert (contrast.wins, contrast.splits) == (3, 3)
    assert contrast.df > own[0].df  # the splits together see more domains in this quadrant
    assert pooled.claims[0].holds
    block = next(b for b in pooled.blocks if (b.predictor, b.quadrant, b.metric) == ("MetaSFT", "eval-eval", "rmse"))
    parts = [
        b.value
        for a in analyses
        for b in a.blocks
        if (b.predictor, b.quadrant, b.metric) == ("MetaSFT", "eval-eval", "rmse")
    ]
    assert block.value == pytest.approx(np.sqrt(np.mean(np.square(parts))))
    assert (block.block, block.lowest, block.splits) == ("even rows", min(parts), 3)


def test_combine_one_split_twice_changes_no_test():
    analyses, rng = splits_of_one_world(1)
    pooled = combine([analyses[0], analyses[0]], QUICK, rng)
    assert [r.t for r in pooled.contrasts] == pytest.approx([r.t for r in analyses[0].contrasts])


def test_combine_single_analysis_raises():
    analyses, rng = splits_of_one_world(1)
    with pytest.raises(InputError, match="at least 2 splits"):
        combine(analyses, QUICK, rng)


@pytest.mark.parametrize("axis", [0, 1])
def test_deals_keep_every_pool_and_leave_missing_cells(axis):
    rng = np.random.default_rng(0)
    labels = rng.normal(size=(5, 6, 1))
    labels[2, 3] = np.nan
    for shuffled in (deal(labels, axis, rng), deal_others(labels, axis, rng)):
        np.testing.assert_array_equal(np.sort(shuffled, axis=axis), np.sort(labels, axis=axis))
        np.testing.assert_array_equal(np.isnan(shuffled), np.isnan(labels))
    others = deal_others(labels, axis, rng)
    assert not (others == labels).any()


def test_holm_equals_worked_example():
    assert holm([0.01, None, 0.04, 0.03]) == pytest.approx([0.03, None, 0.06, 0.06])


def test_student_equals_scipy():
    for df in (1, 2, 7, 24, 49, 1000):
        for t in (-40.0, -3.0, 0.0, 0.5, 2.0, 30.0):
            assert t_upper(t, df) == pytest.approx(stats.t.sf(t, df), rel=1e-10, abs=1e-300)
        for level in (0.005, 0.3, 0.975, 0.9999):
            assert t_quantile(level, df) == pytest.approx(stats.t.ppf(level, df), rel=1e-9)


def test_interval_many_failed_resamples_is_none():
    values = np.random.default_rng(0).normal(size=1000)
    assert interval(values, 0.95, 20) is not None
    values[:60] = np.nan
    assert interval(values, 0.95, 20) is None


def broken_grids():
    rng = np.random.default_rng(0)
    grid, _ = world(rng, 6)
    score, meta = grid.truth_TEQNO, grid.train_meta_T
    infinite = score.copy()
    infinite[0, 0, 0, 0] = np.inf
    crossed = ~grid.eval_meta_E
    return {
        "empty": {"train_ids": (), "train_meta_T": np.zeros(0, bool), "truth_TEQNO": score[:0]},
        "one domain": {"train_ids": ("d000",), "train_meta_T": meta[:1], "truth_TEQNO": score[:1]},
        "twice": {"train_ids": ("d000",) * 6},
        "all unscored": {"truth_TEQNO": np.full_like(score, np.nan)},
        "infinite": {"truth_TEQNO": infinite},
        "four axes": {"truth_TEQNO": score[..., 0]},
        "integers": {"truth_TEQNO": score.astype(int)},
        "a list": {"truth_TEQNO": score.tolist()},
        "no questions": {"truth_TEQNO": score[:, :, :0]},
        "no samples": {"truth_TEQNO": score[:, :, :, :0]},
        "transposed": {"truth_TEQNO": score[:4]},
        "empty half": {"train_meta_T": np.ones(6, bool), "eval_meta_E": np.ones(6, bool)},
        "halves as numbers": {"train_meta_T": meta.astype(float)},
        "halves disagree": {"eval_meta_E": crossed},
        "incoherence shape": {"incoherent_TEQN": np.zeros((6, 6), bool)},
        "rate shape": {"past_TEQN": np.zeros((6, 6, 4))},
    }


@pytest.mark.parametrize("what", broken_grids())
def test_grid_broken_input_raises(what):
    grid, _ = world(np.random.default_rng(0), 6)
    fields = {name: getattr(grid, name) for name in Grid.__dataclass_fields__}
    with pytest.raises(InputError):
        Grid(**{**fields, **broken_grids()[what]})


@pytest.mark.parametrize(
    "change",
    [
        {"score_TEQNO": np.zeros((5, 6, 4, 6, 1))},
        {"score_TEQNO": np.zeros((6, 6, 3, 6, 1))},
        {"score_TEQNO": np.zeros((6, 6, 4, 6, 2))},
        {"score_TEQNO": np.full((6, 6, 4, 6, 1), np.inf)},
        {"sampled_n": 0},
        {"sampled_n": 7},
        {"expected_TEQO": np.zeros((6, 6, 4))},
        {"incoherent_TEQN": np.zeros((6, 6), bool)},
    ],
)
def test_prediction_broken_input_raises_with_its_name(change):
    grid, given, rng = study(domains=6)
    given["MetaSFT"] = replace(given["MetaSFT"], **change)
    with pytest.raises(InputError, match="MetaSFT"):
        analyse(grid, given, QUICK, rng)


def test_prediction_with_a_name_of_ours_raises():
    grid, given, rng = study(domains=6)
    with pytest.raises(InputError, match="another name"):
        analyse(grid, {"GT-EvalOnly/loo": given["Base"]}, QUICK, rng)


def test_block_of_another_shape_raises():
    grid, given, rng = study(domains=6)
    with pytest.raises(InputError, match="block 'open'"):
        analyse(grid, given, QUICK, rng, {"open": np.ones((6, 5), bool)})


@pytest.mark.parametrize("change", [{"resamples": 10}, {"level": 1.0}, {"deals": 0}, {"min_domains": 2}])
def test_options_out_of_range_raise(change):
    with pytest.raises(InputError):
        Options(**change)


def test_prediction_never_scored_is_named_not_dropped():
    grid, given, rng = study(domains=8)
    given["Scrambled"] = replace(given["Base"], score_TEQNO=np.full_like(given["Base"].score_TEQNO, np.nan))
    analysis = analyse(grid, given, QUICK, rng)
    row = row_of(analysis, "Scrambled", "eval-eval", "rmse")
    assert row.value is None and row.cells == 0 and "no cell has both" in row.reason
