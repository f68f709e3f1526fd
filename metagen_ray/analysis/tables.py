"""The rows an analysis gives: what stages write and reports draw. Owns field names; computes nothing.

A value that does not exist is None, and `reason` says why; it is never 0 or NaN. Units: points of 0..100.
"""

from dataclasses import dataclass

TRAIN_TRAIN, TRAIN_EVAL, EVAL_TRAIN, EVAL_EVAL = "train-train", "train-eval", "eval-train", "eval-eval"
DIAGONAL = "diagonal"
QUADRANTS = (TRAIN_TRAIN, TRAIN_EVAL, EVAL_TRAIN, EVAL_EVAL, DIAGONAL)
FIT = TRAIN_TRAIN  # what the predictor was trained on: reported as fit, never as evaluation
EVALUATION = (TRAIN_EVAL, EVAL_TRAIN, EVAL_EVAL)

SAMPLED, EXPECTATION = "sampled", "expectation"
FORMS = (SAMPLED, EXPECTATION)


@dataclass(frozen=True, slots=True)
class QuadrantRow:
    """One metric of one predictor over the cells of one quadrant.

    `_expectation` at the end of `metric` is the predictor without its own sampling noise; `rate_` in front is the
    share of answers past the threshold. `oracle`: the predictor reads truth that a user would not have.
    `reason` explains a missing value, or missing bounds of a value that stands.
    """

    predictor: str
    quadrant: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    cells: int
    oracle: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class BlockRow:
    """One metric of one predictor over the cells of a quadrant that lie in a named block."""

    block: str
    predictor: str
    quadrant: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    cells: int
    reason: str | None


@dataclass(frozen=True, slots=True)
class CellRow:
    """One coordinate of one cell. `propensity` is as sampled; a cell without a scored answer has None.

    `answers` and `unscored` count the answers behind `propensity`; `marked` says that too many were unscored or
    incoherent. The truth is the predictor `GT`.
    """

    predictor: str
    train_domain: str
    eval_domain: str
    train_half: str
    eval_half: str
    coordinate: int
    propensity: float | None
    answers: int
    unscored: int
    propensity_expectation: float | None
    marked: bool


@dataclass(frozen=True, slots=True)
class ContrastRow:
    """Mean cellwise difference of squared errors, subject minus other: below 0 the subject is better.

    `p` is two-sided, `p_holm` the same after Holm's correction over the contrasts of its form, `p_better` one-sided
    (the subject is better). `p_joint` is the two-sided p if a domain goes wrong as training set and as questions
    together; it differs from `p` only where the same domains stand on both sides. `wins` of `splits` counts the
    splits in which the difference is below 0; `split_sd` is its standard deviation over splits (None for one).
    """

    subject: str
    against: str
    quadrant: str
    form: str
    difference: float | None
    low: float | None
    high: float | None
    t: float | None
    df: int | None
    p: float | None
    p_holm: float | None
    p_better: float | None
    p_joint: float | None
    cells: int
    splits: int
    wins: int | None
    split_sd: float | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class ClaimRow:
    """Intersection-union test of "the subject beats all of `against` in all of `quadrants`".

    `p` is the largest `p_better` of the single tests, `hardest` the rival and quadrant it comes from.
    """

    subject: str
    against: tuple[str, ...]
    quadrants: tuple[str, ...]
    form: str
    p: float | None
    holds: bool | None
    hardest: str | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class PooledRow:
    """One metric over several splits: the pooled value, its interval, and the range over single splits."""

    predictor: str
    quadrant: str
    metric: str
    value: float | None
    low: float | None
    high: float | None
    lowest: float | None
    highest: float | None
    splits: int
    cells: int
    oracle: bool
    reason: str | None


@dataclass(frozen=True, slots=True)
class PooledBlockRow:
    """One metric of a block over several splits: the pooled value and the range over the splits that have one."""

    block: str
    predictor: str
    quadrant: str
    metric: str
    value: float
    lowest: float
    highest: float
    splits: int
    cells: int
