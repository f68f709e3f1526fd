"""Truth and predictions as arrays. Owns their checks, propensities and marks; knows nothing of metrics.

Shape suffixes: T train domain, E eval domain, Q question, N sample, O coordinate. NaN is an unscored answer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from metagen_ray.errors import InputError

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Grid:
    """What every fine-tuned model answered in every domain.

    `truth_TEQNO` has O = 1 for a scalar score; an option suite has one coordinate per option and one for answers off
    them, and a coordinate that a domain lacks is 0 everywhere. An answer with any NaN coordinate is unscored.
    `incoherent_TEQN` marks answers judged incoherent. `past_TEQN` holds 100 for an answer past the threshold and
    coherent, 0 for another, NaN for an unscored one (see `past_threshold`); it adds the `rate_` metrics.
    Raises InputError for shapes, ids or halves that do not fit together, and for truth without a single score.
    """

    train_ids: tuple[str, ...]
    eval_ids: tuple[str, ...]
    train_meta_T: Bools
    eval_meta_E: Bools
    truth_TEQNO: Floats
    incoherent_TEQN: Bools | None = None
    past_TEQN: Floats | None = None

    def __post_init__(self) -> None:
        _check_ids(self.train_ids, self.train_meta_T, "train")
        _check_ids(self.eval_ids, self.eval_meta_E, "eval")
        _check_halves(self)
        lead = (len(self.train_ids), len(self.eval_ids))
        _check_scores(self.truth_TEQNO, lead, None, "truth_TEQNO")
        shape_TEQN = self.truth_TEQNO.shape[:4]
        _check_side(self.incoherent_TEQN, shape_TEQN, "incoherent_TEQN of the truth")
        _check_side(self.past_TEQN, shape_TEQN, "past_TEQN of the truth")
        if not is_scored(self.truth_TEQNO).any():
            raise InputError("truth_TEQNO: no answer is scored; look at the judge stage before analysing")


@dataclass(frozen=True, eq=False)
class Prediction:
    """What a predictor answered in every cell.

    `score_TEQNO` has the truth's T, E and O, its Q (or 1 for a predictor of whole cells) and at least `sampled_n`
    samples: the first `sampled_n` are the sampled form, all of them the expectation, unless `expected_TEQO` gives the
    expectation from likelihoods. Cells that were never asked are NaN.
    """

    score_TEQNO: Floats
    sampled_n: int
    expected_TEQO: Floats | None = None
    incoherent_TEQN: Bools | None = None
    past_TEQN: Floats | None = None


def past_threshold(
    score: ArrayLike, threshold: float, coherence: ArrayLike | None = None, floor: float = 50.0
) -> Floats:
    """100 where the score is above the threshold and the coherence at least `floor`, else 0; NaN if unscored."""
    values = np.asarray(score, float)
    past = values > threshold
    if coherence is not None:
        past &= ~(np.asarray(coherence, float) < floor)
    return np.where(np.isnan(values), np.nan, 100.0 * past)


def check_prediction(name: str, prediction: Prediction, grid: Grid) -> None:
    """Raise InputError, naming the predictor, if its arrays do not fit the grid."""
    lead, coordinates = grid.truth_TEQNO.shape[:2], grid.truth_TEQNO.shape[4]
    score = prediction.score_TEQNO
    _check_scores(score, lead, coordinates, f"prediction {name!r}")
    if score.shape[2] not in (1, grid.truth_TEQNO.shape[2]):
        raise InputError(
            f"prediction {name!r}: {score.shape[2]} questions a cell, the truth has {grid.truth_TEQNO.shape[2]};"
            " give the truth's questions, or 1 for a predictor of whole cells"
        )
    if not 1 <= prediction.sampled_n <= score.shape[3]:
        raise InputError(
            f"prediction {name!r}: sampled_n is {prediction.sampled_n}, but there are {score.shape[3]} samples"
        )
    _check_side(prediction.incoherent_TEQN, score.shape[:4], f"incoherent_TEQN of {name!r}")
    _check_side(prediction.past_TEQN, score.shape[:4], f"past_TEQN of {name!r}")
    shape_TEQO = score.shape[:3] + score.shape[4:]
    _check_side(prediction.expected_TEQO, shape_TEQO, f"expected_TEQO of {name!r}")


def is_scored(score_TEQNO: Floats) -> Bools:
    """Answers with all coordinates scored, TEQN."""
    return np.logical_not(np.isnan(score_TEQNO).any(axis=-1))


def question_means(score_TEQNO: Floats) -> Floats:
    """Mean over the scored samples of each question, TEQO; NaN where none is scored."""
    scored_TEQN = is_scored(score_TEQNO)
    total_TEQO = np.where(scored_TEQN[..., None], score_TEQNO, 0.0).sum(axis=3)
    return _divide(total_TEQO, scored_TEQN.sum(axis=3)[..., None])


def propensity(mean_TEQO: Floats) -> Floats:
    """S[i, j]: mean over the questions that have a score, TEO; NaN where none has."""
    present_TEQ = np.logical_not(np.isnan(mean_TEQO).any(axis=-1))
    total_TEO = np.where(present_TEQ[..., None], mean_TEQO, 0.0).sum(axis=2)
    return _divide(total_TEO, present_TEQ.sum(axis=2)[..., None])


def marked_cells(score_TEQNO: Floats, incoherent_TEQN: Bools | None, share: float) -> Bools:
    """Cells in which more than `share` of the answers are unscored or incoherent, TE."""
    bad_TEQN = ~is_scored(score_TEQNO)
    if incoherent_TEQN is not None:
        bad_TEQN = bad_TEQN | incoherent_TEQN
    return bad_TEQN.mean(axis=(2, 3)) > share


def _divide(total: Floats, count: NDArray) -> Floats:
    return np.divide(total, count, out=np.full(total.shape, np.nan), where=count > 0)


def _check_ids(ids: Sequence[str], meta: Bools, side: str) -> None:
    if len(ids) < 2:
        raise InputError(f"{side}_ids: {len(ids)} domains; a grid needs at least 2 on each side")
    if len(set(ids)) != len(ids):
        double = next(i for i in ids if list(ids).count(i) > 1)
        raise InputError(f"{side}_ids: domain {double!r} stands there twice; give each domain once")
    if not isinstance(meta, np.ndarray) or meta.dtype != np.bool_ or meta.shape != (len(ids),):
        raise InputError(f"{side}_meta: one boolean per {side} domain ({len(ids)}) is needed, True for meta-train")
    if meta.all() or not meta.any():
        empty = "meta-eval" if meta.all() else "meta-train"
        raise InputError(f"{side}_meta: the {empty} half is empty; change the split's seed or share")


def _check_halves(grid: Grid) -> None:
    half = dict(zip(grid.train_ids, grid.train_meta_T, strict=True))
    for name, meta in zip(grid.eval_ids, grid.eval_meta_E, strict=True):
        if half.get(name, meta) != meta:
            raise InputError(f"domain {name!r} is in one half as training set and in the other as questions")


def _check_scores(score: Floats, lead: tuple[int, ...], coordinates: int | None, what: str) -> None:
    if not isinstance(score, np.ndarray) or score.ndim != 5 or not np.issubdtype(score.dtype, np.floating):
        raise InputError(f"{what}: a float array over (train, eval, question, sample, coordinate) is needed")
    if score.shape[:2] != tuple(lead) or 0 in score.shape:
        raise InputError(f"{what}: shape {score.shape}; expected {lead[0]} x {lead[1]} cells and no empty axis")
    if coordinates is not None and score.shape[4] != coordinates:
        raise InputError(f"{what}: {score.shape[4]} coordinates, the truth has {coordinates}")
    if np.isinf(score).any():
        raise InputError(f"{what}: holds infinite scores; an answer without a score is NaN")


def _check_side(array: NDArray | None, shape: tuple[int, ...], what: str) -> None:
    if array is None:
        return
    if array.shape != shape:
        raise InputError(f"{what}: shape {array.shape}, expected {shape}")
    if np.issubdtype(array.dtype, np.floating) and np.isinf(array).any():
        raise InputError(f"{what}: holds infinite values; leave out what has no score as NaN")
