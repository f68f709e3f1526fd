"""The cells of one quadrant, and what each predictor says of them. Owns the cut of the grid into quadrants.

Shape suffixes: R training domain and C eval domain of one quadrant, O coordinate. NaN is a cell without a value.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from metagen_ray.analysis.grid import Bools, Floats, Grid
from metagen_ray.analysis.tables import DIAGONAL, EVAL_EVAL, EVAL_TRAIN, SAMPLED, TRAIN_EVAL, TRAIN_TRAIN

Pairs = Callable[[np.random.Generator, int], Iterator[tuple[Floats, Floats]]]


@dataclass(frozen=True, eq=False)
class Region:
    """Where a quadrant lies in the grid. The diagonal is a column of cells: clustered by domain once, not twice."""

    quadrant: str
    rows_R: NDArray[np.intp]
    cols_C: NDArray[np.intp]
    inside_RC: Bools
    crossed: bool

    def take(self, whole: NDArray) -> NDArray:
        """The quadrant's part of an array over (train, eval, ...)."""
        if self.crossed:
            return whole[np.ix_(self.rows_R, self.cols_C)]
        return whole[self.rows_R, self.cols_C][:, None]


@dataclass(frozen=True, eq=False)
class Entry:
    """One form of one predictor in one quadrant.

    `error2_RC` is the (expected) squared error of each cell, `score_RCO` what was predicted (None for a floor).
    `silent` maps metrics that mean nothing for this predictor to the reason. Where `pairs` is given, correlations
    are means over random (prediction, truth) pairs: deals of labels, or halves of the answers; `lengthen` then
    brings a half's correlation to full length (Spearman-Brown). `absent` says why the predictor has no cell here.
    """

    predictor: str
    form: str
    error2_RC: Floats
    score_RCO: Floats | None = None
    oracle: bool = False
    silent: Mapping[str, str] = field(default_factory=dict)
    pairs: Pairs | None = None
    lengthen: float | None = None
    absent: str = "no cell has both an answer of this predictor and a scored truth"


@dataclass(frozen=True, eq=False)
class Field:
    """A quadrant's truth and all entries on it."""

    region: Region
    row_ids: tuple[str, ...]
    col_ids: tuple[str, ...]
    truth_RCO: Floats
    entries: tuple[Entry, ...]

    def ones(self) -> tuple[Floats, Floats]:
        """Row and column weights of the quadrant as it is: a single resample that draws every domain once."""
        rows, columns = self.truth_RCO.shape[:2]
        return np.ones((1, rows)), np.ones((1, columns))

    def find(self, predictor: str, form: str) -> Entry | None:
        """The predictor's entry; one that has a single form stands for both."""
        own = {entry.form: entry for entry in self.entries if entry.predictor == predictor}
        return own.get(form, own.get(SAMPLED))


def same_domain(grid: Grid) -> Bools:
    """Cells on the diagonal: trained on and asked about the same domain, TE."""
    return np.array(grid.train_ids)[:, None] == np.array(grid.eval_ids)[None, :]


def regions(grid: Grid) -> list[Region]:
    """The four quadrants without the diagonal, then the diagonal."""
    same_TE = same_domain(grid)
    halves = {TRAIN_TRAIN: (1, 1), TRAIN_EVAL: (1, 0), EVAL_TRAIN: (0, 1), EVAL_EVAL: (0, 0)}
    found = []
    for quadrant, (row_half, col_half) in halves.items():
        rows_R = np.flatnonzero(grid.train_meta_T == bool(row_half))
        cols_C = np.flatnonzero(grid.eval_meta_E == bool(col_half))
        found.append(Region(quadrant, rows_R, cols_C, ~same_TE[np.ix_(rows_R, cols_C)], True))
    rows_R, cols_C = np.nonzero(same_TE)
    return [*found, Region(DIAGONAL, rows_R, cols_C, np.ones((len(rows_R), 1), bool), False)]


def squared_error(score_RCO: Floats, truth_RCO: Floats) -> Floats:
    """e^2 of each cell: (P - S)^2, for several coordinates half the sum of them."""
    return spread(np.square(score_RCO - truth_RCO))


def spread(square_O: Floats) -> Floats:
    """Sum squares over the last axis; half of it for options, where every error counts at two of them."""
    total = square_O.sum(axis=-1)
    return total if square_O.shape[-1] == 1 else 0.5 * total
