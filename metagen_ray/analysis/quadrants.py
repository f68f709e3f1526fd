"""One study, analysed: `analyse` turns a grid and its predictions into rows. Owns the order of things, computes little.

Shape suffixes: B resample, T train domain, E eval domain, R and C those of one quadrant.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from metagen_ray.analysis import contrasts, measures
from metagen_ray.analysis.bootstrap import interval, stratified_weights
from metagen_ray.analysis.cells import cell_rows
from metagen_ray.analysis.entries import DERIVED, GT_SEED, build_fields
from metagen_ray.analysis.fields import Entry, Field
from metagen_ray.analysis.grid import (
    Bools,
    Floats,
    Grid,
    Prediction,
    check_prediction,
    is_scored,
    marked_cells,
    propensity,
    question_means,
)
from metagen_ray.analysis.measures import Key
from metagen_ray.analysis.tables import BlockRow, CellRow, ClaimRow, ContrastRow, QuadrantRow
from metagen_ray.errors import InputError

MIN_SEED_DOMAINS = 20
NO_INTERVAL = "a mean over deals or split halves: its interval is not computed"


@dataclass(frozen=True)
class Options:
    """Choices of an analysis. A claim is that `subject` beats all of a set of rivals in all evaluation quadrants.

    `rivals` holds the sets: the hardest forms of the means first, then the study's own, in which labels are dealt.
    """

    resamples: int = 1000
    deals: int = 100
    level: float = 0.95
    min_domains: int = 8
    mark_share: float = 0.10
    subject: str = "MetaSFT"
    rivals: tuple[tuple[str, ...], ...] = (
        ("UntrainedICL", "Base", "GT-EvalOnly/loo", "GT-TrainOnly/loo"),
        ("UntrainedICL", "Base", "GT-EvalOnly/dealt", "GT-TrainOnly/dealt"),
    )

    def __post_init__(self) -> None:
        if self.resamples < 100 or self.deals < 1 or self.min_domains < 3:
            raise InputError("analysis options: at least 100 resamples, 1 deal and 3 domains a half are needed")
        if not (0.5 < self.level < 1 and 0 <= self.mark_share <= 1):
            raise InputError("analysis options: level lies between 0.5 and 1, mark_share between 0 and 1")


@dataclass(frozen=True, eq=False)
class Analysis:
    """The rows of one study. `clean` repeats `quadrants` without marked cells and is empty where none is marked.

    `fields` maps a metric prefix ("" or "rate_") to the quadrants behind the rows: `combine` needs them.
    """

    quadrants: list[QuadrantRow]
    clean: list[QuadrantRow]
    blocks: list[BlockRow]
    cells: list[CellRow]
    contrasts: list[ContrastRow]
    claims: list[ClaimRow]
    notes: list[str]
    options: Options
    fields: Mapping[str, Sequence[Field]]


@dataclass(frozen=True, eq=False)
class Weights:
    """How often each resample draws each training domain (BT) and each eval domain (BE)."""

    train_BT: Floats
    eval_BE: Floats

    def of(self, field: Field) -> tuple[Floats, Floats]:
        """Weights of a quadrant's rows and columns; the diagonal's single column always weighs 1."""
        rows_BR = self.train_BT[:, field.region.rows_R]
        if not field.region.crossed:
            return rows_BR, np.ones((len(rows_BR), 1))
        return rows_BR, self.eval_BE[:, field.region.cols_C]


def analyse(
    grid: Grid,
    predictions: Mapping[str, Prediction],
    options: Options,
    rng: np.random.Generator,
    blocks: Mapping[str, Bools] | None = None,
) -> Analysis:
    """Measure every predictor, floor and baseline in every quadrant.

    `predictions` by name (MetaSFT, UntrainedICL, Base, Scrambled, Mechanism, GT-seed, ...); `blocks` maps a name to
    the cells (TE) whose error is also given apart. Points of 0..100. Raises InputError for input that does not fit.
    """
    blocks = blocks or {}
    _check_input(grid, predictions, blocks)
    marked = {name: _marked(grid, prediction, options) for name, prediction in predictions.items()}
    marked_TE = marked_cells(grid.truth_TEQNO, grid.incoherent_TEQN, options.mark_share)
    weights = Weights(
        stratified_weights(grid.train_meta_T, options.resamples, rng),
        stratified_weights(grid.eval_meta_E, options.resamples, rng),
    )
    everywhere_TE = np.ones(marked_TE.shape, bool)
    fields = {"": build_fields(grid, predictions, everywhere_TE)}
    if grid.past_TEQN is not None:
        fields["rate_"] = build_fields(*_rates(grid, predictions), everywhere_TE)
    clean = []
    if marked_TE.any() or any(own_TE.any() for own_TE in marked.values()):
        kept = {name: _without(prediction, marked[name]) for name, prediction in predictions.items()}
        clean = [row for f in build_fields(grid, kept, ~marked_TE) for row in _rows(f, weights, options, rng, "")]
    tests = contrasts_of([fields[""]], options)
    return Analysis(
        quadrants=[row for p, fs in fields.items() for f in fs for row in _rows(f, weights, options, rng, p)],
        clean=clean,
        blocks=_block_rows(fields[""], blocks, weights, options),
        cells=cell_rows(grid, predictions, {"GT": marked_TE, **marked}),
        contrasts=tests,
        claims=contrasts.claims(tests, options.subject, options.rivals),
        notes=_notes(grid, predictions, marked_TE, options),
        options=options,
        fields=fields,
    )


def contrasts_of(splits: Sequence[Sequence[Field]], options: Options) -> list[ContrastRow]:
    """The subject against every other predictor in the evaluation quadrants, over one or several splits."""
    return contrasts.contrast_rows(splits, options.subject, options.level, options.min_domains)


def bounds(value_B: Floats | None, entry: Entry, field: Field, options: Options) -> tuple[float, float] | str:
    """The interval of a resampled value, or why there is none."""
    if value_B is None:
        return NO_INTERVAL
    domains = measures.clusters(entry, field.region.crossed)
    if domains < options.min_domains:
        return f"interval n/a: {domains} domains on one side, {options.min_domains} are needed"
    found = interval(value_B, options.level, domains)
    return found or "interval n/a: the metric does not exist in more than 5 % of the resamples"


def _rows(field: Field, weights: Weights, options: Options, rng: np.random.Generator, prefix: str) -> list[QuadrantRow]:
    point = measures.measure_point(field, rng, options.deals)
    resampled = measures.measure(field, *weights.of(field))
    rows = []
    for entry in field.entries:
        for metric in measures.metrics_of(entry):
            key = Key(entry.predictor, entry.form, metric)
            rows.append(_row(field, entry, metric, point.get(key, np.nan), resampled.get(key), options, prefix))
    return rows


def _row(
    field: Field,
    entry: Entry,
    metric: str,
    value: float,
    value_B: Floats | None,
    options: Options,
    prefix: str,
) -> QuadrantRow:
    name = measures.metric_name(entry.form, metric, prefix)
    place = (entry.predictor, field.region.quadrant, name)
    cells = measures.counted_cells(entry)
    if np.isnan(value):
        why = measures.why_missing(field, entry, metric)
        return QuadrantRow(*place, None, None, None, cells, entry.oracle, why)
    found = bounds(value_B, entry, field, options)
    if isinstance(found, str):
        return QuadrantRow(*place, value, None, None, cells, entry.oracle, found)
    return QuadrantRow(*place, value, *found, cells, entry.oracle, None)


def _block_rows(
    fields: Sequence[Field], blocks: Mapping[str, Bools], weights: Weights, options: Options
) -> list[BlockRow]:
    """RMSE of every predictor in every block; pools of the baselines stay those of the whole quadrant."""
    rows = []
    for block, mask_TE in blocks.items():
        for field in fields:
            mask_RC = field.region.take(mask_TE)
            for whole in field.entries:
                entry = replace(whole, error2_RC=np.where(mask_RC, whole.error2_RC, np.nan))
                value, value_B = (
                    float(measures.rmse(entry, *field.ones())[0]),
                    measures.rmse(entry, *weights.of(field)),
                )
                row = _row(field, entry, measures.RMSE, value, value_B, options, "")
                reason = row.reason if row.cells else "no cell of this block has a value in this quadrant"
                rows.append(
                    BlockRow(
                        block,
                        row.predictor,
                        row.quadrant,
                        row.metric,
                        row.value,
                        row.low,
                        row.high,
                        row.cells,
                        reason,
                    )
                )
    return rows


def _check_input(grid: Grid, predictions: Mapping[str, Prediction], blocks: Mapping[str, Bools]) -> None:
    for name, prediction in predictions.items():
        if name in DERIVED:
            raise InputError(f"prediction {name!r}: the analysis makes this predictor itself; give it another name")
        check_prediction(name, prediction, grid)
    for name, mask_TE in blocks.items():
        if mask_TE.shape != grid.truth_TEQNO.shape[:2] or mask_TE.dtype != np.bool_:
            raise InputError(f"block {name!r}: a boolean for each cell of the grid is needed")


def _marked(grid: Grid, prediction: Prediction, options: Options) -> Bools:
    """Marked cells of a prediction; one that was never asked is missing, not marked."""
    marked_TE = marked_cells(prediction.score_TEQNO, prediction.incoherent_TEQN, options.mark_share)
    return marked_TE & is_scored(prediction.score_TEQNO).any(axis=(2, 3))


def _without(prediction: Prediction, marked_TE: Bools) -> Prediction:
    kept_TEQNO = np.where(marked_TE[:, :, None, None, None], np.nan, prediction.score_TEQNO)
    expected_TEQO = prediction.expected_TEQO
    if expected_TEQO is not None:
        expected_TEQO = np.where(marked_TE[:, :, None, None], np.nan, expected_TEQO)
    return replace(prediction, score_TEQNO=kept_TEQNO, expected_TEQO=expected_TEQO)


def _rates(grid: Grid, predictions: Mapping[str, Prediction]) -> tuple[Grid, dict[str, Prediction]]:
    """The same study with the share past the threshold as its score."""
    assert grid.past_TEQN is not None
    rated = {
        name: replace(prediction, score_TEQNO=prediction.past_TEQN[..., None], expected_TEQO=None)
        for name, prediction in predictions.items()
        if prediction.past_TEQN is not None
    }
    return replace(grid, truth_TEQNO=grid.past_TEQN[..., None]), rated


def _notes(grid: Grid, predictions: Mapping[str, Prediction], marked_TE: Bools, options: Options) -> list[str]:
    notes = [f"{int(marked_TE.sum())} of {marked_TE.size} cells of the truth are marked: more than"
             f" {options.mark_share:.0%} of their answers are unscored or incoherent"]  # fmt: skip
    missing = int(np.isnan(propensity(question_means(grid.truth_TEQNO))[..., 0]).sum())
    if missing:
        notes.append(f"{missing} cells of the truth have no scored answer and are left out")
    truth_n = grid.truth_TEQNO.shape[3]
    for name, prediction in predictions.items():
        samples = prediction.score_TEQNO.shape[3]
        if samples > 1 and prediction.sampled_n != truth_n:
            notes.append(f"{name}: its sampled form has {prediction.sampled_n} samples, the truth {truth_n}")
        if 1 < samples == prediction.sampled_n and prediction.expected_TEQO is None:
            notes.append(f"{name}: no samples beyond the truth's, so its expectation is the sampled form")
    notes.append(_seed_note(predictions.get(GT_SEED)))
    return notes


def _seed_note(second: Prediction | None) -> str:
    if second is None:
        return "no second SFT seed: floor_ratio is against GT-same alone"
    rows = int(is_scored(second.score_TEQNO).any(axis=(1, 2, 3)).sum())
    few = f"; fewer than {MIN_SEED_DOMAINS}, so GT-seed is indicative only" if rows < MIN_SEED_DOMAINS else ""
    return f"GT-seed stands on {rows} training domains{few}"
